"""Checks of numbers, with the one sentence that every module says about a wrong one."""

from __future__ import annotations

import numbers
import sys


def integer(name: str, value: int, minimum: int | None = 1) -> int:
    """`value` as an int; ValueError where it is no integer of at least `minimum` (None: of any size).

    NumPy's integers are, a bool is not.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or (minimum is not None and value < minimum):
        least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name} is {value!r}; it must be an integer{least}.")
    return int(value)


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError where it is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}; it must be a positive number.")
    return float(value)
