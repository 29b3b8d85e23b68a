"""Images from one size and number of channels to another, and from encoded to decoded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_isvae.datasets.folders import BROKEN
from tf_isvae.datasets.sources import Encoded, InMemory, Source, first_line

CHUNK = 1024  # images that are converted together, so that conversions need little memory beside the result
PARALLEL = min(os.cpu_count() or 1, 8)  # batches that are decoded, and held, at the same time


def converted_shape(source: Source, size: tuple[int, int] | None, channels: int | None) -> tuple[int, int, int]:
    """The shape (H, W, C) of the images of a source in the size and channels asked for (None: as they are)."""
    if size is not None and channels is not None:
        return *size, channels
    height, width, stored_channels = source.shape
    if size is None and None in (height, width):
        raise ValueError(f"image_size is None; it must be (H, W) for {source.name}, whose images differ in size.")
    return *(size or (height, width)), channels or stored_channels


def into_memory(source: Source, size, channels, limit: int) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Converted images (n, H, W, C), uint8 or float32, and int32 labels (n,) or None.

    None if the images lie encoded on disk and would take more than `limit` bytes. Those of a memory-mapped file are
    left there unless they must be converted.
    """
    if isinstance(source, InMemory):
        images, labels = source.read()
        if isinstance(images, np.memmap) and images.shape[1:] == converted_shape(source, size, channels):
            return images, labels  # which stay on disk
        return in_chunks(lambda begin, chunk: convert(chunk, size, channels, source.name).numpy(), images), labels
    if source.count * math.prod(converted_shape(source, size, channels)) > limit:
        return None
    return _decode_all(source, size, channels)


def _decode_all(source: Encoded, size, channels) -> tuple[np.ndarray, np.ndarray | None]:
    images = np.empty((source.count, *converted_shape(source, size, channels)), np.uint8)
    labels = np.empty(source.count, np.int32)
    chunks = source.records(None).batch(CHUNK).map(decoder(source, size, channels), num_parallel_calls=PARALLEL)
    found = 0
    try:
        for index, chunk, targets in chunks.with_options(options()).as_numpy_iterator():
            found += len(chunk)
            if found <= source.count:
                images[index], labels[index] = chunk, targets
    except tf.errors.OpError as error:
        named = re.search(rf"\[([^\n]*{BROKEN})\]", error.message)
        reason = named[1] if named else f"{source.name} cannot be read: {first_line(error.message)}"
        raise ValueError(f"{reason}: repair or remove it.") from None
    if found != source.count:
        raise ValueError(f"{source.name} holds {found} images; it must hold {source.count}: prepare it anew.")
    return images, labels if source.has_labels else None


def decoder(source: Encoded, size, channels) -> Callable:
    """A function from a batch of pairs (index, record) to the index, uint8 images and int32 labels."""
    source.shape  # noqa: B018  (now: where TensorFlow traces, the error of a broken file would be pages long)
    shape = converted_shape(source, size, channels)

    def decode(encoded):
        return tf.ensure_shape(convert(source.decode(encoded), size, channels, source.name), shape)

    def decode_batch(index, records):
        encoded, labels = source.parse(index, records)
        # A loop over a batch takes a third of the time of a map of the data set over single images.
        return index, tf.map_fn(decode, encoded, fn_output_signature=tf.TensorSpec(shape, tf.uint8)), labels

    return decode_batch


def options() -> tf.data.Options:
    """Options of every data set of this package."""
    options = tf.data.Options()
    # The thread that tunes sleeps up to a minute between two looks, and with one core, the end of an iterator often
    # waits for it: seconds after each evaluation and each fit.
    options.autotune.enabled = False
    return options


def in_chunks(function: Callable, images: np.ndarray) -> np.ndarray:
    """function(number of the first image, images), in pieces, so that it needs little memory besides its result."""
    result = None
    for begin in range(0, len(images), CHUNK):
        piece = function(begin, images[begin : begin + CHUNK])
        if result is None:
            result = np.empty((len(images), *piece.shape[1:]), piece.dtype)
        result[begin : begin + CHUNK] = piece
    return result


def convert(images, size, channels, name) -> tf.Tensor:
    """Images (..., H, W, C), uint8 or float32, in the size and channels asked for (None: as they are)."""
    images = tf.convert_to_tensor(images)
    stored_channels = images.shape[-1]
    if channels not in (None, stored_channels):
        if stored_channels == 3:
            images = tf.image.rgb_to_grayscale(images)
        elif stored_channels == 1:
            images = tf.image.grayscale_to_rgb(images)
        else:
            raise ValueError(
                f"channels is {channels}; it must be None for {name}, which has {stored_channels} channels: "
                "only 1 and 3 can be converted."
            )
    if size is not None and size != tuple(images.shape[-3:-1]):
        resized = tf.image.resize(images, size, antialias=True)
        if images.dtype == tf.uint8:
            images = tf.saturate_cast(tf.round(resized), tf.uint8)
        else:
            images = tf.clip_by_value(resized, 0.0, 1.0)  # rounding can lead just above 1
    return images
