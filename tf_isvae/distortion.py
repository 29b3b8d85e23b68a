"""Images moved, scaled and turned a little, each in its own way."""

from __future__ import annotations

import tensorflow as tf

# Radians by which an image is turned at most, for an amount of 1: a corner moves about as far as by the scaling.
_TURN = 2.5


def distorted(images: tf.Tensor, amount: float, seed: tf.Tensor) -> tf.Tensor:
    """Images (batch, H, W, C), float32, each moved by a random share of its size, scaled and turned about its centre.

    Bilinear; what comes in from outside is the nearest pixel of the edge.

    Args:
        images: (batch, H, W, C).
        amount: moved by up to this share of height and width, scaled by up to this share, turned by up to 2.5 times as
            many radians (0.1: 14 degrees); all uniform and independent.
        seed: a stateless seed, int32 (2,).

    Example:
        >>> from tf_isvae.distortion import distorted
        >>> images = tf.constant(np.eye(5, dtype=np.float32)[None, ..., None])
        >>> bool(tf.reduce_all(distorted(images, 0.0, tf.constant([0, 0])) == images))
        True
    """
    height, width, channels = images.shape[1:]
    batch = tf.shape(images)[0]
    draws = tf.random.stateless_uniform((5, batch, 1, 1), seed, -amount, amount)
    down, right, tall, wide, turn = tf.unstack(draws)
    middle = (height - 1) / 2, (width - 1) / 2
    y = tf.reshape(tf.range(height, dtype=tf.float32) - middle[0], (1, height, 1))
    x = tf.reshape(tf.range(width, dtype=tf.float32) - middle[1], (1, 1, width))
    sine, cosine = tf.sin(_TURN * turn), tf.cos(_TURN * turn)
    # Where in the image each pixel of the result comes from.
    from_y = (1 + tall) * (cosine * y - sine * x) + down * height + middle[0]
    from_x = (1 + wide) * (sine * y + cosine * x) + right * width + middle[1]
    from_y = tf.clip_by_value(from_y, 0.0, float(height - 1))
    from_x = tf.clip_by_value(from_x, 0.0, float(width - 1))
    top, left = tf.floor(from_y), tf.floor(from_x)
    pixels = tf.reshape(images, (batch, height * width, channels))

    def at(y, x):
        row = tf.cast(tf.minimum(y, height - 1.0), tf.int32)
        place = row * width + tf.cast(tf.minimum(x, width - 1.0), tf.int32)
        return tf.reshape(
            tf.gather(pixels, tf.reshape(place, (batch, height * width)), batch_dims=1),
            (batch, height, width, channels),
        )

    below, beside = (from_y - top)[..., None], (from_x - left)[..., None]
    upper = at(top, left) + beside * (at(top, left + 1) - at(top, left))
    lower = at(top + 1, left) + beside * (at(top + 1, left + 1) - at(top + 1, left))
    return upper + below * (lower - upper)
