"""What p(x|z) is: from the decoder's output and the images to ln p(x|z), and to a mean image.

All sums run over the pixels and channels of an image and are in nats. A likelihood is a subclass of `Likelihood`, of
which `log_prob` and `mean` are its own:

    output_channels(channels)          how many decoder outputs it takes for a pixel of so many channels
    log_prob(output, images)           (..., H, W, outputs), (batch, H, W, C) -> (..., batch)
    log_prob_of_each(output, images)   (codes, H, W, outputs), (batch, H, W, C) -> (codes, batch), every pair
    mean(output)                       the mean image, in [0, 1]
    output_of_mean(images)             the output that has this mean image: where a decoder may begin
    bits_per_dimension(nats, values)   ln p(x) of an image of so many values in bits a value; None if that means nothing

`get("DiscretizedLogistic:pixel")` is the one parser of names, and `default(channels)` the choice of `zoo.build`.
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


def _softplus(x: tf.Tensor) -> tf.Tensor:
    """ln(1 + e^x), in operations that LiteRT has."""
    size = tf.abs(x)
    return 0.5 * (x + size) - tf.math.log(tf.sigmoid(size))


# A graph of its own: what tf.custom_gradient holds on to, it holds for ever, and here that is no user's graph.
@tf.function(autograph=False, reduce_retracing=True)
def _bernoulli_log_prob(logits: tf.Tensor, images: tf.Tensor, together: int) -> tf.Tensor:
    """sum_i x_i l_i - ln(1 + e^l_i): (..., pixels), (batch, pixels) -> (..., batch).

    With p = sigmoid(l), ln(1 + e^l) is max(l, 0) - ln max(p, 1 - p). So one sigmoid serves the value and its gradient
    x - p, and one logarithm the product of so many of these maxima, which lie in [1/2, 1]: half the time that two
    sigmoids and one logarithm a pixel take, which was a tenth of a small training step.

    Args:
        together: a divisor of the number of pixels, at most 126, beyond which the product of halves would underflow.
    """

    @tf.custom_gradient
    def log_prob(logits, images):
        ones = tf.sigmoid(logits)
        groups = tf.concat([tf.shape(logits)[:-1], [tf.shape(logits)[-1] // together, together]], 0)
        products = tf.reduce_prod(tf.reshape(tf.maximum(ones, 1 - ones), groups), axis=-1)

        def gradient(upstream: tf.Tensor):
            upstream = upstream[..., None]
            to_logits, to_images = upstream * (images - ones), upstream * logits
            return _sum_to(to_logits, tf.shape(logits)), _sum_to(to_images, tf.shape(images))

        log_partition = tf.reduce_sum(tf.nn.relu(logits), axis=-1) - tf.reduce_sum(tf.math.log(products), axis=-1)
        return tf.reduce_sum(images * logits, axis=-1) - log_partition, gradient

    return log_prob(logits, images)


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

    def bits_per_dimension(self, nats: float, values: int) -> float | None:
        """ln p(x), or a bound of it, of an 8-bit image of H W C = `values` values, in bits a value (less is better).

        None, as here, if p is no density of grey or coloured images.
        """
        return None

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
        raise TypeError(
            f"likelihood is {likelihood!r}; it must be an object of tf_isvae.likelihoods, or the name of one; one of "
            "your own is a subclass of likelihoods.Likelihood with `log_prob` and `mean`."
        )


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
        logits = _flatten(output)
        pixels = logits.shape[-1]
        together = next(count for count in range(64, 0, -1) if pixels % count == 0)
        return _bernoulli_log_prob(logits, _flatten(images), together)

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


SCALES = ("channel", "pixel")
"""What a scale may be learned for: each channel of a decoded image, or each of its values."""

_GREATEST = 1.0  # of the learned scales: the range of the images


def _mean_and_log_scale(output: tf.Tensor, scale: str, least: float, begin: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The two halves of a decoder's output (..., H, W, 2 C): as it is, and ln s of a learned scale, float32.

    ln s = ln least + (ln _GREATEST - ln least) sigmoid(output + b), with b such that an output of 0 is the scale
    `begin`: smooth, and within bounds, so that no density and no gradient overflows. "channel" takes the mean of the
    outputs over the image, which gives (..., 1, 1, C).
    """
    mean, raw = tf.split(tf.cast(output, tf.float32), 2, axis=-1)
    if scale == "channel":
        raw = tf.reduce_mean(raw, axis=(-3, -2), keepdims=True)
    span = math.log(_GREATEST / least)
    share = math.log(begin / least) / span
    return mean, math.log(least) + span * tf.sigmoid(raw + math.log(share / (1 - share)))


@keras.saving.register_keras_serializable("tf_isvae")
class Gaussian(Likelihood):
    """p(x|z) = N(x; output, scale^2 I) (the paper's section 1 has scale = 1).

    With a learned scale, the decoder has two outputs a channel: the mean of each value, and what the scale of the
    channel is made of, one for each decoded image (Rybkin, Daniilidis & Levine, arXiv:2006.13202, learn one for all).
    It lies between 1 / (255 sqrt(2 pi)), at which the density is that of one of 256 levels, and 1.

    Args:
        scale: the standard deviation, in the units of the images, whose values lie in [0, 1]; "channel" to learn it.

    Raises:
        ValueError: `scale` is neither a positive number nor "channel".

    Example:
        >>> output, images = tf.zeros((1, 2, 2, 1)), tf.ones((1, 2, 2, 1))
        >>> round(float(likelihoods.Gaussian().log_prob(output, images)[0]), 4)  # -2 - 2 ln(2 pi)
        -5.6758
        >>> likelihoods.Gaussian("channel").output_channels(3)
        6
    """

    _LEAST, _BEGIN = 1 / (255 * math.sqrt(2 * math.pi)), 0.2

    def __init__(self, scale: float | str = 1.0):
        self.scale = scale if scale == "channel" else _positive_or("Gaussian: scale", scale, '"channel"')

    def output_channels(self, channels: int) -> int:
        """The mean of each, and with a learned scale as many outputs again."""
        return channels if self._is_fixed else 2 * channels

    @property
    def _is_fixed(self) -> bool:
        return not isinstance(self.scale, str)

    def _mean_and_log_scale(self, output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self._is_fixed:
            return tf.cast(output, tf.float32), tf.constant(math.log(self.scale))
        return _mean_and_log_scale(output, self.scale, self._LEAST, self._BEGIN)

    def _log_prob(self, squared_distance: tf.Tensor, pixels: int) -> tf.Tensor:
        return -0.5 * squared_distance / self.scale**2 - pixels * math.log(self.scale * math.sqrt(2 * math.pi))

    @staticmethod
    def _log_prob_of_channels(squared_distance: tf.Tensor, log_scale: tf.Tensor, pixels: int) -> tf.Tensor:
        """The sum over the channels, from the distance in each, (..., C)."""
        log_partition = pixels * (log_scale + 0.5 * math.log(2 * math.pi))
        return -tf.reduce_sum(0.5 * squared_distance * tf.exp(-2 * log_scale) + log_partition, axis=-1)

    def log_prob(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z) = -|x - output|^2 / (2 scale^2) - pixels ln(scale sqrt(2 pi)); with learned scales, the sum of
        that over the channels.
        """
        if self._is_fixed:
            mean, images = _flatten(output), _flatten(images)
            return self._log_prob(tf.reduce_sum(tf.square(images - mean), axis=-1), images.shape[-1])
        mean, log_scale = self._mean_and_log_scale(output)
        distance = tf.reduce_sum(tf.square(tf.cast(images, tf.float32) - mean), axis=(-3, -2))
        return self._log_prob_of_channels(distance, log_scale[..., 0, 0, :], math.prod(mean.shape[-3:-1]))

    def log_prob_of_each(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """The same for every pair, from |x - m|^2 = |x|^2 - 2 x.m + |m|^2: one matrix product (a channel)."""
        if not self._is_fixed:
            mean, log_scale = self._mean_and_log_scale(output)
            pixels, channels = math.prod(mean.shape[-3:-1]), mean.shape[-1]
            # The means and images about 0: small numbers lose less when they are squared and subtracted.
            mean = tf.reshape(mean, (-1, pixels, channels)) - 0.5
            images = tf.reshape(tf.cast(images, tf.float32), (-1, pixels, channels)) - 0.5
            products = tf.transpose(
                tf.matmul(tf.transpose(mean, (2, 0, 1)), tf.transpose(images, (2, 1, 0))), (1, 2, 0)
            )
            distance = (
                tf.reduce_sum(tf.square(mean), axis=1)[:, None]
                - 2 * products
                + tf.reduce_sum(tf.square(images), axis=1)[None]
            )
            return self._log_prob_of_channels(distance, log_scale[:, None, 0, 0, :], pixels)
        mean, images = _flatten(output), _flatten(images)
        distance = (
            tf.reduce_sum(tf.square(mean), axis=-1)[:, None]
            - 2 * tf.matmul(mean, images, transpose_b=True)
            + tf.reduce_sum(tf.square(images), axis=-1)[None, :]
        )
        return self._log_prob(distance, images.shape[-1])

    def mean(self, output: tf.Tensor) -> tf.Tensor:
        """The means, cut to the range of images, [0, 1]."""
        return tf.clip_by_value(self._mean_and_log_scale(output)[0], 0.0, 1.0)

    def output_of_mean(self, images: np.ndarray) -> np.ndarray:
        """The images themselves; a learned scale begins at 0.2."""
        return images if self._is_fixed else np.concatenate([images, np.zeros_like(images)], axis=-1)

    def bits_per_dimension(self, nats: float, values: int) -> float | None:
        """Of the density in [0, 1], in which one of 256 levels is 1/255 wide: -nats / (values ln 2) + log2 255.

        That is about the bits of the levels if the scale is not much smaller than a level.
        """
        return -nats / (values * math.log(2)) + math.log2(255)

    def get_config(self) -> dict:
        return {"scale": self.scale}


@tf.function(autograph=False, reduce_retracing=True)
@tf.custom_gradient
def _logistic_of_each(mean: tf.Tensor, log_scale: tf.Tensor, images: tf.Tensor):
    """`_logistic_log_prob` of every pair: (codes, ...), (codes, ...), (batch, H, W, C) -> (codes, batch).

    One code at a time, and again for the gradient: every pair of images at once would take gigabytes.
    """

    def value(arguments):
        return _logistic_log_prob(*arguments, images)

    def gradient(upstream):
        def one(arguments):
            *parameters, above = arguments
            with tf.GradientTape() as tape:
                tape.watch(parameters)
                result = value(parameters)
            return tuple(tape.gradient(result, parameters, output_gradients=above))

        to_parameters = tf.map_fn(one, (mean, log_scale, upstream), fn_output_signature=(tf.float32, tf.float32))
        return (*to_parameters, tf.zeros_like(images))

    return tf.map_fn(value, (mean, log_scale), fn_output_signature=tf.float32), gradient


def _logistic_log_prob(mean: tf.Tensor, log_scale: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """ln p of the levels of images, summed over the image: three arguments that broadcast to (..., H, W, C)."""
    # With F the logistic function, a and b the ends of the level's interval in units of s about the mean, and
    # d = a - b = 1 / (255 s):  F(a) - F(b) = F(a) F(-b) (1 - e^-d),  ln(1 - e^-d) = ln tanh(d/2) + ln(1 + e^-d).
    # So no two numbers that are almost equal are subtracted, however far the tail: there is nothing to clip.
    level = tf.round(255 * images)
    inverse = tf.exp(-log_scale)
    half = inverse * (0.5 / 255)
    centred = (level / 255 - mean) * inverse
    log_width = tf.math.log(tf.tanh(half)) + _softplus(-2 * half)
    below_255, above_0 = tf.cast(level < 255, tf.float32), tf.cast(level > 0, tf.float32)
    log_prob = (
        below_255 * above_0 * log_width - below_255 * _softplus(-centred - half) - above_0 * _softplus(centred - half)
    )
    return tf.reduce_sum(log_prob, axis=(-3, -2, -1))


@keras.saving.register_keras_serializable("tf_isvae")
class DiscretizedLogistic(Likelihood):
    """A probability of the 256 levels of each value: the mass that a logistic density has around each.

        p(level k) = F((k + 1/2 - 255 m) / (255 s)) - F((k - 1/2 - 255 m) / (255 s)),   F(y) = 1 / (1 + e^-y)

    (Salimans, Karpathy, Chen & Kingma, arXiv:1701.05517, section 2.1, with one component), where level 0 has all of the
    mass below it and level 255 all above, so that the 256 sum to 1. The decoder has two outputs a channel: the logit of
    m, and what s is made of, which is learned, and lies between 1/2550, a tenth of a level, and 1.

    ln p is in nats: -ln p(x) / (H W C ln 2) are the bits a value that a lossless code of the image would take.
    Images in [0, 1] are rounded to the nearest of the 256 levels k / 255.

    Args:
        scale: "channel": one s for each channel of a decoded image. "pixel": one for each value of it.

    Raises:
        ValueError: `scale` is neither.

    Example:
        >>> logistic = likelihoods.DiscretizedLogistic()
        >>> levels = np.arange(256).reshape(256, 1, 1, 1) / 255
        >>> log_p = logistic.log_prob(tf.zeros((1, 1, 1, 2)), levels)
        >>> round(float(tf.reduce_sum(tf.exp(log_p))), 4)
        1.0
    """

    _LEAST, _BEGIN = 1 / 2550, 0.1

    def __init__(self, scale: str = "channel"):
        self.scale = checks.one_of("DiscretizedLogistic: scale", scale, SCALES)

    def output_channels(self, channels: int) -> int:
        """Two for each: of the mean, and of the scale."""
        return 2 * channels

    def _parameters(self, output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logit, log_scale = _mean_and_log_scale(output, self.scale, self._LEAST, self._BEGIN)
        return tf.sigmoid(logit), log_scale

    def log_prob(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """ln p(x|z), the sum over all values of ln p(level)."""
        return _logistic_log_prob(*self._parameters(output), tf.cast(images, tf.float32))

    def log_prob_of_each(self, output: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """The same for every pair, one output after the other."""
        return _logistic_of_each(*self._parameters(output), tf.cast(images, tf.float32))

    def mean(self, output: tf.Tensor) -> tf.Tensor:
        """m = sigmoid(the first half of the output): the median of the density."""
        return tf.sigmoid(tf.split(tf.cast(output, tf.float32), 2, axis=-1)[0])

    def output_of_mean(self, images: np.ndarray) -> np.ndarray:
        """The logits of the images, as far as they are finite; s begins at 0.1."""
        logits = Bernoulli().output_of_mean(images)
        return np.concatenate([logits, np.zeros_like(logits)], axis=-1)

    def bits_per_dimension(self, nats: float, values: int) -> float | None:
        """-nats / (values ln 2)."""
        return -nats / (values * math.log(2))

    def get_config(self) -> dict:
        return {"scale": self.scale}


def _positive_or(name: str, value, other: str) -> float:
    try:
        return checks.positive(name, value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; it must be a positive number, or {other}.") from None


_BY_NAME = {cls.__name__: cls for cls in (Bernoulli, Gaussian, DiscretizedLogistic)}
FORMS = "Bernoulli, Gaussian:SCALE, Gaussian:channel, DiscretizedLogistic:channel or DiscretizedLogistic:pixel"
"""What `get` reads; SCALE is a positive number, 1 if it is left out, as ":channel" may be."""


def get(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood that a text names; a likelihood itself is returned as it is.

    Args:
        likelihood: NAME or NAME:SCALE, with what the class of that name takes as `scale`. Or an object.

    Raises:
        ValueError: a text that names none, or a scale that it does not take. TypeError: something else.

    Example:
        >>> likelihoods.get("Gaussian:0.1"), likelihoods.get("DiscretizedLogistic:pixel")
        (Gaussian(scale=0.1), DiscretizedLogistic(scale='pixel'))
    """
    if not isinstance(likelihood, str):
        check(likelihood)
        return likelihood
    name, colon, text = likelihood.partition(":")
    cls = _BY_NAME.get(name)
    try:
        if cls is not None:
            return cls(_number_or_text(text)) if colon else cls()
    except (TypeError, ValueError):  # Bernoulli takes no scale
        pass
    raise ValueError(f"likelihood is {likelihood!r}; it must be {FORMS}.")


def name_of(likelihood: Likelihood) -> str:
    """The text from which `get` makes an equal likelihood. Raises ValueError if there is none: one of one's own.

    Example:
        >>> [likelihoods.name_of(each) for each in (likelihoods.Bernoulli(), likelihoods.Gaussian("channel"))]
        ['Bernoulli', 'Gaussian:channel']
    """
    cls = type(likelihood)
    if _BY_NAME.get(cls.__name__) is not cls:
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of tf_isvae.likelihoods.")
    return ":".join([cls.__name__, *map(str, likelihood.get_config().values())])


def default(channels: int) -> str:
    """The name of the likelihood for images of so many channels: the paper's for grey images, one for colour else.

    docs/colour.md has the figures that chose it.

    Example:
        >>> likelihoods.default(1)
        'Bernoulli'
    """
    return "Bernoulli" if channels == 1 else "DiscretizedLogistic:channel"


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
