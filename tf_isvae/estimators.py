"""How the gradient of E_q(z|x)[ln p(x|z)] is estimated: one small class each, one method.

Every estimator is called as `estimator(posterior, log_likelihood, seed)`:

    posterior        q(z|x), a distribution with batch shape (batch,) and event shape (units,)
    log_likelihood   a function from z (samples, batch, units) to ln p(x|z) (samples, batch), in nats; z of shape
                     (samples, 1, units) is decoded once and compared with every image
    seed             a stateless seed, int32 (2,); None draws a fresh one

and returns an `Estimate`. What it needs of the posterior beside samples, it asks `tf_isvae.posteriors`.

An estimator can be named by a text, "ARMS:4" or "Linearized+DisARM:1": `get` makes it, `name_of` gives the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks, posteriors

tfd = tfp.distributions

LogLikelihood = Callable[[tf.Tensor], tf.Tensor]


class Estimate(NamedTuple):
    """An estimate of E_q[ln p(x|z)] and of its gradient, per image."""

    value: tf.Tensor
    """(batch,) float32, nats: the estimate of the expectation."""
    surrogate: tf.Tensor
    """(batch,) float32: its gradient, by automatic differentiation, is the estimate of the gradient."""


class Estimator:
    """What the estimators share: serialisation from the arguments of `__init__`, and a text that shows them.

    Example:
        >>> estimators.DisARM(num_pairs=2)
        DisARM(num_pairs=2)
    """

    # True if the estimate has no noise.
    exact = False
    # The argument of `__init__` that a text gives behind the colon, "ARMS:4"; None: it takes no count.
    count: str | None = None

    def __call__(self, posterior: tfd.Distribution, log_likelihood: LogLikelihood, seed=None) -> Estimate:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(posterior, log_likelihood, seed).")

    def check(self, posterior: tfd.Distribution) -> None:
        """Raises TypeError or ValueError if the estimator does not take posteriors of this kind."""

    def decoder_evaluations(self, latent) -> int:
        """How many z are decoded for each image; those of Enumerated, one for each code, serve a whole batch."""
        raise NotImplementedError(f"{type(self).__name__} must define decoder_evaluations(latent).")

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_config().items())})"


class _Samples(Estimator):
    """One that takes `num_samples`, one decoder evaluation each."""

    count = "num_samples"
    fewest = 1

    def __init__(self, num_samples: int = 1):
        self.num_samples = checks.integer(f"{type(self).__name__}: num_samples", num_samples, self.fewest)

    def decoder_evaluations(self, latent) -> int:
        return self.num_samples

    def get_config(self):
        return {"num_samples": self.num_samples}


@keras.saving.register_keras_serializable("tf_isvae")
class ImportanceSampling(_Samples):
    """The paper's estimator: samples of q_I, weighted by q / q_I (eq. 14). Unbiased.

        L_I = 1/M sum_m  w_m ln p(x|z_m),   w_m = q(z_m|x) / q_I(z_m),   z_m ~ q_I

    Its gradient splits in two: 1/M sum_m ln p(x|z_m) dw_m/dE for the encoder (eq. 16) and 1/M sum_m w_m
    d ln p(x|z_m)/dD for the decoder (eq. 17). With q_I = q every weight is 1 and the encoder's part is
    1/M sum_m ln p(x|z_m) (z_m - mean) (eq. 20 and 26).

    Args:
        num_samples: M, the number of decoder evaluations per image.
        proposal: a function from the posterior to q_I, a distribution over the same z; it must give every z that
            q gives. Default: q itself with its gradient stopped. To save a model that has one, register the function
            with keras.saving.register_keras_serializable.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.ImportanceSampling(5)(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        "Training Variational Auto Encoders with Discrete Latent Representations using Importance Sampling", submitted
        to ICLR 2019, https://openreview.net/forum?id=SkNSOjR9Y7.
    """

    def __init__(self, num_samples: int = 1, proposal: Callable[[tfd.Distribution], tfd.Distribution] | None = None):
        super().__init__(num_samples)
        if proposal is not None and not callable(proposal):
            raise TypeError(f"proposal is {proposal!r}; it must be a function from the posterior to a distribution.")
        self.proposal = proposal

    def __call__(self, posterior: tfd.Distribution, log_likelihood: LogLikelihood, seed=None) -> Estimate:
        # The gradient of the surrogate must not reach q_I, whatever the proposal does: eq. 14 takes it as fixed.
        q_i = posteriors.of(posterior if self.proposal is None else self.proposal(posterior)).stop_gradient()
        z = tf.stop_gradient(q_i.sample(self.num_samples, seed=seed))
        weights = tf.exp(posterior.log_prob(z) - q_i.log_prob(z))
        estimate = tf.reduce_mean(weights * log_likelihood(z), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def get_config(self) -> dict:
        return {**super().get_config(), "proposal": keras.saving.serialize_keras_object(self.proposal)}

    @classmethod
    def from_config(cls, config: dict) -> ImportanceSampling:
        return cls(**{**config, "proposal": keras.saving.deserialize_keras_object(config["proposal"])})


def _leave_one_out(values: tf.Tensor) -> tf.Tensor:
    """Each value less the mean of the others, along the first axis: (samples, batch) to (samples, batch)."""
    samples = values.shape[0]
    return (values - tf.reduce_mean(values, axis=0)) * (samples / (samples - 1))


@keras.saving.register_keras_serializable("tf_isvae")
class LeaveOneOut(_Samples):
    """The score-function estimator with the mean of the other samples as baseline. Unbiased.

        1/M sum_m  (f(z_m) - 1/(M-1) sum_{j != m} f(z_j)) d log q(z_m|x),   f = ln p(x|.),   z_m ~ q(z|x)

    The paper's eq. 20 and 26 with a control variate. Any latent.

    Args:
        num_samples: M, the number of decoder evaluations per image, at least 2.

    Raises:
        ValueError: it is not.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.LeaveOneOut(4)(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
        Mnih & Rezende, "Variational inference for Monte Carlo objectives", 2016, arXiv:1602.06725.
    """

    fewest = 2

    def __init__(self, num_samples: int = 2):
        super().__init__(num_samples)

    def __call__(self, posterior, log_likelihood, seed=None):
        posterior = posteriors.of(posterior)
        z = tf.stop_gradient(posterior.sample(self.num_samples, seed=seed))
        f = log_likelihood(z)
        value = tf.reduce_mean(f, axis=0)
        weights = tf.stop_gradient(_leave_one_out(f))
        return Estimate(value=value, surrogate=value + posterior.score_surrogate(z, weights))


@keras.saving.register_keras_serializable("tf_isvae")
class ARMS(_Samples):
    """Several mutually antithetic samples. Bernoulli only, unbiased.

    The M samples of a bit exclude each other as far as their marginal q allows, so f(z_m) less the mean of all tells
    more than between independent samples. With rho the correlation of two samples of the bit,

        1/(M-1) sum_m (f(z_m) - 1/M sum_j f(z_j)) (z_m - q) / (1 - rho)

    M uniform numbers from a Dirichlet(1, ..., 1), d_1 + ... + d_M = 1, make the samples: with r = min(q, 1 - q), the
    rarer value is taken if d_m > 1 - r^(1/(M-1)), which has probability r, and for two samples at once
    (2 r^(1/(M-1)) - 1)_+^(M-1), from which rho follows. For M = 2 it is DisARM.

    Args:
        num_samples: M, the number of decoder evaluations per image, at least 2.

    Raises:
        ValueError: it is not. TypeError, when called: the posterior is not of bits.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.ARMS(4)(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Dimitriev & Zhou, "ARMS: Antithetic-REINFORCE-Multi-Sample gradient for binary variables", 2021,
        arXiv:2105.14141.
    """

    fewest = 2

    def __init__(self, num_samples: int = 4):
        super().__init__(num_samples)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits = posteriors.of(posterior).bit_logits("ARMS")
        z, weight = self._samples(tf.stop_gradient(logits), seed)
        f = log_likelihood(z)
        mean = tf.stop_gradient(tf.sigmoid(logits))
        gradient = tf.reduce_mean(tf.stop_gradient(_leave_one_out(f))[..., None] * (z - mean), axis=0) * weight
        score = tf.reduce_sum(gradient * logits, axis=-1)
        value = tf.reduce_mean(f, axis=0)
        return Estimate(value=value, surrogate=value + score)

    def check(self, posterior):
        posteriors.of(posterior).bit_logits("ARMS")

    def _samples(self, logits: tf.Tensor, seed) -> tuple[tf.Tensor, tf.Tensor]:
        """z (M, batch, units), and 1 / (1 - rho) (batch, units)."""
        others = self.num_samples - 1
        shape = tf.concat([[self.num_samples], tf.shape(logits)], 0)
        seed = tfp.random.sanitize_seed(seed)
        exponentials = -tf.math.log(tf.random.stateless_uniform(shape, seed, minval=1e-30))
        dirichlet = exponentials / tf.reduce_sum(exponentials, axis=0)
        # From the logits, so that r keeps its precision if q is near 0 or 1.
        log_rare = -tf.nn.softplus(tf.abs(logits))
        root = tf.exp(log_rare / others)
        rare = tf.cast(dirichlet > 1 - root, tf.float32)
        z = tf.where(logits < 0, rare, 1 - rare)
        r, common = tf.exp(log_rare), tf.sigmoid(tf.abs(logits))
        # 1 - rho = (r - both) / (r (1 - r)), both the probability that two samples take the rarer value.
        both_over_r = tf.nn.relu(2 * root - 1) ** others / tf.maximum(r, 1e-30)
        return z, common / (1 - both_over_r)


@keras.saving.register_keras_serializable("tf_isvae")
class DisARM(Estimator):
    """Antithetic pairs: z from the uniform numbers u, z~ from 1 - u. Bernoulli only, unbiased.

        1/2 (f(z) - f(z~)) (z - z~) sigmoid(|eta|),   averaged over the pairs

    For more than two decoder evaluations, see ARMS.

    Args:
        num_pairs: each costs two decoder evaluations per image.

    Raises:
        ValueError: it is not a positive integer. TypeError, when called: the posterior is not of bits.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.DisARM()(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Dong, Mnih & Tucker, "DisARM: an antithetic gradient estimator for binary latent variables", 2020,
        arXiv:2006.10680.
    """

    count = "num_pairs"

    def __init__(self, num_pairs: int = 1):
        self.num_pairs = checks.integer("DisARM: num_pairs", num_pairs)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits = posteriors.of(posterior).bit_logits("DisARM")
        shape = tf.concat([[self.num_pairs], tf.shape(logits)], 0)
        u = tf.random.stateless_uniform(shape, tfp.random.sanitize_seed(seed))
        q = tf.stop_gradient(tf.sigmoid(logits))
        z, antithetic = tf.cast(u < q, tf.float32), tf.cast(1 - u < q, tf.float32)
        f = log_likelihood(tf.concat([z, antithetic], axis=0))
        difference = tf.stop_gradient(f[: self.num_pairs] - f[self.num_pairs :])[..., None]
        weight = tf.stop_gradient(tf.sigmoid(tf.abs(logits)))
        gradient = tf.reduce_mean(0.5 * difference * (z - antithetic), axis=0) * weight
        value = tf.reduce_mean(f, axis=0)
        return Estimate(value=value, surrogate=value + tf.reduce_sum(gradient * logits, axis=-1))

    def check(self, posterior):
        posteriors.of(posterior).bit_logits("DisARM")

    def decoder_evaluations(self, latent) -> int:
        return 2 * self.num_pairs

    def get_config(self):
        return {"num_pairs": self.num_pairs}


@keras.saving.register_keras_serializable("tf_isvae")
class Enumerated(Estimator):
    """The exact expectation, a sum over all codes. No variance.

        sum_z q(z|x) ln p(x|z)

    Every code is decoded once for the whole batch and compared with every image by one matrix product, so for one
    Categorical of c categories it costs c decoder evaluations a batch: less than one sample an image if c < batch.

    Raises:
        ValueError, when called: there are more than 4,096 codes. TypeError: the posterior is Gaussian.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.Enumerated()(q, lambda z: tf.reduce_sum(z, axis=-1)).value.numpy().tolist()
        [1.5, 1.5]
    """

    exact = True

    def __call__(self, posterior, log_likelihood, seed=None):
        posterior = posteriors.of(posterior)
        z = posterior.all_z("Enumerated")
        f = log_likelihood(z[:, None])
        expectation = tf.reduce_sum(tf.exp(posterior.log_prob_of_each(z, "Enumerated")) * f, axis=0)
        return Estimate(value=expectation, surrogate=expectation)

    def check(self, posterior):
        posteriors.of(posterior).all_z("Enumerated")

    def decoder_evaluations(self, latent) -> int:
        return latent.num_codes


@keras.saving.register_keras_serializable("tf_isvae")
class Reparameterized(_Samples):
    """Backpropagation through the samples (paper, section 2, eq. 6 to 10). Gaussian latents only, unbiased.

        1/M sum_m ln p(x|z_m),   z_m = mean + scale * epsilon_m

    Args:
        num_samples: M, the number of decoder evaluations per image.

    Raises:
        ValueError: it is not a positive integer. TypeError, when called: the posterior is not Gaussian.

    Example:
        >>> q = GaussianLatent(3).posterior(tf.zeros((2, 6)))  # 2 images, each with 3 Gaussians
        >>> estimators.Reparameterized()(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Kingma & Welling, "Auto-encoding variational Bayes", 2013, arXiv:1312.6114.
    """

    def __call__(self, posterior, log_likelihood, seed=None):
        q = posteriors.of(posterior).reparameterized("Reparameterized")
        estimate = tf.reduce_mean(log_likelihood(q.sample(self.num_samples, seed=seed)), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def check(self, posterior):
        posteriors.of(posterior).reparameterized("Reparameterized")


def _with_gradient_of(z: tf.Tensor, proxy: tf.Tensor) -> tf.Tensor:
    """z, with the gradient of `proxy`."""
    return tf.stop_gradient(z - proxy) + proxy


class _Relaxed(_Samples):
    """One that gives each sample the gradient of `_proxy`, a function of eta. Biased."""

    def __call__(self, posterior, log_likelihood, seed=None):
        logits, to_z, to_one_hots = posteriors.of(posterior).relaxation(type(self).__name__)
        z = tf.stop_gradient(posterior.sample(self.num_samples, seed=seed))
        proxy = self._proxy(logits, to_one_hots(z))
        estimate = tf.reduce_mean(log_likelihood(_with_gradient_of(z, to_z(proxy))), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def check(self, posterior):
        posteriors.of(posterior).relaxation(type(self).__name__)


@keras.saving.register_keras_serializable("tf_isvae")
class StraightThrough(_Relaxed):
    """BIASED. Backpropagation as if the sample were its mean: dz/d eta := d mean / d eta. For comparison.

    The paper compares itself with it by way of VQ-VAE. Bernoulli and Categorical.

    Args:
        num_samples: M, the number of decoder evaluations per image.

    Raises:
        ValueError: it is not a positive integer. TypeError, when called: the posterior is Gaussian.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.StraightThrough()(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Bengio, Leonard & Courville, "Estimating or propagating gradients through stochastic neurons", 2013,
        arXiv:1308.3432.
    """

    def _proxy(self, logits, z):
        return tf.nn.softmax(logits)


@keras.saving.register_keras_serializable("tf_isvae")
class ReinMax(_Relaxed):
    """BIASED. Straight-through to second order (Heun's method). For comparison.

    With p = softmax(eta) and p_z = (p + z) / 2, the gradient is 2 dz_1 - 1/2 dz_0, where dz_0 backpropagates through
    the softmax at p and dz_1 through the softmax at p_z. Bernoulli and Categorical.

    Args:
        num_samples: M, the number of decoder evaluations per image.

    Raises:
        ValueError: it is not a positive integer. TypeError, when called: the posterior is Gaussian.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.ReinMax()(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Liu et al., "Bridging discrete and backpropagation: straight-through and beyond", 2023, arXiv:2304.08612.
    """

    def _proxy(self, logits, z):
        p = tf.nn.softmax(logits)
        # Logits whose softmax is (p + z) / 2, with the gradient of eta.
        middle = _with_gradient_of(tf.math.log((p + z) / 2 + 1e-30), logits)
        return 2 * tf.nn.softmax(middle) - 0.5 * p


@keras.saving.register_keras_serializable("tf_isvae")
class Linearized(Estimator):
    """Another estimator, of f = ln p(x|.) less its tangent at the mean of q. Unbiased if that one is.

        f(z) - g . (z - mean),   g = df/dz at z = mean;   g . d mean is given back in closed form

    What the other estimator has to find by sampling is only how f bends. Bernoulli and Categorical. One decoder
    evaluation more than the other estimator, with its backpropagation to z.

    Args:
        estimator: the other one; default DisARM().

    Raises:
        TypeError: it is no estimator; when called: the posterior is Gaussian, or not of the other one's kind.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.Linearized(estimators.ARMS(3))(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Gu, Levine, Sutskever & Mnih, "MuProp: unbiased backpropagation for stochastic neural networks", 2016,
        arXiv:1511.05176: there with independent samples. With antithetic ones (DisARM, ARMS) the two reductions
        multiply.
    """

    def __init__(self, estimator: Estimator | None = None):
        self.estimator = DisARM() if estimator is None else estimator
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Linearized: estimator is {estimator!r}; it must be an object of tf_isvae.estimators.")

    @property
    def exact(self) -> bool:
        return self.estimator.exact

    def __call__(self, posterior, log_likelihood, seed=None):
        logits, to_z, _ = posteriors.of(posterior).relaxation("Linearized")
        p = tf.nn.softmax(logits)
        at = tf.stop_gradient(p)
        mean = to_z(at)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            f = log_likelihood(to_z(at)[None])
        slopes = tf.stop_gradient(tape.gradient(f, at))
        g = to_z(slopes)
        rest = self.estimator(posterior, lambda z: log_likelihood(z) - tf.reduce_sum(g * (z - mean), axis=-1), seed)
        # In the mean over z the tangent adds nothing to the value. A one-hot vector sums to 1, so a constant may be
        # taken off its slopes: the slope of the mode, which leaves exactly 0 of a variable that is certain, however
        # softmax rounds.
        mode = tf.argmax(logits, axis=-1, output_type=tf.int32)
        slopes -= tf.gather(slopes, mode[..., None], batch_dims=2)
        return Estimate(value=rest.value, surrogate=rest.surrogate + tf.reduce_sum(slopes * p, axis=[-2, -1]))

    def check(self, posterior):
        posteriors.of(posterior).relaxation("Linearized")
        self.estimator.check(posterior)

    def decoder_evaluations(self, latent) -> int:
        return 1 + self.estimator.decoder_evaluations(latent)

    def get_config(self):
        return {"estimator": keras.saving.serialize_keras_object(self.estimator)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["estimator"]))

    def __repr__(self):
        return f"Linearized({self.estimator!r})"


# --- by name --------------------------------------------------------------------------------------------------------

_BY_NAME = {
    cls.__name__: cls
    for cls in (
        ImportanceSampling,
        LeaveOneOut,
        DisARM,
        ARMS,
        Enumerated,
        Reparameterized,
        StraightThrough,
        ReinMax,
        Linearized,
    )
}
_LINEARIZED = "Linearized+"


def names() -> list[str]:
    """The names that `get` takes, without counts.

    Example:
        >>> estimators.names()[:4]
        ['ImportanceSampling', 'LeaveOneOut', 'DisARM', 'ARMS']
    """
    return list(_BY_NAME)


def get(estimator: str | Estimator) -> Estimator:
    """The estimator that a text names; an estimator itself is returned as it is.

    Args:
        estimator: NAME or NAME:COUNT, with the number of samples (of pairs for DisARM); Linearized+NAME:COUNT is
            Linearized of that one. Or an object that can be called as an estimator.

    Raises:
        ValueError: a text that names none, or a count that it does not take. TypeError: something else.

    Example:
        >>> estimators.get("ARMS:4"), estimators.get("DisARM"), estimators.get("Linearized+DisARM:1")
        (ARMS(num_samples=4), DisARM(num_pairs=1), Linearized(DisARM(num_pairs=1)))
    """
    if not isinstance(estimator, str):
        return _checked(estimator)
    if estimator.startswith(_LINEARIZED):
        return Linearized(get(estimator.removeprefix(_LINEARIZED)))
    name, colon, count = estimator.partition(":")
    cls = _BY_NAME.get(name)
    if cls is None or (colon and not (count.isascii() and count.isdecimal())):
        raise ValueError(
            f"estimator is {estimator!r}; it must be NAME, NAME:COUNT or Linearized+NAME:COUNT, with NAME one of "
            f"{', '.join(_BY_NAME)}."
        )
    if not colon:
        return cls()
    if cls.count is None:
        raise ValueError(f"estimator is {estimator!r}; it must be {name} alone, which takes no count.")
    return cls(**{cls.count: int(count)})


def name_of(estimator: Estimator) -> str:
    """The text from which `get` makes an equal estimator.

    Raises ValueError if there is none: an estimator of one's own, or ImportanceSampling with a proposal.

    Example:
        >>> [estimators.name_of(estimator) for estimator in (estimators.ARMS(4), estimators.Linearized())]
        ['ARMS:4', 'Linearized+DisARM:1']
    """
    cls = type(estimator)
    if cls is Linearized:
        return _LINEARIZED + name_of(estimator.estimator)
    if _BY_NAME.get(cls.__name__) is cls:
        text = cls.__name__ + (f":{getattr(estimator, cls.count)}" if cls.count else "")
        if get(text).get_config() == estimator.get_config():
            return text
    raise ValueError(f"estimator is {estimator!r}; it must be one of {', '.join(_BY_NAME)}, without a proposal.")


def check(estimator: Callable, latent) -> None:
    """Raises TypeError or ValueError if it is no estimator, or one that does not take this latent."""
    if isinstance(_checked(estimator), Estimator):
        estimator.check(latent.prior())


def check_estimate(estimate, estimator: Callable) -> Estimate:
    """What an estimator has returned. Raises TypeError if it is no `Estimate`."""
    if not isinstance(estimate, Estimate):
        name = getattr(estimator, "__name__", type(estimator).__name__)
        raise TypeError(
            f"estimator {name} returned {_kind(estimate)}; it must return estimators.Estimate(value, surrogate), each "
            "of shape (batch,): the estimate of E_q[ln p(x|z)], and what has the gradient's estimate as its gradient."
        )
    return estimate


def _kind(value) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if tf.is_tensor(value) else f"a {type(value).__name__}"


def _checked(estimator):
    # Any function with the signature of Estimator.__call__ will do.
    if isinstance(estimator, type) or not callable(estimator):
        raise TypeError(f"estimator is {estimator!r}; it must be an object of tf_isvae.estimators, or the name of one.")
    return estimator
