"""What an exported model does with input that it was not made for: it refuses it, or clips what it cannot refuse.

A SavedModel has assertions, which TensorFlow Serving answers with INVALID_ARGUMENT and their text; a graph in C fails
with the same. LiteRT has no assertions: there every value is moved to the nearest that is accepted, and NaN becomes 0
first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# For the card.
SAVED_MODEL = (
    "The SavedModel refuses NaN, values outside the range, and arrays of another shape, with an error that says so "
    "(INVALID_ARGUMENT on a server)."
)
LITERT = (
    "LiteRT has no assertions: its files take 0 for NaN and the nearest value of the range for one outside, without a "
    "sign."
)


class Input(NamedTuple):
    """One input of a signature: its name, type and shape, and the least and greatest values that are accepted.

    `accepted` says the same in words; None if every value of the type is.
    """

    spec: tf.TensorSpec
    low: float | None = None
    high: float | None = None
    accepted: str | None = None


def refuse(function: Callable, *inputs: Input) -> Callable:
    """The function with assertions before it."""

    def refusing(*values):
        values = [_asserted(value, given) for value, given in zip(values, inputs, strict=True)]
        rows = [tf.shape(value)[0] for value in values]
        same = [
            tf.debugging.Assert(
                tf.equal(rows[0], count),
                [
                    tf.strings.format(
                        f"{inputs[0].spec.name} have {{}} rows and {given.spec.name} {{}}", (rows[0], count)
                    )
                ],
            )
            for count, given in zip(rows[1:], inputs[1:], strict=True)
        ]
        with tf.control_dependencies(same):
            return even_of_no_rows(function, values)

    return refusing


def _asserted(value: tf.Tensor, given: Input) -> tf.Tensor:
    # TensorFlow removes checks that must hold by the shape that the signature promises. A server feeds what a client
    # sent: forget the promise.
    value = tf.raw_ops.PlaceholderWithDefault(input=value, shape=tf.TensorShape(None), name=given.spec.name)
    value = tf.ensure_shape(value, given.spec.shape)
    if given.accepted is None:
        return value
    least, greatest = tf.reduce_min(value), tf.reduce_max(value)  # both NaN if any value is
    text = f"{given.spec.name} have values from {{}} to {{}}; they must be {given.accepted}"
    inside = tf.logical_and(least >= given.low, greatest <= given.high)
    with tf.control_dependencies([tf.debugging.Assert(inside, [tf.strings.format(text, (least, greatest))])]):
        return tf.identity(value)


def clip(function: Callable, *inputs: Input) -> Callable:
    """The function on clipped values, from operations that LiteRT has."""

    def clipping(*values):
        return even_of_no_rows(function, [_clipped(value, given) for value, given in zip(values, inputs, strict=True)])

    return clipping


def _clipped(value: tf.Tensor, given: Input) -> tf.Tensor:
    if given.accepted is None:
        return value
    zeros = tf.zeros_like(value)
    if value.dtype.is_floating:
        value = tf.where(tf.math.is_nan(value), zeros, value)
    # Not tf.maximum, of which the converter makes a RELU of 0: that would round images to 8 bits in an int8 file.
    low = zeros + given.low
    return tf.where(value < low, low, tf.minimum(value, given.high))


def even_of_no_rows(function: Callable, values: list[tf.Tensor]) -> dict[str, tf.Tensor]:
    """The function's outputs, without rows if the values have none.

    It is given a row of zeros then: the convolutions of LiteRT fail on an empty batch, and those of oneDNN too.
    """
    if any(value.dtype == tf.string for value in values):  # no bytes mean a row of zeros
        return function(*values)
    rows = tf.shape(values[0])[0]
    missing = tf.maximum(1 - rows, 0)
    values = [
        tf.concat([value, tf.zeros(tf.concat([[missing], value.shape[1:]], 0), value.dtype)], 0) for value in values
    ]
    return {name: output[:rows] for name, output in function(*values).items()}
