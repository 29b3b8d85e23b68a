"""Training one part of a model while the others stand still."""

from __future__ import annotations

import keras
import numpy as np
import scipy.optimize
import scipy.special
import tensorflow as tf

from tf_isvae import checks, chunks, posteriors, priors
from tf_isvae.distortion import distorted
from tf_isvae.model import CHUNK, DiscreteVAE, check_model

# Images that `fit_clusters` fits a mixture and the encoder's last layer to, and compares distortions of: enough for
# their few thousand parameters.
_FITTED = 20_000


def fit_prior(
    model: DiscreteVAE,
    images,
    *,
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **fit_arguments,
) -> keras.callbacks.History:
    """Fits the model's prior to codes drawn from q(z|x), with Keras; encoder and decoder stay as they are.

    Of all priors of its kind, that is the one with the greatest ELBO of these images. A prior that learns from the
    first step, with the networks, settles before the codes are used, and most stay idle: so fit it to a model that was
    trained with the uniform prior, and then train all together, `model.compile(...)` and `model.fit(...)`, at a low
    learning rate.

    Args:
        model: a DiscreteVAE with a prior that learns: `model.with_prior("autoregressive")` gives one.
        images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, which is read once.
        epochs: passes over the images; new codes are drawn in each.
        batch_size: images in a step.
        learning_rate: of Adam, at the beginning; a cosine takes it to 0.
        seed: an integer that fixes the codes and the order of the images.
        fit_arguments: further ones of keras.Model.fit, such as callbacks and verbose.

    Returns:
        Keras's History. Its `loss` is -E_q[ln p(z)], nats per image.

    Raises:
        TypeError, ValueError: an argument is not as described, or the prior has nothing to learn.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3, prior="autoregressive")
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
        >>> history = fit_prior(model, images, epochs=2, verbose=0).history
        >>> len(history["loss"])
        2
    """
    check_model(model)
    epochs = checks.integer("fit_prior: epochs", epochs)
    batch_size = checks.integer("fit_prior: batch_size", batch_size)
    learning_rate = checks.positive("fit_prior: learning_rate", learning_rate)
    seed = checks.integer("seed", seed, None)
    if not model.prior.trainable_variables:
        raise ValueError(
            f"the model's prior is {type(model.prior).__name__}, which has nothing to learn; it must be one that has: "
            "model = model.with_prior('autoregressive')."
        )
    eta = _encoded(model, images)
    trainer = _OfPrior(model, seed)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, -(-len(eta) // batch_size) * epochs)
    trainer.compile(optimizer=keras.optimizers.Adam(rate))
    batches = tf.data.Dataset.from_tensor_slices(eta).shuffle(len(eta), seed=seed & 0x7FFFFFFF).batch(batch_size)
    return trainer.fit(batches, epochs=epochs, shuffle=False, **fit_arguments)


def fit_clusters(
    model: DiscreteVAE, images, *, starts: int | None = None, distortion: float = 0.15, seed: int = 0
) -> np.ndarray:
    """Starts the categories of a hybrid model from a mixture of Gaussians (Jiang et al. 2016, arXiv:1611.05148).

    scikit-learn's GaussianMixture is fitted to the means of q(w|x), with as many components as there are codes of the
    discrete part, from several starts. They end at different mixtures, among which the likelihood hardly tells good
    clusters from bad ones. So the one is taken whose categories c, c' of two distortions of an image have the greatest
    mutual information, sum_c,c' p(c, c') ln p(c, c') / (p(c) p(c')) (Ji, Henriques & Vedaldi 2018, arXiv:1807.06653).

    The prior becomes that mixture, with the mean variance of q(w|x) added, and the encoder's last layer is fitted to
    the mixture's p(c|w), by L-BFGS on the cross-entropy; what it says of w stays, bit for bit. Decoder and the rest of
    the encoder stay as they are: train on.

    Args:
        model: a DiscreteVAE with the prior "clusters", whose encoder ends with a Dense layer.
        images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, which is read once.
        starts: how many starts of the mixture; default 16 with ten components or fewer, and fewer the more there are,
            one with a hundred: all of them then take about as long.
        distortion: of the images whose categories are compared, as of DiscreteVAE.
        seed: an integer from 0 to 2^31 - 1 that fixes starts and distortions.

    Returns:
        The component of each image, int (n,).

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_hvae", image_shape=(4, 4, 1), latent_dim="2x3", prior="clusters")
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
        >>> fit_clusters(model, images, starts=1).shape
        (64,)
    """
    check_model(model)
    if starts is not None:
        starts = checks.integer("fit_clusters: starts", starts)
    distortion = checks.share("fit_clusters: distortion", distortion)
    seed = checks.integer("seed", seed, 0, 2**31)
    model.prior.check_is_clusters("fit_clusters")
    last = model.encoder.layers[-1]
    if not isinstance(last, keras.layers.Dense):
        raise TypeError(f"fit_clusters: the encoder ends with a {type(last).__name__}; it must be a Dense layer.")
    from sklearn.mixture import GaussianMixture

    inner = keras.Model(model.encoder.inputs[0], last.input)
    etas, inputs, views = [], [], ([], [])
    # In one pass: the order may be another in the next.
    for i, chunk in chunks.of_images(images, model.image_shape, CHUNK):
        given = inner(chunk, training=False)
        etas.append(np.asarray(last(given), np.float32))
        if i < _FITTED:
            inputs.append(np.asarray(given, np.float32))
            for number, view in enumerate(views):
                seen = distorted(tf.convert_to_tensor(chunk, tf.float32), distortion, (seed, i + number))
                view.append(np.asarray(model.encoder(seen, training=False), np.float32))

    def continuous(etas: list) -> posteriors.Posterior:
        return posteriors.of(model.latent.posterior(np.concatenate(etas))).split("fit_clusters").continuous

    q = continuous(etas)
    means, variances = (each.numpy().astype(np.float64) for each in (q.mean(), q.variance()))
    views = [continuous(view).mean().numpy().astype(np.float64) for view in views]
    codes = posteriors.of(model.latent.prior()).split("fit_clusters").discrete.all_z("fit_clusters")

    def agreement(mixture) -> float:
        p, q = (mixture.predict_proba(view) for view in views)
        joint = (p.T @ q + q.T @ p) / (2 * len(p))
        alone = joint.sum(axis=0)
        return float(np.sum(scipy.special.rel_entr(joint, np.outer(alone, alone))))

    # The floor of a variance is far below that of a code that the decoder needs. Of the two ways to begin, neither is
    # always the better one.
    settings = {"n_components": len(codes), "max_iter": 200, "reg_covar": 1e-4}
    ways = ("kmeans", "k-means++")
    mixture = max(
        (
            GaussianMixture(**settings, init_params=ways[i % 2], random_state=seed + i).fit(means[:_FITTED])
            for i in range(min(16, max(1, 160 // len(codes))) if starts is None else starts)
        ),
        key=agreement,
    )
    shares = mixture.predict_proba(means)
    within = shares.T @ variances / shares.sum(axis=0)[:, None]
    spread = within[:, :, None] * np.eye(means.shape[1])
    model.prior.start(mixture.weights_, mixture.means_, mixture.covariances_ + spread)
    _fit_last_layer(model, last, np.concatenate(inputs), codes, np.float32(shares))
    return shares.argmax(axis=1)


def _fit_last_layer(
    model: DiscreteVAE, last: keras.layers.Dense, inputs: np.ndarray, codes: tf.Tensor, shares: np.ndarray
) -> None:
    """Fits q(c|x) to p(c|w) by the weights of the encoder's last layer: a convex problem.

    From what that layer is given of the first images (m, width), and from p(c|w) of all (n, codes).
    """
    shares = shares[: len(inputs)]
    width = model.latent.encoder_units
    kernel, bias = (weight.numpy() for weight in (last.kernel, last.bias))

    @tf.function
    def loss_and_slope(flat):
        with tf.GradientTape() as tape:
            tape.watch(flat)
            table = tf.reshape(flat, (-1, width))
            discrete = (
                posteriors.of(model.latent.posterior(tf.matmul(inputs, table[:-1]) + table[-1])).split("").discrete
            )
            loss = -tf.reduce_sum(shares * tf.transpose(discrete.log_prob_of_each(codes, "fit_clusters"))) / len(inputs)
        return loss, tape.gradient(loss, flat)

    def function(flat):
        return tuple(np.float64(each) for each in loss_and_slope(tf.constant(flat, tf.float32)))

    start = np.concatenate([kernel, bias[None]]).ravel()
    found = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options={"maxiter": 50})
    fitted = np.float32(found.x).reshape(-1, width)
    last.kernel.assign(fitted[:-1])
    last.bias.assign(fitted[-1])


def _encoded(model: DiscreteVAE, images) -> np.ndarray:
    """eta (n, encoder_units), float32, of all images."""
    rows = chunks.of_images(images, model.image_shape, CHUNK)
    return np.concatenate([np.asarray(model.encoder(chunk, training=False), np.float32) for _, chunk in rows])


class _OfPrior(keras.Model):
    """A Keras model whose weights are the prior's, and whose data are eta(x)."""

    def __init__(self, model: DiscreteVAE, seed: int):
        super().__init__(name="prior")
        self.latent, self.prior = model.latent, model.prior
        self.noise = priors.stateless_seed(seed)
        self.tracker = keras.metrics.Mean(name="loss")
        self.built = True

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, eta):
        step = tf.cast(self.optimizer.iterations, tf.int32)
        z = self.latent.posterior(eta).sample(seed=tf.random.experimental.stateless_fold_in(self.noise, step))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.prior.log_prob(tf.stop_gradient(z)))
        weights = self.prior.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.tracker.update_state(loss, sample_weight=tf.shape(eta)[0])
        return {"loss": self.tracker.result()}
