"""How the gradient of E_q(z|x)[ln p(x|z)] is estimated: one small class each, one method.

Every estimator is called as `estimator(posterior, log_likelihood, seed)`:

    posterior        q(z|x), a distribution with batch shape (batch,) and event shape (units,)
    log_likelihood   a function from z (samples, batch, units) to ln p(x|z) (samples, batch), in nats; z of shape
                     (samples, 1, units) is decoded once and compared with every image
    seed             a stateless seed, int32 (2,); None draws a fresh one

and returns an `Estimate`. What it needs of the posterior beside samples, it asks `tf_isvae.posteriors`.

An estimator can be named by a text, "ARMS:4", "Linearized+DisARM:1" or "Hybrid+Enumerated": `get` makes it, `name_of`
gives the text.

Inside: `base` says what an estimator is, `by_values` and `by_slopes` are the estimators, and `names` is the parser.
"""

from tf_isvae.estimators.base import Estimate, Estimator, LogLikelihood
from tf_isvae.estimators.by_slopes import Hybrid, Linearized, ReinMax, Reparameterized, StraightThrough
from tf_isvae.estimators.by_values import ARMS, DisARM, Enumerated, ImportanceSampling, LeaveOneOut
from tf_isvae.estimators.names import check, check_estimate, get, name_of, names

__all__ = [
    "ARMS",
    "DisARM",
    "Enumerated",
    "Estimate",
    "Estimator",
    "Hybrid",
    "ImportanceSampling",
    "LeaveOneOut",
    "Linearized",
    "LogLikelihood",
    "ReinMax",
    "Reparameterized",
    "StraightThrough",
    "check",
    "check_estimate",
    "get",
    "name_of",
    "names",
]
