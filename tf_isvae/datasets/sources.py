"""What every source of images offers: arrays in memory, or records that lie encoded on disk."""

from __future__ import annotations

import abc
import hashlib

import numpy as np
import tensorflow as tf


class NoSuchSplit(ValueError):
    """The source has no split of this name; the text says which it has."""


class NoLabels(ValueError):
    """The source has no labels."""


class Source(abc.ABC):
    """One split of a data set.

    Attributes:
      name: what messages call it.
      count: the number of images.
      shape: (H, W, C) of an image as stored; H and W are None if images differ.
      has_labels: whether each image has an integer label.
      default_size: (H, W) of the images if the caller asks for no size; None to leave them as stored.
    """

    name: str
    count: int
    shape: tuple[int | None, int | None, int]
    has_labels: bool
    default_size: tuple[int, int] | None = None

    @abc.abstractmethod
    def contents(self) -> list:
        """JSON values that differ if the images differ, and not if they have only moved. Decodes no image."""


class Selectable(Source):
    """One that may give any of its images."""

    @abc.abstractmethod
    def keep(self, rows: np.ndarray) -> None:
        """Leaves only these images: indices, sorted."""


class InMemory(Selectable):
    """Images that fit into memory as they are stored."""

    @abc.abstractmethod
    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Images (n, H, W, C), uint8 in 0..255 or float32 in [0, 1]; and int32 labels (n,), or None."""

    def contents(self) -> list:
        images, _ = self.read()
        images = np.ascontiguousarray(images)
        return [images.shape, images.dtype.str, hashlib.sha256(images).hexdigest()]


class Encoded(Source):
    """Images of 8 bits a channel that lie encoded on disk and are decoded one by one."""

    @abc.abstractmethod
    def records(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        """A data set of pairs (index, record): int64 and string scalars, one pair an image.

        The index of an image is its place in the order of the source, which is the order of the pairs if `seed` is
        None. A seed, int64 (2,), determines another order.
        """

    @abc.abstractmethod
    def parse(self, index: tf.Tensor, records: tf.Tensor) -> tuple:
        """A batch of pairs to what `decode` takes, with the batch as first dimension, and to int32 labels (n,)."""

    @abc.abstractmethod
    def decode(self, encoded) -> tf.Tensor:
        """One element of what `parse` returned as a uint8 image (H, W, C)."""


def check_split(name: str, split: str, splits) -> None:
    """Raises NoSuchSplit if `split` is none of `splits`."""
    if split not in splits:
        raise NoSuchSplit(f"split is {split!r}; it must be one that {name} has: {quoted(splits)}.")


def quoted(names, conjunction: str = "and") -> str:
    """The names in double quotes, as a list in a sentence."""
    *most, last = [f'"{name}"' for name in names] or ["none"]
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def first_line(error: BaseException) -> str:
    """What an error says, without what would not fit into a message of one line."""
    # zipfile quotes up to 64 KiB of a damaged file.
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
