"""Estimators that need the slopes of f = ln p(x|.): they backpropagate through the decoder to z."""

from __future__ import annotations

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks, posteriors
from tf_isvae.estimators.base import Estimate, Estimator, Sampling
from tf_isvae.estimators.by_values import DisARM, Enumerated


@keras.saving.register_keras_serializable("tf_isvae")
class Reparameterized(Sampling):
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


class _Relaxed(Sampling):
    """One that gives each sample the gradient of `_proxy`, a function of eta. Biased."""

    def __call__(self, posterior, log_likelihood, seed=None):
        relaxed = posteriors.of(posterior).relaxation(type(self).__name__)
        z = tf.stop_gradient(posterior.sample(self.num_samples, seed=seed))
        proxy = relaxed.to_z(self._proxy(relaxed, relaxed.from_z(z)))
        estimate = tf.reduce_mean(log_likelihood(_with_gradient_of(z, proxy)), axis=0)
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

    def _proxy(self, relaxed, z):
        return relaxed.to_mean(relaxed.logits)


@keras.saving.register_keras_serializable("tf_isvae")
class ReinMax(_Relaxed):
    """BIASED. Straight-through to second order (Heun's method). For comparison.

    With p = softmax(eta) and p_z = (softmax(eta / tau) + z) / 2, the gradient is 2 dz_1 - 1/2 dz_0, where dz_0
    backpropagates through the softmax at p and dz_1 through the softmax at p_z. z is always drawn from q, at tau = 1.
    Bernoulli and Categorical.

    The step from p to p_z is exact if ln p(x|z) is quadratic in z and tau = 1. The paper finds a tau of 1.3 to 1.5
    best: it leaves a nearly certain q some gradient.

    Args:
        num_samples: M, the number of decoder evaluations per image.
        temperature: tau, positive.

    Raises:
        ValueError: an argument is not as described. TypeError, when called: the posterior is Gaussian.

    Example:
        >>> q = BernoulliLatent(3).posterior(tf.zeros((2, 3)))  # 2 images, each with 3 bits
        >>> estimators.ReinMax(temperature=1.3)(q, lambda z: tf.reduce_sum(z, axis=-1)).value.shape
        TensorShape([2])

    References:
        Liu et al., "Bridging discrete and backpropagation: straight-through and beyond", 2023, arXiv:2304.08612.
    """

    real = "temperature"

    def __init__(self, num_samples: int = 1, temperature: float = 1.0):
        super().__init__(num_samples)
        self.temperature = checks.positive("ReinMax: temperature", temperature)

    def _proxy(self, relaxed, z):
        logits, softmax = relaxed.logits, relaxed.to_mean
        p = softmax(logits)
        flattened = p if self.temperature == 1 else softmax(logits / self.temperature)
        # Logits whose softmax is (flattened + z) / 2, with the gradient of eta.
        middle = _with_gradient_of(relaxed.to_logits((flattened + z) / 2), logits)
        return 2 * softmax(middle) - 0.5 * p

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


class _AroundAnother(Estimator):
    """An estimator that hands a part of its work to another, `estimator`; without one, to a `default()`."""

    default: type[Estimator]

    def __init__(self, estimator: Estimator | None = None):
        self.estimator = self.default() if estimator is None else estimator
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                f"{type(self).__name__}: estimator is {estimator!r}; it must be an object of tf_isvae.estimators."
            )

    def get_config(self):
        return {"estimator": keras.saving.serialize_keras_object(self.estimator)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["estimator"]))

    def __repr__(self):
        return f"{type(self).__name__}({self.estimator!r})"


@keras.saving.register_keras_serializable("tf_isvae")
class Linearized(_AroundAnother):
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

    default = DisARM

    @property
    def exact(self) -> bool:
        return self.estimator.exact

    def __call__(self, posterior, log_likelihood, seed=None):
        relaxed = posteriors.of(posterior).relaxation("Linearized")
        p = relaxed.to_mean(relaxed.logits)
        mean = tf.stop_gradient(relaxed.to_z(p))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(mean)
            f = log_likelihood(mean[None])
        g = tf.stop_gradient(tape.gradient(f, mean))
        rest = self.estimator(posterior, lambda z: log_likelihood(z) - tf.reduce_sum(g * (z - mean), axis=-1), seed)
        # In the mean over z the tangent adds nothing to the value. A one-hot vector sums to 1, so a constant may be
        # taken off its slopes: the slope of the mode, which leaves exactly 0 of a variable that is certain, however
        # softmax rounds.
        tangent = relaxed.to_z(relaxed.from_mode(relaxed.from_z(g)) * p)
        return Estimate(value=rest.value, surrogate=rest.surrogate + tf.reduce_sum(tangent, axis=-1))

    def check(self, posterior):
        posteriors.of(posterior).relaxation("Linearized")
        self.estimator.check(posterior)

    def decoder_evaluations(self, latent) -> int:
        return 1 + self.estimator.decoder_evaluations(latent)


@keras.saving.register_keras_serializable("tf_isvae")
class Hybrid(_AroundAnother):
    """For a ProductLatent of discrete and continuous parts. Unbiased if the other estimator is.

        w ~ q(w|x) by reparameterisation;   with it held fixed, the other estimator of E_q(z|x)[ln p(x|z, w)]

    The continuous part w is drawn once for an image; its gradient comes through the decoder (paper, section 2, eq. 6 to
    10), from every z at which the other estimator decodes. Enumerated then decodes each category once an image, not
    once a batch: it suits few categories. (Its first dense layer is linear in (z, w), but what w adds there is not
    worth sharing among the categories: in an FC decoder of 10 + 10 inputs it is 1% of the multiplications.)

    Args:
        estimator: the other one; default Enumerated().

    Raises:
        TypeError: it is no estimator; when called: the posterior has no discrete or no continuous part, or the discrete
            part is not of the other one's kind.

    Example:
        >>> latent = ProductLatent([CategoricalLatent(3), GaussianLatent(2)])
        >>> q = latent.posterior(tf.zeros((2, latent.encoder_units)))  # 2 images
        >>> estimators.Hybrid()(q, lambda z: tf.reduce_sum(z[..., :3], axis=-1)).value.numpy().round(6).tolist()
        [1.0, 1.0]
    """

    default = Enumerated

    def __call__(self, posterior, log_likelihood, seed=None):
        discrete, continuous, join, _ = posteriors.of(posterior).split("Hybrid")
        of_continuous, of_discrete = tfp.random.split_seed(tfp.random.sanitize_seed(seed))
        w = continuous.reparameterized("Hybrid").sample(seed=of_continuous)[None]
        return self.estimator(discrete, lambda z: log_likelihood(join(z, w)), of_discrete)

    def check(self, posterior):
        self.estimator.check(posteriors.of(posterior).split("Hybrid").discrete)

    def decoder_evaluations(self, latent) -> int:
        return self.estimator.decoder_evaluations(latent.discrete())
