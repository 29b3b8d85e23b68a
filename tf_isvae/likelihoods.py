"""What p(x|z) is: from the decoder's output and the images to ln p(x|z), and to a mean image.

All sums run over the pixels and channels of an image and are in nats. Each likelihood has
    log_prob(output, images)           (..., H, W, C), (batch, H, W, C) -> (..., batch)
    log_prob_of_each(output, images)   (codes, H, W, C), (batch, H, W, C) -> (codes, batch), every pair
    mean(output)                       the mean image, in [0, 1]
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from tf_isvae import checks


def _flatten(images: tf.Tensor) -> tf.Tensor:
    """(..., H, W, C) to (..., pixels), float32."""
    images = tf.cast(images, tf.float32)
    pixels = math.prod(images.shape[-3:])
    return tf.reshape(images, tf.concat([tf.shape(images)[:-3], [pixels]], 0))


def _sum_to(gradient: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The sum of a gradient over the axes that broadcasting gave it: of the given shape."""
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=tf.shape(gradient))
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)


# A graph of its own: what tf.custom_gradient holds on to, it holds for ever, and here that is no user's graph.
@tf.function(autograph=False, reduce_retracing=True)
@tf.custom_gradient
def _bernoulli_log_prob(logits: tf.Tensor, images: tf.Tensor):
    """sum_i x_i l_i - ln(1 + e^l_i): (..., pixels), (batch, pixels) -> (..., batch).

    Its gradient x - sigmoid(l) is given, and ln(1 + e^l) written as max(l, 0) - ln sigmoid(|l|): both pass fewer times
    through memory than what TensorFlow derives, which at small batches took a tenth of a training step.
    """
    size = tf.abs(logits)
    softplus = 0.5 * (logits + size) - tf.math.log(tf.sigmoid(size))

    def gradient(upstream: tf.Tensor):
        upstream = upstream[..., None]
        to_logits, to_images = upstream * (images - tf.sigmoid(logits)), upstream * logits
        return _sum_to(to_logits, tf.shape(logits)), _sum_to(to_images, tf.shape(images))

    return tf.reduce_sum(images * logits - softplus, axis=-1), gradient


class Likelihood:
    """What the likelihoods share: serialisation from the arguments of `__init__`."""

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


@keras.saving.register_keras_serializable("tf_isvae")
class Bernoulli(Likelihood):
    """p(x|z) = prod_i x_hat_i^x_i (1 - x_hat_i)^(1 - x_i), x_hat = sigmoid(output): the paper's likelihood.

    With grey images x_i in [0, 1] it is the usual cross-entropy, not normalised over x.
    """

    def log_prob(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z) = sum_i x_i l_i - ln(1 + e^l_i), with l the decoder's output (logits)."""
        return _bernoulli_log_prob(_flatten(output), _flatten(images))

    def log_prob_of_each(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """The same for every pair: ln p is linear in x, so all pairs cost one matrix product."""
        logits, images = _flatten(output), _flatten(images)
        log_partition = tf.reduce_sum(tf.nn.softplus(logits), axis=-1, keepdims=True)
        return tf.matmul(logits, images, transpose_b=True) - log_partition

    def mean(self, output: tf.Tensor) -> tf.Tensor:
        """x_hat = sigmoid(output)."""
        return tf.sigmoid(tf.cast(output, tf.float32))


@keras.saving.register_keras_serializable("tf_isvae")
class Gaussian(Likelihood):
    """p(x|z) = N(x; output, scale^2 I) with a fixed standard deviation (the paper's section 1 has scale = 1).

    Raises ValueError where `scale` is not a positive number.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = checks.positive("Gaussian: scale", scale)

    def _log_prob(self, squared_distance: tf.Tensor, pixels: int) -> tf.Tensor:
        return -0.5 * squared_distance / self.scale**2 - pixels * math.log(self.scale * math.sqrt(2 * math.pi))

    def log_prob(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z) = -|x - output|^2 / (2 scale^2) - pixels ln(scale sqrt(2 pi))."""
        mean, images = _flatten(output), _flatten(images)
        return self._log_prob(tf.reduce_sum(tf.square(images - mean), axis=-1), images.shape[-1])

    def log_prob_of_each(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """The same for every pair, from |x - m|^2 = |x|^2 - 2 x.m + |m|^2: one matrix product."""
        mean, images = _flatten(output), _flatten(images)
        distance = (
            tf.reduce_sum(tf.square(mean), axis=-1)[:, None]
            - 2 * tf.matmul(mean, images, transpose_b=True)
            + tf.reduce_sum(tf.square(images), axis=-1)[None, :]
        )
        return self._log_prob(distance, images.shape[-1])

    def mean(self, output: tf.Tensor) -> tf.Tensor:
        """The decoder's output, cut to the range of images, [0, 1]."""
        return tf.clip_by_value(tf.cast(output, tf.float32), 0.0, 1.0)

    def get_config(self) -> dict:
        return {"scale": self.scale}
