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
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import latents

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

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


def _check_count(estimator: str, argument: str, value: int, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{estimator}: {argument} is {value!r}; it must be an integer of at least {minimum}.")
    return value


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
        self.num_samples = _check_count("ImportanceSampling", "num_samples", num_samples)
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
