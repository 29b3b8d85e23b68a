"""Checks of arguments, each in one place and with one grammar.

    <name> is <value>; it must be <what is accepted>[: what to do].

A wrong value, also one of a wrong type, is a ValueError. An object of a wrong kind, such as a data set in place of an
array, is a TypeError.
"""

from __future__ import annotations

import numbers
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy and TensorFlow are imported when images are checked; the command line does without
    import numpy as np

# Sums over all codes are exact; they are taken if there are at most so many.
MAX_ENUMERATED_CODES = 4096


def integer(name: str, value: int, minimum: int | None = 1, below: int | None = None) -> int:
    """`value` as an int. Accepts NumPy's integers; does not accept a bool.

    Raises ValueError if it is not an integer of at least `minimum` (None: any) and less than `below` (None: any).
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or (minimum is not None and value < minimum) or (below is not None and value >= below):
        least = "" if minimum is None else f" of at least {minimum}"
        most = "" if below is None else f" less than {_power_of_two(below)}"
        raise ValueError(f"{name} is {value!r}; it must be an integer{least}{' and' * bool(least and most)}{most}.")
    return int(value)


def _power_of_two(value: int) -> str:
    """The value, as a power of two if it is a large one."""
    exponent = value.bit_length() - 1
    return f"2^{exponent}" if exponent >= 16 and value == 2**exponent else str(value)


def positive(name: str, value: float) -> float:
    """`value` as a float. Raises ValueError if it is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}; it must be a positive number.")
    return float(value)


def share(name: str, value: float, or_none: bool = False) -> float:
    """`value` as a float. Raises ValueError if it is not a number above 0 and below 1, nor 0 if `or_none`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not (0 < value < 1 or (or_none and value == 0)):
        none = ", or 0 for none" * or_none
        raise ValueError(f"{name} is {value!r}; it must be a share, above 0 and below 1, such as 0.1{none}.")
    return float(value)


def integer_or_pair(name: str, value) -> int | tuple[int, int]:
    """A positive integer, or a pair of them; text such as "32" or "24x4" is read as one.

    Raises ValueError if it is neither.
    """
    read = value
    if isinstance(value, str):
        parts = [int(part) if part.isascii() and part.isdecimal() else part for part in value.split("x")]
        read = parts[0] if len(parts) == 1 else parts
    many = list(read) if isinstance(read, (tuple, list)) else [read]
    is_pair = len(many) == 2
    try:
        sizes = tuple(integer(name, size) for size in many)
    except ValueError:
        sizes = ()
    if not sizes or (isinstance(read, (tuple, list)) and not is_pair):
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1, or two of them, such as 24x4.")
    return sizes if is_pair else sizes[0]


def image_size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """`value`, (H, W) or one integer for both, as (H, W).

    Raises ValueError if it is neither, or a side is less than 1 or not less than 2^31.
    """
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        height, width = (integer(name, side, 1, 2**31) for side in sides)
    except ValueError:
        raise ValueError(
            f"{name} is {value!r}; it must be (H, W), or one integer for both, of at least 1 and less than 2^31."
        ) from None
    return height, width


def one_of(name: str, value, accepted: Iterable):
    """`value` itself, NumPy's integers as int. Raises ValueError if it is none of `accepted`."""
    accepted = tuple(accepted)
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    value = int(value) if is_integer else value
    # The type too: True equals 1, and an array equals nothing or everything.
    if not any(type(value) is type(choice) and value == choice for choice in accepted):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, accepted))}.")
    return value


def flag(name: str, value: bool) -> bool:
    """`value` itself. Raises ValueError if it is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be True or False.")
    return value


def array(name: str, values, expected: str) -> np.ndarray:
    """`values` as an array. Raises ValueError if they are nested sequences of different lengths."""
    import numpy as np

    try:
        return np.asarray(values)
    except ValueError:
        kind = type(values).__name__
        raise ValueError(
            f"{name} come as a {kind} of parts of different lengths; they must be an array {expected}."
        ) from None


def images(name: str, values, image_shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Images as float32 (n, *image_shape), or of any (n, H, W, C) without that, with all values in [0, 1].

    Raises:
        TypeError: they are not numbers, or come as a data set.
        ValueError: a wrong shape, no images, NaN, or values outside [0, 1].
    """
    import numpy as np
    import tensorflow as tf

    expected = f"(n, {', '.join(map(str, image_shape or 'HWC'))})"
    if isinstance(values, tf.data.Dataset):
        raise TypeError(
            f"{name} come as a data set; they must be an array of shape {expected}, such as one of its batches."
        )
    values = array(name, values, expected)
    is_real = np.issubdtype(values.dtype, np.number) and not np.issubdtype(values.dtype, np.complexfloating)
    if not (is_real or values.dtype in (np.bool_, tf.bfloat16.as_numpy_dtype)):
        raise TypeError(f"{name} have dtype {values.dtype}; they must be numbers in [0, 1] of shape {expected}.")
    fits = values.ndim == 4 if image_shape is None else values.shape[1:] == tuple(image_shape)
    if not fits or not values.size:
        raise ValueError(
            f"{name} have shape {values.shape}; they must be {expected} with n of at least 1: "
            "reshape them, for example images[..., None] to add the channel of grey images."
        )
    values = values.astype(np.float32, copy=False)
    unit_interval(name, values)
    return values


def eager_images(name: str, given, image_shape: tuple[int, int, int]) -> None:
    """Checks what a model is called on as `images` does; what has no values yet, in a graph, is left to Keras."""
    import keras
    import tensorflow as tf

    if tf.is_tensor(given) and not hasattr(given, "numpy") or isinstance(given, keras.KerasTensor):
        return
    images(name, given, image_shape)


def unit_interval(name: str, values: np.ndarray) -> None:
    """Raises ValueError unless all of `values`, an array that is not empty, lie in [0, 1]."""
    import numpy as np

    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} hold NaN or infinite values; they must lie in [0, 1]: clean the data.")
    hint = "divide by 255" if low >= 0 and 2 < high <= 255 else "rescale them"
    raise ValueError(f"{name} have values from {low:.9g} to {high:.9g}; they must lie in [0, 1]: {hint}.")


def training_images(name: str, given, image_shape: tuple[int, int, int]) -> None:
    """Checks what `fit` or `evaluate` is given: an array whole, a data set by its first batch.

    Raises TypeError or ValueError as `images` does, or if there is no batch.
    """
    import numpy as np
    import tensorflow as tf

    if given is None or isinstance(given, (str, os.PathLike)):
        raise TypeError(
            f"{name} are {given!r}; they must be an array, or a data set of batches in [0, 1]: datasets.load(...)."
        )
    if isinstance(given, tf.data.Dataset):
        given = next(iter(given.take(1)), None)
        if given is None:
            raise ValueError(f"{name} come as a data set without any batch; it must have at least 1.")
    if isinstance(given, (tuple, list)):
        is_pair = len(given) and not isinstance(given[0], (tuple, list, int, float))  # (images, labels)
        given = given[0] if is_pair else array(name, given, "(n, H, W, C)")
    if isinstance(given, dict):
        raise TypeError(
            f"{name} come as a dict of {', '.join(map(str, given))}; they must be images, or a data set of them or of "
            "pairs (images, labels): map(lambda example: example['image']) for one from TFDS."
        )
    if isinstance(given, (np.ndarray, tf.Tensor)):
        images(name, given, image_shape)


def left_out(name: str, reason: str, **arguments) -> None:
    """Raises ValueError if one of the arguments is given."""
    for argument, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: {argument} is {value!r}; it must be left out: {reason}.")


_CLIPPING = "Keras would clip each replica's part of the gradient, not their sum"
# Options of an optimizer that Keras applies within each replica, and why they do not work there.
_NOT_WITH_REPLICAS = {
    "gradient_accumulation_steps": "Keras cannot add up the replicas' gradients within it, use larger batches",
    "clipnorm": _CLIPPING,
    "global_clipnorm": _CLIPPING,
    "clipvalue": _CLIPPING,
}


def optimizer(given, replicas: int) -> None:
    """Raises ValueError if a Keras optimizer has an option that fails, or is wrong, with several replicas."""
    given = getattr(given, "inner_optimizer", given)  # of a LossScaleOptimizer
    for name, reason in _NOT_WITH_REPLICAS.items() if replicas > 1 else ():
        value = getattr(given, name, None)
        if value is not None:
            raise ValueError(f"the optimizer's {name} is {value}; it must be None with {replicas} replicas: {reason}.")
