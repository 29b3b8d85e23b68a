"""What every estimator is: what it is called with, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks

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
    # The argument that it gives behind a second colon, a number that need not be whole, "ReinMax:1:1.3".
    real: str | None = None

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


class Sampling(Estimator):
    """One that takes `num_samples`, one decoder evaluation each."""

    count = "num_samples"
    fewest = 1

    def __init__(self, num_samples: int = 1):
        self.num_samples = checks.integer(f"{type(self).__name__}: num_samples", num_samples, self.fewest)

    def decoder_evaluations(self, latent) -> int:
        return self.num_samples

    def get_config(self):
        return {"num_samples": self.num_samples}
