"""How the gradient of E_q(z|x)[ln p(x|z)] is estimated: one small class each, one method.

Every estimator is called as `estimator(posterior, log_likelihood, seed)`:
    posterior        q(z|x), a distribution with batch shape (batch,) and event shape (units,)
    log_likelihood   a function from z (samples, batch, units) to ln p(x|z) (samples, batch), in nats; z of shape
                     (samples, 1, units) is decoded once and compared with every image
    seed             a stateless seed, int32 (2,); None draws a fresh one
and returns an `Estimate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks, latents

tfd = tfp.distributions

LogLikelihood = Callable[[tf.Tensor], tf.Tensor]


class Estimate(NamedTuple):
    """An estimate of E_q[ln p(x|z)] and of its gradient, per image.

    value       (batch,) float32, nats: the estimate of the expectation
    surrogate   (batch,) float32: its gradient, by automatic differentiation, is the estimate of the gradient
    """

    value: tf.Tensor
    surrogate: tf.Tensor


class Estimator:
    """What the estimators share: serialisation from the arguments of `__init__`."""

    def __call__(self, posterior: tfd.Distribution, log_likelihood: LogLikelihood, seed=None) -> Estimate:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(posterior, log_likelihood, seed).")

    def check(self, posterior: tfd.Distribution) -> None:
        """Raises TypeError or ValueError where the estimator does not take posteriors of this kind."""

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


@keras.saving.register_keras_serializable("tf_isvae")
class ImportanceSampling(Estimator):
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
    """

    def __init__(self, num_samples: int = 1, proposal: Callable[[tfd.Distribution], tfd.Distribution] | None = None):
        self.num_samples = checks.integer("ImportanceSampling: num_samples", num_samples)
        if proposal is not None and not callable(proposal):
            raise TypeError(f"proposal is {proposal!r}; it must be a function from the posterior to a distribution.")
        self.proposal = proposal

    def __call__(self, posterior: tfd.Distribution, log_likelihood: LogLikelihood, seed=None) -> Estimate:
        # The gradient of the surrogate must not reach q_I, whatever the proposal does: eq. 14 takes it as fixed.
        q_i = latents.stop_gradient(posterior if self.proposal is None else self.proposal(posterior))
        z = tf.stop_gradient(q_i.sample(self.num_samples, seed=seed))
        weights = tf.exp(posterior.log_prob(z) - q_i.log_prob(z))
        estimate = tf.reduce_mean(weights * log_likelihood(z), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def get_config(self) -> dict:
        return {"num_samples": self.num_samples, "proposal": keras.saving.serialize_keras_object(self.proposal)}

    @classmethod
    def from_config(cls, config: dict) -> ImportanceSampling:
        return cls(**{**config, "proposal": keras.saving.deserialize_keras_object(config["proposal"])})


def _leave_one_out(values: tf.Tensor) -> tf.Tensor:
    """Each value less the mean of the others, along the first axis: (samples, batch) to (samples, batch)."""
    samples = values.shape[0]
    return (values - tf.reduce_mean(values, axis=0)) * (samples / (samples - 1))


def _need_bernoulli(estimator: str, posterior: tfd.Distribution) -> tf.Tensor:
    logits = latents.bernoulli_logits(posterior)
    if logits is None:
        raise TypeError(
            f"{estimator} needs a BernoulliLatent; the posterior is {type(posterior).__name__}. "
            "LeaveOneOut takes any latent, Enumerated one Categorical."
        )
    return logits


@keras.saving.register_keras_serializable("tf_isvae")
class LeaveOneOut(Estimator):
    """The score-function estimator with the mean of the other samples as baseline. Unbiased.

        1/M sum_m  (f(z_m) - 1/(M-1) sum_{j != m} f(z_j)) d log q(z_m|x),   f = ln p(x|.),   z_m ~ q(z|x)

    The paper's eq. 20 and 26 with a control variate. Any latent. M decoder evaluations.
    Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019; Mnih & Rezende, VIMCO, 2016.
    """

    def __init__(self, num_samples: int = 2):
        self.num_samples = checks.integer("LeaveOneOut: num_samples", num_samples, minimum=2)

    def __call__(self, posterior, log_likelihood, seed=None):
        z = tf.stop_gradient(posterior.sample(self.num_samples, seed=seed))
        f = log_likelihood(z)
        value = tf.reduce_mean(f, axis=0)
        weight = tf.stop_gradient(_leave_one_out(f))
        logits = latents.bernoulli_logits(posterior)
        if logits is None:
            return Estimate(value=value, surrogate=value + tf.reduce_mean(weight * posterior.log_prob(z), axis=0))
        # d log q / d eta = z - q (eq. 20), without the density of every sample.
        gradient = tf.reduce_mean(weight[..., None] * (z - tf.stop_gradient(tf.sigmoid(logits))), axis=0)
        return Estimate(value=value, surrogate=value + tf.reduce_sum(gradient * logits, axis=-1))

    def get_config(self):
        return {"num_samples": self.num_samples}


@keras.saving.register_keras_serializable("tf_isvae")
class ARMS(Estimator):
    """Several mutually antithetic samples. Bernoulli only, unbiased.

    The M samples of a bit exclude each other as far as their marginal q allows, so f(z_m) less the mean of all tells
    more than between independent samples. With rho the correlation of two samples of the bit,

        1/(M-1) sum_m (f(z_m) - 1/M sum_j f(z_j)) (z_m - q) / (1 - rho)

    M uniform numbers from a Dirichlet(1, ..., 1), d_1 + ... + d_M = 1, make the samples: with r = min(q, 1 - q), the
    rarer value is taken where d_m > 1 - r^(1/(M-1)), which has probability r, and for two samples at once
    (2 r^(1/(M-1)) - 1)_+^(M-1), from which rho follows. For M = 2 it is DisARM. M decoder evaluations.
    Dimitriev & Zhou, "ARMS: Antithetic-REINFORCE-Multi-Sample gradient for binary variables", 2021.
    """

    def __init__(self, num_samples: int = 4):
        self.num_samples = checks.integer("ARMS: num_samples", num_samples, minimum=2)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits = _need_bernoulli(type(self).__name__, posterior)
        z, weight = self._samples(tf.stop_gradient(logits), seed)
        f = log_likelihood(z)
        mean = tf.stop_gradient(tf.sigmoid(logits))
        gradient = tf.reduce_mean(tf.stop_gradient(_leave_one_out(f))[..., None] * (z - mean), axis=0) * weight
        score = tf.reduce_sum(gradient * logits, axis=-1)
        value = tf.reduce_mean(f, axis=0)
        return Estimate(value=value, surrogate=value + score)

    def check(self, posterior):
        _need_bernoulli("ARMS", posterior)

    def _samples(self, logits: tf.Tensor, seed) -> tuple[tf.Tensor, tf.Tensor]:
        """z (M, batch, units), and 1 / (1 - rho) (batch, units)."""
        others = self.num_samples - 1
        shape = tf.concat([[self.num_samples], tf.shape(logits)], 0)
        seed = tfp.random.sanitize_seed(seed)
        exponentials = -tf.math.log(tf.random.stateless_uniform(shape, seed, minval=1e-30))
        dirichlet = exponentials / tf.reduce_sum(exponentials, axis=0)
        # From the logits, so that r keeps its precision where q is near 0 or 1.
        log_rare = -tf.nn.softplus(tf.abs(logits))
        root = tf.exp(log_rare / others)
        rare = tf.cast(dirichlet > 1 - root, tf.float32)
        z = tf.where(logits < 0, rare, 1 - rare)
        r, common = tf.exp(log_rare), tf.sigmoid(tf.abs(logits))
        # 1 - rho = (r - both) / (r (1 - r)), both the probability that two samples take the rarer value.
        both_over_r = tf.nn.relu(2 * root - 1) ** others / tf.maximum(r, 1e-30)
        return z, common / (1 - both_over_r)

    def get_config(self):
        return {"num_samples": self.num_samples}


@keras.saving.register_keras_serializable("tf_isvae")
class DisARM(Estimator):
    """Antithetic pairs: z from the uniform numbers u, z~ from 1 - u. Bernoulli only, unbiased.

        1/2 (f(z) - f(z~)) (z - z~) sigmoid(|eta|),   averaged over the pairs

    Two decoder evaluations a pair. For more than two evaluations, see ARMS.
    Dong, Mnih & Tucker, "DisARM: an antithetic gradient estimator for binary latent variables", 2020.
    """

    def __init__(self, num_pairs: int = 1):
        self.num_pairs = checks.integer("DisARM: num_pairs", num_pairs)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits = _need_bernoulli("DisARM", posterior)
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
        _need_bernoulli("DisARM", posterior)

    def get_config(self):
        return {"num_pairs": self.num_pairs}


@keras.saving.register_keras_serializable("tf_isvae")
class Enumerated(Estimator):
    """The exact expectation, a sum over all codes. No variance.

        sum_z q(z|x) ln p(x|z)

    Every code is decoded once for the whole batch and compared with every image by one matrix product, so for one
    Categorical of c categories it costs c decoder evaluations a batch: less than one sample an image where c < batch.
    Raises ValueError for more than 4,096 codes, TypeError for a Gaussian latent.
    """

    MAX_CODES = 4096

    def __call__(self, posterior, log_likelihood, seed=None):
        z = self._all_z(posterior)
        f = log_likelihood(z[:, None])
        expectation = tf.reduce_sum(tf.exp(self._log_prob_of_each(posterior, z)) * f, axis=0)
        return Estimate(value=expectation, surrogate=expectation)

    def check(self, posterior):
        self._all_z(posterior)

    def _log_prob_of_each(self, posterior, z: tf.Tensor) -> tf.Tensor:
        """ln q(z|x) of every z (codes, units) for every image: (codes, batch).

        It is linear in z, so that one matrix product has them all; the distribution's own `log_prob` would go through
        a tensor (codes, batch, units).
        """
        bits, categories = latents.bernoulli_logits(posterior), latents.categorical_logits(posterior)
        if bits is not None:
            # Two products of numbers below 0, rather than eta^T z - A(eta), which cancels where q is near 0 or 1.
            log_ones, log_zeros = tf.math.log_sigmoid(bits), tf.math.log_sigmoid(-bits)
            return tf.matmul(z, log_ones, transpose_b=True) + tf.matmul(1 - z, log_zeros, transpose_b=True)
        log_softmax = tf.reshape(tf.nn.log_softmax(categories), (-1, z.shape[-1]))
        if categories.shape[-2] == 1:  # z is the identity: nothing to multiply, nor to round
            return tf.transpose(log_softmax)
        return tf.matmul(z, log_softmax, transpose_b=True)

    def _all_z(self, posterior) -> tf.Tensor:
        """Every z once: (codes, units)."""
        bits, categories = latents.bernoulli_logits(posterior), latents.categorical_logits(posterior)
        if bits is not None:
            values, width = 2, bits.shape[-1]
        elif categories is not None:
            width, values = categories.shape[-2:]
        else:
            raise TypeError(f"Enumerated needs a discrete latent; the posterior is {type(posterior).__name__}.")
        if values**width > self.MAX_CODES:
            raise ValueError(
                f"Enumerated would have to decode {values**width} codes, {values} values for each of {width} "
                f"variables; it takes at most {self.MAX_CODES}: use LeaveOneOut, or DisARM for bits."
            )
        codes = latents.enumerate_codes(values, width)
        if bits is not None:
            return tf.constant(codes, tf.float32)
        return tf.constant(np.eye(values, dtype=np.float32)[codes].reshape(len(codes), width * values))


@keras.saving.register_keras_serializable("tf_isvae")
class Reparameterized(Estimator):
    """Backpropagation through the samples (paper, section 2, eq. 6 to 10). Gaussian latents only, unbiased.

        1/M sum_m ln p(x|z_m),   z_m = mean + scale * epsilon_m

    M decoder evaluations. Kingma & Welling, "Auto-encoding variational Bayes", 2013.
    """

    def __init__(self, num_samples: int = 1):
        self.num_samples = checks.integer("Reparameterized: num_samples", num_samples)

    def __call__(self, posterior, log_likelihood, seed=None):
        self.check(posterior)
        estimate = tf.reduce_mean(log_likelihood(posterior.sample(self.num_samples, seed=seed)), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def check(self, posterior):
        if posterior.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise TypeError(
                f"Reparameterized needs a GaussianLatent; the posterior is {type(posterior).__name__}, "
                "whose discrete samples cannot be reparameterised."
            )

    def get_config(self):
        return {"num_samples": self.num_samples}


def _relaxation(estimator: str, posterior: tfd.Distribution) -> tuple[tf.Tensor, Callable]:
    """Logits of a discrete posterior as (batch, variables, categories), and the way back to z (batch, units).

    A bit is a variable of two categories with logits (0, eta), of which z has the second.
    """
    bits, categories = latents.bernoulli_logits(posterior), latents.categorical_logits(posterior)
    if bits is not None:
        return tf.stack([tf.zeros_like(bits), bits], axis=-1), lambda p: p[..., 1]
    if categories is not None:
        units = int(np.prod(categories.shape[-2:]))
        return categories, lambda p: tf.reshape(p, tf.concat([tf.shape(p)[:-2], [units]], 0))
    raise TypeError(
        f"{estimator} needs a Bernoulli or Categorical latent; the posterior is {type(posterior).__name__}."
    )


def _with_gradient_of(z: tf.Tensor, proxy: tf.Tensor) -> tf.Tensor:
    """z, with the gradient of `proxy`."""
    return tf.stop_gradient(z - proxy) + proxy


@keras.saving.register_keras_serializable("tf_isvae")
class StraightThrough(Estimator):
    """BIASED. Backpropagation as if the sample were its mean: dz/d eta := d mean / d eta. For comparison.

    The paper compares itself with it by way of VQ-VAE. Bernoulli and Categorical. M decoder evaluations.
    Bengio, Leonard & Courville, "Estimating or propagating gradients through stochastic neurons", 2013.
    """

    def __init__(self, num_samples: int = 1):
        self.num_samples = checks.integer("StraightThrough: num_samples", num_samples)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits, to_z = _relaxation("StraightThrough", posterior)
        z = posterior.sample(self.num_samples, seed=seed)
        estimate = tf.reduce_mean(log_likelihood(_with_gradient_of(z, to_z(tf.nn.softmax(logits)))), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def check(self, posterior):
        _relaxation("StraightThrough", posterior)

    def get_config(self):
        return {"num_samples": self.num_samples}


@keras.saving.register_keras_serializable("tf_isvae")
class ReinMax(Estimator):
    """BIASED. Straight-through to second order (Heun's method). For comparison.

    With p = softmax(eta) and p_z = (p + z) / 2, the gradient is 2 dz_1 - 1/2 dz_0, where dz_0 backpropagates through
    the softmax at p and dz_1 through the softmax at p_z. Bernoulli and Categorical. M decoder evaluations.
    Liu et al., "Bridging discrete and backpropagation: straight-through and beyond", 2023.
    """

    def __init__(self, num_samples: int = 1):
        self.num_samples = checks.integer("ReinMax: num_samples", num_samples)

    def __call__(self, posterior, log_likelihood, seed=None):
        logits, to_z = _relaxation("ReinMax", posterior)
        z = tf.stop_gradient(posterior.sample(self.num_samples, seed=seed))
        if latents.bernoulli_logits(posterior) is not None:
            one_hots = tf.stack([1 - z, z], axis=-1)
        else:
            one_hots = tf.reshape(z, tf.concat([tf.shape(z)[:-1], logits.shape[-2:]], 0))
        p = tf.nn.softmax(logits)
        # Logits whose softmax is (p + z) / 2, with the gradient of eta.
        middle = _with_gradient_of(tf.math.log((p + one_hots) / 2 + 1e-30), logits)
        proxy = 2 * tf.nn.softmax(middle) - 0.5 * p
        estimate = tf.reduce_mean(log_likelihood(_with_gradient_of(z, to_z(proxy))), axis=0)
        return Estimate(value=estimate, surrogate=estimate)

    def check(self, posterior):
        _relaxation("ReinMax", posterior)

    def get_config(self):
        return {"num_samples": self.num_samples}


@keras.saving.register_keras_serializable("tf_isvae")
class Linearized(Estimator):
    """Another estimator, of f = ln p(x|.) less its tangent at the mean of q. Unbiased where that one is.

        f(z) - g . (z - mean),   g = df/dz at z = mean;   g . d mean is given back in closed form

    What the other estimator has to find by sampling is only how f bends. Bernoulli and Categorical. One decoder
    evaluation more than the other estimator, with its backpropagation to z.
    Gu, Levine, Sutskever & Mnih, "MuProp: unbiased backpropagation for stochastic neural networks", 2016, there with
    independent samples; with antithetic ones (DisARM, ARMS) the two reductions multiply.
    """

    def __init__(self, estimator: Estimator | None = None):
        self.estimator = DisARM() if estimator is None else estimator
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Linearized: estimator is {estimator!r}; it must be one of tf_isvae.estimators.")

    def __call__(self, posterior, log_likelihood, seed=None):
        logits, to_z = _relaxation("Linearized", posterior)
        mean = to_z(tf.nn.softmax(logits))
        at = tf.stop_gradient(mean)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            f = log_likelihood(at[None])
        g = tf.stop_gradient(tape.gradient(f, at))
        rest = self.estimator(posterior, lambda z: log_likelihood(z) - tf.reduce_sum(g * (z - at), axis=-1), seed)
        # In the mean over z the tangent adds nothing to the value.
        return Estimate(value=rest.value, surrogate=rest.surrogate + tf.reduce_sum(g * mean, axis=-1))

    def check(self, posterior):
        _relaxation("Linearized", posterior)
        self.estimator.check(posterior)

    def get_config(self):
        return {"estimator": keras.saving.serialize_keras_object(self.estimator)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["estimator"]))
