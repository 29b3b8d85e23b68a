"""Keras callbacks: what a run anneals and records while it trains, and when it stops."""

from __future__ import annotations

import dataclasses
import math
import warnings

import keras

from tf_isvae import checks, estimators, evaluation, fitting
from tf_isvae.objective import GAUSSIANS_ALONE, Phase


class _FirstEpochs(keras.callbacks.Callback):
    """Something that lasts for the first epochs of `fit`: `epochs` is their number or, below 1, their share."""

    def __init__(self, epochs: float):
        super().__init__()
        self.epochs = checks.positive(f"{type(self).__name__}: epochs", epochs)

    @property
    def duration(self) -> float:
        """Epochs."""
        return self.epochs if self.epochs >= 1 else self.epochs * self.params["epochs"]

    def _enter(self, epoch: float, **differences) -> None:
        """The model's phase differs so if `epoch` is one of the first, and if not, no more."""
        if epoch >= self.duration:
            differences = {name: getattr(Phase(), name) for name in differences}
        self.model.enter(dataclasses.replace(self.model.phase, **differences))


class KLAnnealing(_FirstEpochs):
    """Lets the weight of the KL term in training fall from `start` to 1, geometrically, over the first epochs.

        weight = start^(1 - t),   t = min(1, epochs so far / epochs)     (times model.kl_weight, which is 1 by default)

    A weight above 1 keeps q(z|x) near the prior at first, so that all codes are tried before any is settled on
    (deterministic annealing: Rose 1998; Ueda & Nakano 1998). Logs and the ELBO always use weight 1. The weight depends
    on the number of the epoch only, so a resumed run goes on with the right one. It is not saved with the model, and is
    1 again when `fit` ends, however that ends.

    A `fit` that ends before the weight is 1 is warned of.

    Args:
        start: the weight in the first epoch, a positive number.
        epochs: after so many epochs the weight is 1; below 1, a share of the epochs of `fit`: 0.5 for the first half.

    Raises:
        ValueError: one of them is not a positive number.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer="adam")
        >>> annealing = callbacks.KLAnnealing(start=30, epochs=0.5)
        >>> history = model.fit(np.zeros((8, 4, 4, 1)), epochs=2, callbacks=[annealing], verbose=0)
        >>> float(model.kl_annealing)
        1.0
    """

    def __init__(self, start: float, epochs: float):
        super().__init__(epochs)
        self.start = checks.positive("KLAnnealing: start", start)

    def _weight(self, epoch: int) -> float:
        return self.start ** max(0.0, 1.0 - epoch / self.duration)

    def on_epoch_begin(self, epoch, logs=None):
        self.model.kl_annealing.assign(self._weight(epoch))
        epochs = self.params["epochs"]
        last = self._weight(epochs - 1)
        if epoch == 0 and last != 1:
            warnings.warn(
                f"KLAnnealing: epochs is {self.epochs:g}, and fit ends after {epochs}: the weight of the KL term is "
                f"{last:.3g} in the last epoch; train longer, or give a share of the run: epochs=0.5.",
                stacklevel=2,
            )


class WaitingPrior(_FirstEpochs):
    """Lets a prior that learns wait for the codes: in the first epochs, only the uniform prior counts in training.

    A prior that takes part from the first step settles before the codes are used, and many stay idle. While it waits,
    encoder and decoder train as with the uniform prior, and the prior learns the codes that they make; from then on all
    train together. Logs and the ELBO always have the model's prior. Whether it waits depends on the number of the epoch
    only, so a resumed run goes on as it should. After `fit`, however that ends, it does not wait.

    Args:
        epochs: how many epochs it waits; below 1, a share of the epochs of `fit`.

    Raises:
        ValueError: it is not a positive number.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3, prior="autoregressive")
        >>> model.compile(optimizer="adam")
        >>> history = model.fit(np.zeros((8, 4, 4, 1)), epochs=2, callbacks=[callbacks.WaitingPrior(1)], verbose=0)
        >>> model.phase.prior_waits  # not any more
        False
    """

    def __init__(self, epochs: float = 2 / 3):
        super().__init__(epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self._enter(epoch, prior_waits=True)


class FirstEstimator(_FirstEpochs):
    """Another estimator in the first epochs of training: one that learns fast, before one that has no bias.

    A biased estimator with little noise, such as ReinMax, is ahead of the unbiased ones at first; at the end, its bias
    counts. Validation and the ELBO always have the model's own. Which one it is depends on the number of the epoch
    only, so a resumed run goes on as it should. After `fit`, however that ends, it is the model's own.

    Args:
        estimator: as `estimators.get` takes it: an object, or text such as "ReinMax".
        epochs: in how many epochs; below 1, a share of the epochs of `fit`.

    Raises:
        TypeError, ValueError: an argument is not as described; in `fit`, the estimator does not take the latent.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer="adam")
        >>> first = callbacks.FirstEstimator("ReinMax")
        >>> history = model.fit(np.zeros((8, 4, 4, 1)), epochs=2, callbacks=[first], verbose=0)
        >>> model.estimator
        DisARM(num_pairs=1)
    """

    def __init__(self, estimator, epochs: float = 0.6):
        super().__init__(epochs)
        self.estimator = estimators.get(estimator)

    def on_train_begin(self, logs=None):
        estimators.check(self.estimator, self.model.latent)

    def on_epoch_begin(self, epoch, logs=None):
        self._enter(epoch, estimator=self.estimator)


class WarmStart(_FirstEpochs):
    """Starts the categories of a hybrid model from what its Gaussians have learned alone.

    From random weights, categories become templates of pixels, and stay that. So for the first epochs what is discrete
    of z is drawn from the prior, whatever the image: the decoder learns to do without it, and the Gaussians are those
    of a VAE. The encoder sees distorted images then, which leaves little but shape for the Gaussians to tell. After
    that, `fit_clusters` sets prior and categories from a mixture of Gaussians, and all train together, on images as
    they are. A resumed run goes on as it should. A model whose prior has been set or trained already is not started
    again: this does nothing then. (Jiang et al. 2016, arXiv:1611.05148, start so, without distortion.)

    Args:
        images: for `fit_clusters`: an array, a tf.data.Dataset of batches, or a function that returns one of these.
        epochs: how many epochs the Gaussians train alone; below 1, a share of the epochs of `fit`.
        distortion: of the images in these epochs, as of DiscreteVAE; None for none.
        seed: of the mixture, an integer from 0 to 2^31 - 1.

    Raises:
        ValueError: an argument is not as described. TypeError, in `fit`: the model has no prior "clusters".

    Example:
        >>> model = zoo.build("fc_hvae", image_shape=(4, 4, 1), latent_dim="2x3", prior="clusters")
        >>> model.compile(optimizer="adam")
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
        >>> history = model.fit(images, epochs=2, callbacks=[callbacks.WarmStart(images)], verbose=0)
        >>> model.prior.untouched
        False
    """

    def __init__(self, images, epochs: float = 1 / 3, distortion: float | None = 0.1, seed: int = 0):
        super().__init__(epochs)
        self.images = images
        self.distortion = None if distortion is None else checks.share("WarmStart: distortion", distortion)
        self.seed = checks.integer("seed", seed, 0, 2**31)

    def on_train_begin(self, logs=None):
        estimators.check(GAUSSIANS_ALONE, self.model.latent)
        self.model.prior.check_is_clusters("WarmStart")

    def on_epoch_begin(self, epoch, logs=None):
        untouched = self.model.prior.untouched
        self._enter(epoch if untouched else math.inf, categories_wait=True, distortion=self.distortion)
        if untouched and epoch >= self.duration:
            images = self.images() if callable(self.images) else self.images
            fitting.fit_clusters(self.model, images, seed=self.seed)


class GradientVariance(keras.callbacks.Callback):
    """Adds `gradient_variance` to the logs of every epoch (paper, figures 6 and 12).

    It is that of `evaluation.gradient_variance`, in nats squared per encoder parameter, for the weights at the end of
    the epoch. Put it before the callbacks that are to record it. (keras.callbacks.History always does.)

    Args:
        images: one batch (n, H, W, C) in [0, 1], the same for all epochs; the variance falls as 1/n.
        draws: gradients an epoch, at least 2. The relative standard error of the result is about sqrt(2 / draws) or
            less.

    Raises:
        ValueError: `draws` is not an integer of at least 2; in `fit`, the images do not fit the model.

    Example:
        >>> images = np.zeros((8, 4, 4, 1), np.float32)
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer="adam")
        >>> history = model.fit(images, epochs=2, callbacks=[callbacks.GradientVariance(images)], verbose=0).history
        >>> len(history["gradient_variance"])
        2
    """

    def __init__(self, images, draws: int = 20):
        super().__init__()
        self.images = images
        self.draws = checks.integer("GradientVariance: draws", draws, 2)

    def on_train_begin(self, logs=None):
        self.variance = evaluation.gradient_variance_function(self.model, self.images)

    def on_epoch_end(self, epoch, logs=None):
        # The same noise after every epoch, so that the curve shows what the weights change.
        logs["gradient_variance"] = self.variance(self.draws, 0)


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite: raised by `StopOnNonFiniteLoss`, with the epoch and the step."""


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stops `fit` with `NonFiniteLoss` at the first step whose loss is NaN or infinite.

    The model is left with the weights that it had at the end of the last finite epoch, or at the start.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer=keras.optimizers.SGD(1e30))
        >>> stop = callbacks.StopOnNonFiniteLoss()
        >>> model.fit(np.ones((8, 4, 4, 1)), epochs=9, callbacks=[stop], verbose=0)
        Traceback (most recent call last):
        ...
        tf_isvae.callbacks.NonFiniteLoss: the loss became nan in epoch ...
    """

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.last_good = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        # The previous epoch ended with a finite loss, or its last step would have raised.
        self.last_good = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if math.isfinite(loss):
            return
        self.model.set_weights(self.last_good)
        kept = f"the weights after epoch {self.epoch} are kept" if self.epoch else "the initial weights are kept"
        raise NonFiniteLoss(
            f"the loss became {loss} in epoch {self.epoch + 1}, step {batch + 1}; {kept}. "
            "Lower the learning rate, or look for extreme values in the data."
        )
