"""What p(x|z) is: from the decoder's output and the images to ln p(x|z), and to a mean image.

All sums run over the pixels and channels of an image and are in nats. A likelihood is a subclass of `Likelihood`, of
which `log_prob` and `mean` are its own:

    output_channels(channels)          how many decoder outputs it takes for a pixel of so many channels
    log_prob(output, images)           (..., H, W, outputs), (batch, H, W, C) -> (..., batch)
    log_prob_of_each(output, images)   (codes, H, W, outputs), (batch, H, W, C) -> (codes, batch), every pair
    mean(output)                       the mean image, in [0, 1]
    output_of_mean(images)             the output whose mean image is given: where a decoder may begin
"""

from __future__ import annotations

import math

import keras
import numpy as np
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
    """What the likelihoods share: one decoder output a channel, and serialisation from the arguments of `__init__`."""

    def output_channels(self, channels: int) -> int:
        """How many outputs the decoder has at each pixel of an image of so many channels."""
        return channels

    def log_prob(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z), float32 (..., batch) in nats, of the decoder's output (..., H, W, outputs), which may broadcast
        against the images (batch, H, W, C).
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(output, images).")

    def log_prob_of_each(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z), float32 (codes, batch), of every output (codes, H, W, outputs) for every image (batch, H, W, C).

        This one goes through a tensor (codes, batch, H, W, outputs); a likelihood that is linear in what depends on x
        can do with one matrix product.
        """
        return self.log_prob(output[:, None], images)

    def mean(self, output: tf.Tensor) -> tf.Tensor:
        """The mean image, float32 (..., H, W, C) in [0, 1], of the decoder's output (..., H, W, outputs)."""
        raise NotImplementedError(f"{type(self).__name__} must define mean(output).")

    def output_of_mean(self, images: np.ndarray) -> np.ndarray:
        """The output (..., outputs) whose mean image is about `images` (..., C), in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define output_of_mean(images).")

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> Likelihood:
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_config().items())})"


def check(likelihood) -> None:
    """Raises TypeError if it is no likelihood."""
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {likelihood!r}; it must be an object of tf_isvae.likelihoods.")


@keras.saving.register_keras_serializable("tf_isvae")
class Bernoulli(Likelihood):
    """p(x|z) = prod_i x_hat_i^x_i (1 - x_hat_i)^(1 - x_i), x_hat = sigmoid(output): the paper's likelihood.

    With grey images x_i in [0, 1] it is the usual cross-entropy, not normalised over x.

    Example:
        >>> output, images = tf.zeros((1, 2, 2, 1)), tf.ones((1, 2, 2, 1))
        >>> round(float(likelihoods.Bernoulli().log_prob(output, images)[0]), 4)  # -4 ln 2
        -2.7726
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

    def output_of_mean(self, images: np.ndarray) -> np.ndarray:
        """The logits of the images, as far as they are finite: those of 0.01 to 0.99."""
        mean = np.clip(images, 0.01, 0.99)
        return np.log(mean / (1 - mean))


@keras.saving.register_keras_serializable("tf_isvae")
class Gaussian(Likelihood):
    """p(x|z) = N(x; output, scale^2 I) with a fixed standard deviation (the paper's section 1 has scale = 1).

    Args:
        scale: the standard deviation, in the units of the images, whose values lie in [0, 1].

    Raises:
        ValueError: `scale` is not a positive number.

    Example:
        >>> output, images = tf.zeros((1, 2, 2, 1)), tf.ones((1, 2, 2, 1))
        >>> round(float(likelihoods.Gaussian().log_prob(output, images)[0]), 4)  # -2 - 2 ln(2 pi)
        -5.6758
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

    def output_of_mean(self, images: np.ndarray) -> np.ndarray:
        """The images themselves."""
        return images

    def get_config(self) -> dict:
        return {"scale": self.scale}
