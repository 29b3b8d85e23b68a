"""Estimators that need only the values of f = ln p(x|.), so that z may be discrete: all unbiased."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks, posteriors
from tf_isvae.estimators.base import Estimate, Estimator, LogLikelihood, Sampling

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tf_isvae")
class ImportanceSampling(Sampling):
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
        if self.proposal is None:  # eq. 20 and 26, without the weights
            return _by_score(posterior, log_likelihood, self.num_samples, seed, weights=lambda f: f)
        # The gradient of the surrogate must not reach q_I, whatever the proposal does: eq. 14 takes it as fixed.
        q_i = posteriors.of(self.proposal(posterior)).stop_gradient()
        z = tf.stop_gradient(q_i.sample(self.num_samples, seed=seed))
        weights = tf.exp(posterior.log_prob(z) - q_i.log_prob(z))
        estimate = tf.reduce_mean(weights * log_likelihood(z), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def get_config(self) -> dict:
        return {**super().get_config(), "proposal": keras.saving.serialize_keras_object(self.proposal)}

    @classmethod
    def from_config(cls, config: dict) -> ImportanceSampling:
        return cls(**{**config, "proposal": keras.saving.deserialize_keras_object(config["proposal"])})


def _by_score(posterior, log_likelihood: LogLikelihood, samples: int, seed, weights: Callable) -> Estimate:
    """The mean of f at samples z_m of q, with the gradient mean_m w_m d ln q(z_m) beside its own, w = weights(f)."""
    posterior = posteriors.of(posterior)
    z = tf.stop_gradient(posterior.sample(samples, seed=seed))
    f = log_likelihood(z)
    value = tf.reduce_mean(f, axis=0)
    return Estimate(value=value, surrogate=value + posterior.score_surrogate(z, tf.stop_gradient(weights(f))))


def _leave_one_out(values: tf.Tensor) -> tf.Tensor:
    """Each value less the mean of the others, along the first axis: (samples, batch) to (samples, batch)."""
    samples = values.shape[0]
    return (values - tf.reduce_mean(values, axis=0)) * (samples / (samples - 1))


@keras.saving.register_keras_serializable("tf_isvae")
class LeaveOneOut(Sampling):
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
        return _by_score(posterior, log_likelihood, self.num_samples, seed, weights=_leave_one_out)


@keras.saving.register_keras_serializable("tf_isvae")
class ARMS(Sampling):
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
        weight = tf.maximum(q, 1 - q)  # sigmoid(|eta|)
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
