"""Estimators by name: "ARMS:4", "Linearized+DisARM:1"."""

from __future__ import annotations

import re
from collections.abc import Callable

import tensorflow as tf

from tf_isvae.estimators.base import Estimate, Estimator
from tf_isvae.estimators.by_slopes import Hybrid, Linearized, ReinMax, Reparameterized, StraightThrough
from tf_isvae.estimators.by_values import ARMS, DisARM, Enumerated, ImportanceSampling, LeaveOneOut

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
        Hybrid,
    )
}
_OF_ANOTHER = {f"{cls.__name__}+": cls for cls in (Linearized, Hybrid)}


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
        estimator: NAME or NAME:COUNT, with the number of samples (of pairs for DisARM); ReinMax:COUNT:TEMPERATURE;
            Linearized+NAME:COUNT is Linearized of that one, and Hybrid+NAME:COUNT Hybrid of it. Or an object that can
            be called as an estimator.

    Raises:
        ValueError: a text that names none, or a count that it does not take. TypeError: something else.

    Example:
        >>> estimators.get("ARMS:4"), estimators.get("DisARM"), estimators.get("Linearized+DisARM:1")
        (ARMS(num_samples=4), DisARM(num_pairs=1), Linearized(DisARM(num_pairs=1)))
        >>> estimators.get("ReinMax:1:1.3")
        ReinMax(num_samples=1, temperature=1.3)
    """
    if not isinstance(estimator, str):
        return _checked(estimator)
    for prefix, cls in _OF_ANOTHER.items():
        if estimator.startswith(prefix):
            return cls(get(estimator.removeprefix(prefix)))
    found = re.fullmatch(r"(\w+)(?::([0-9]+)(?::([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?))?)?", estimator)
    cls = _BY_NAME.get(found[1]) if found else None
    if cls is None:
        raise ValueError(
            f"estimator is {estimator!r}; it must be NAME, NAME:COUNT, ReinMax:COUNT:TEMPERATURE, "
            f"Linearized+NAME:COUNT or Hybrid+NAME:COUNT, with NAME one of {', '.join(_BY_NAME)}."
        )
    name, count, real = found.groups()
    if count and cls.count is None:
        raise ValueError(f"estimator is {estimator!r}; it must be {name} alone, which takes no count.")
    if real and cls.real is None:
        raise ValueError(f"estimator is {estimator!r}; it must be {name}:COUNT, which takes no second number.")
    arguments = {cls.count: int(count)} if count else {}
    return cls(**arguments, **({cls.real: float(real)} if real else {}))


def name_of(estimator: Estimator) -> str:
    """The text from which `get` makes an equal estimator.

    Raises ValueError if there is none: an estimator of one's own, or ImportanceSampling with a proposal.

    Example:
        >>> [estimators.name_of(estimator) for estimator in (estimators.ARMS(4), estimators.Linearized())]
        ['ARMS:4', 'Linearized+DisARM:1']
    """
    cls = type(estimator)
    if cls in _OF_ANOTHER.values():
        return f"{cls.__name__}+{name_of(estimator.estimator)}"
    if _BY_NAME.get(cls.__name__) is cls:
        text = cls.__name__ + (f":{getattr(estimator, cls.count)}" if cls.count else "")
        if cls.real and getattr(estimator, cls.real) != getattr(cls(), cls.real):
            text += f":{getattr(estimator, cls.real)}"
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
