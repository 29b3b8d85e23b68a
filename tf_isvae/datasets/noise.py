"""Random numbers that depend on a seed, a purpose and a number alone: seeds of orders, and the draws of `binarize`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# One stream of random numbers per purpose, so that the noise of `binarize` tells nothing of the order.
ORDER, NOISE, HELD_OUT = 7001, 7002, 7003


def fold(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """The seed, int64 (2,), for one purpose in the epoch or batch of that number."""
    root = tf.constant([seed, purpose], tf.int64)
    return tf.random.experimental.stateless_fold_in(root, tf.cast(number, tf.int64))


def bounds(count, shard: tuple[int, int]) -> tuple:
    """The first row, and the one after the last, of part i of n of so many rows."""
    i, n = shard
    return count * i // n, count * (i + 1) // n


def dynamic(images: tf.Tensor, seed: tf.Tensor, count: tf.Tensor, shard: tuple[int, int]) -> tf.Tensor:
    """Bernoulli draws with mean `images`, float32 in [0, 1], which are part `shard` of a batch of `count` images."""
    # Making noise is most of the cost, so each 64 random bits serve four pixels, and are drawn as one number, which
    # takes half the time of two. 16 bits give every mean to within 2^-16, and give 0 and 1 exactly.
    shape = tf.concat([[tf.cast(count, tf.int32)], tf.shape(images)[1:]], 0)
    size = tf.reduce_prod(shape)
    bits = tf.random.stateless_uniform([(size + 3) // 4], seed, minval=None, maxval=None, dtype=tf.int64)
    noise = tf.reshape(tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[:size], shape)
    begin, end = bounds(shape[0], shard)
    return tf.cast(tf.cast(noise[begin:end], tf.float32) < images * 65536, tf.float32)


def static(images: np.ndarray, begin: int, seed: int) -> np.ndarray:
    """Bernoulli draws, uint8 0 and 255, for images whose indices in the source are begin, begin + 1, ...

    Pixel k of the source, counted through all its images, is drawn with value k of one stream of random numbers, so
    that the draw of an image does not depend on which others are drawn before it or with it.

    Args:
      images: (n, H, W, C), uint8 in 0..255 or float32 in [0, 1].
      begin: the index of the first.
      seed: the seed of `load`.
    """
    first = begin * int(np.prod(images.shape[1:]))
    bits = np.random.PCG64([NOISE, seed])
    bits.advance(first // 2)  # each step of PCG64 makes 64 bits, and each float32 takes 32
    values = np.random.Generator(bits).random(first % 2 + images.size, np.float32)[first % 2 :]
    means = images / np.float32(255) if images.dtype == np.uint8 else images
    return np.uint8(255) * (values.reshape(images.shape) < means)


def static_in_any_order(images: tf.Tensor, index: tf.Tensor, seed: int) -> tf.Tensor:
    """As `static`, for uint8 images whose indices are `index`, int64 (n,)."""

    def draw(images, index):
        drawn = np.empty_like(images)
        for i, begin in enumerate(index):
            drawn[i] = static(images[i : i + 1], int(begin), seed)[0]
        return drawn

    return tf.ensure_shape(tf.numpy_function(draw, [images, index], images.dtype, stateful=False), images.shape)
