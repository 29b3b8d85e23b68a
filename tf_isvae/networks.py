"""Encoders and decoders of the paper's table 1, as plain Keras models for images of any shape.

An encoder maps images (batch, H, W, C) to eta (batch, units). A decoder maps z (batch, units) to the parameters of
p(x|z), (batch, H, W, C), linear: the likelihood applies the sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from tf_isvae import checks, likelihoods
from tf_isvae.latents import Latent

STRIDES = 2
FILTERS = (32, 64, 64, 128)


def _check_sizes(image_shape: Sequence[int], units: int) -> tuple[tuple[int, int, int], int]:
    """Both as Python integers. Raises ValueError unless all sizes are positive integers."""
    try:
        height, width, channels = (checks.integer("a size", n) for n in image_shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"image_shape is {image_shape!r}; it must be three positive integers (height, width, channels)."
        ) from None
    return (height, width, channels), checks.integer("units", units)


def _dense_layers(hidden: Sequence[int]) -> list[layers.Dense]:
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise TypeError(f"hidden is {hidden!r}; it must be a sequence of integers, such as (1024,).")
    return [layers.Dense(checks.integer("a width in hidden", width), activation="relu") for width in hidden]


def _grids(image_shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Heights and widths from the image down to the encoder's last grid: 28, 14, 7, 4, 2 for 28x28."""
    grids = [image_shape[:2]]
    for _ in FILTERS:
        grids.append(tuple(math.ceil(n / STRIDES) for n in grids[-1]))
    return grids


def _check_bfloat16(grids: list[tuple[int, int]]) -> None:
    if keras.config.dtype_policy().compute_dtype == "bfloat16" and (1, 1) in grids[:-1]:
        height, width = grids[0]
        raise ValueError(
            f"images of {height}x{width} shrink to one pixel before the last convolution, where TensorFlow's bfloat16 "
            "convolutions give wrong gradients on a CPU; use float32, larger images, or dense networks."
        )


def dense_encoder(image_shape: Sequence[int], units: int, hidden: Sequence[int] = (1024,)) -> keras.Model:
    """Table 1, FC: flatten, Dense 1024 relu, Dense `units` linear.

    Args:
        image_shape: (H, W, C).
        units: the width of eta, `encoder_units` of the latent.
        hidden: the widths of the layers with relu.

    Raises:
        TypeError, ValueError: a size that is not a positive integer.

    Example:
        >>> networks.dense_encoder((28, 28, 1), 50).output_shape
        (None, 50)
    """
    image_shape, units = _check_sizes(image_shape, units)
    return keras.Sequential(
        [
            keras.Input(image_shape, name="images"),
            layers.Flatten(),
            *_dense_layers(hidden),
            layers.Dense(units, name="eta"),
        ],
        name="dense_encoder",
    )


def dense_decoder(units: int, image_shape: Sequence[int], hidden: Sequence[int] = (1024,)) -> keras.Model:
    """Table 1, FC: Dense 1024 relu, Dense H*W*C linear, reshaped to (H, W, C).

    Args:
        units: the width of z, `units` of the latent.
        image_shape: (H, W, C), with the likelihood's `output_channels` for C.
        hidden: the widths of the layers with relu.

    Raises:
        TypeError, ValueError: a size that is not a positive integer.

    Example:
        >>> networks.dense_decoder(50, (28, 28, 1)).output_shape
        (None, 28, 28, 1)
    """
    image_shape, units = _check_sizes(image_shape, units)
    return keras.Sequential(
        [
            keras.Input((units,), name="z"),
            *_dense_layers(hidden),
            layers.Dense(math.prod(image_shape)),
            layers.Reshape(image_shape, name="output"),
        ],
        name="dense_decoder",
    )


def conv_encoder(image_shape: Sequence[int], units: int) -> keras.Model:
    """Table 1, CNN: four Conv 3x3 stride 2 relu (32, 64, 64, 128), flatten, Dense `units` linear.

    Args:
        image_shape: (H, W, C).
        units: the width of eta, `encoder_units` of the latent.

    Raises:
        ValueError: a size that is not a positive integer, or images too small for bfloat16.

    Example:
        >>> networks.conv_encoder((28, 28, 1), 50).output_shape
        (None, 50)
    """
    image_shape, units = _check_sizes(image_shape, units)
    _check_bfloat16(_grids(image_shape))
    return keras.Sequential(
        [
            keras.Input(image_shape, name="images"),
            *(layers.Conv2D(n, 3, strides=STRIDES, padding="same", activation="relu") for n in FILTERS),
            layers.Flatten(),
            layers.Dense(units, name="eta"),
        ],
        name="conv_encoder",
    )


@keras.saving.register_keras_serializable("tf_isvae")
class Conv2DTranspose(layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose, whose config leaves out output_padding before Keras 3.13: saved models broke."""

    def get_config(self) -> dict:
        return {**super().get_config(), "output_padding": self.output_padding}


def conv_decoder(units: int, image_shape: Sequence[int]) -> keras.Model:
    """Table 1, CNN: Dense relu, reshape to the encoder's last grid, four ConvTranspose 3x3 stride 2 (64, 64, 32, C).

    The dense layer has `units` outputs, rounded up to fill the grid ("FC c, reshape" in the paper). Each transposed
    convolution gives exactly the grid that the encoder came from, so nothing is cropped.

    Args:
        units: the width of z, `units` of the latent.
        image_shape: (H, W, C), with the likelihood's `output_channels` for C.

    Raises:
        ValueError: a size that is not a positive integer, or images too small for bfloat16.

    Example:
        >>> networks.conv_decoder(50, (30, 17, 3)).output_shape
        (None, 30, 17, 3)
    """
    image_shape, units = _check_sizes(image_shape, units)
    *grids, last = _grids(image_shape)
    _check_bfloat16([*grids, last])
    channels = math.ceil(units / math.prod(last))
    upwards = []
    smaller = last
    for filters, larger in zip((*FILTERS[-2::-1], image_shape[-1]), reversed(grids), strict=True):
        upwards.append(
            Conv2DTranspose(
                filters,
                3,
                strides=STRIDES,
                padding="same",
                # Keras gives 2 n - 1 + output_padding rows from n.
                output_padding=tuple(n - (STRIDES * m - 1) for m, n in zip(smaller, larger, strict=True)),
                activation="relu",
            )
        )
        smaller = larger
    upwards[-1].activation = keras.activations.linear
    return keras.Sequential(
        [
            keras.Input((units,), name="z"),
            layers.Dense(math.prod(last) * channels, activation="relu"),
            layers.Reshape((*last, channels)),
            *upwards,
        ],
        name="conv_decoder",
    )


def start_at_mean(
    decoder: keras.Model, mean_image: np.ndarray, likelihood: likelihoods.Likelihood | None = None
) -> None:
    """Sets the decoder's last bias so that an untrained model gives about the mean image for every z.

    Otherwise the first thing that z can do for any image is to set the overall brightness, on which all posteriors
    agree, and a posterior that has become certain hardly moves again.

    Args:
        decoder: a decoder whose last layer has a bias: one number an output, or one a channel (convolutions), which is
            then that of the channel's mean.
        mean_image: (H, W, C) in [0, 1].
        likelihood: the one that the decoder's output is for; default Bernoulli().

    Raises:
        ValueError: a mean image of another shape, or with values not in [0, 1].

    Example:
        >>> decoder = networks.dense_decoder(3, (2, 2, 1))
        >>> networks.start_at_mean(decoder, np.full((2, 2, 1), 0.5))
        >>> decoder.layers[-2].bias.numpy().tolist()  # logits of 0.5
        [0.0, 0.0, 0.0, 0.0]
    """
    likelihood = likelihoods.Bernoulli() if likelihood is None else likelihood
    # Only the likelihood knows the image's channels from the decoder's outputs.
    *grid, outputs = decoder.output_shape[1:]
    fits = list(mean_image.shape[:-1]) == grid and likelihood.output_channels(mean_image.shape[-1]) == outputs
    if not fits or not ((mean_image >= 0) & (mean_image <= 1)).all():
        given = "NaN" if np.isnan(mean_image).any() else f"{mean_image.min():g} to {mean_image.max():g}"
        raise ValueError(
            f"mean_image has shape {mean_image.shape} and values {given}; it must fit the decoder's output, "
            f"{decoder.output_shape[1:]}, and lie in [0, 1]."
        )
    layer = next(layer for layer in reversed(decoder.layers) if getattr(layer, "bias", None) is not None)
    if math.prod(layer.bias.shape) != math.prod(decoder.output_shape[1:]):
        mean_image = mean_image.mean(axis=(0, 1))
    layer.bias.assign(likelihood.output_of_mean(mean_image).ravel())


def check(name: str, network: keras.Model) -> None:
    """Raises TypeError or ValueError if it is no Keras model with one input and one output of known shapes."""
    if not isinstance(network, keras.Model):
        raise TypeError(f"{name} is {network!r}; it must be a keras.Model (Sequential or functional).")
    if not network.built:
        raise ValueError(f"{name} has no input shape yet; it must begin with keras.Input(shape).")
    if not all(isinstance(getattr(network, shape, None), tuple) for shape in ("input_shape", "output_shape")):
        raise ValueError(
            f"{name} is a {type(network).__name__} whose input and output shapes Keras does not know; "
            "it must be a Sequential or functional model with one input and one output."
        )


def check_shapes(
    encoder: keras.Model, latent: Latent, decoder: keras.Model, likelihood: likelihoods.Likelihood
) -> None:
    """Raises ValueError if the shapes of the parts of a model do not fit together."""
    if len(encoder.input_shape) != 4 or None in encoder.input_shape[1:]:
        raise ValueError(f"the encoder's input has shape {encoder.input_shape}; it must be (None, H, W, C).")
    *grid, channels = encoder.input_shape[1:]
    for what, given, wanted in (
        ("encoder's output", encoder.output_shape[1:], (latent.encoder_units,)),
        ("decoder's input", decoder.input_shape[1:], (latent.units,)),
        ("decoder's output", decoder.output_shape[1:], (*grid, likelihood.output_channels(channels))),
    ):
        if tuple(given) != wanted:
            raise ValueError(f"the {what} has shape {tuple(given)}; with these parts it must be {wanted}.")
