"""Images from NumPy arrays and `.npz` files."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator

import numpy as np

from tf_isvae import checks
from tf_isvae.datasets.sources import InMemory, check_split, first_line, quoted


class Arrays(InMemory):
    """An array of images (n, H, W) or (n, H, W, C), uint8 in 0..255 or floating point in [0, 1].

    Args:
      name: what messages call it.
      images: the array.
      labels: integers (n,) or (n, 1), or None.
      default_size: as of `Source`.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        default_size: tuple[int, int] | None = None,
    ):
        self.name, self.default_size = name, default_size
        self._images, self._labels = _checked("the images", images, labels)
        self.count, *shape = self._images.shape
        self.shape, self.has_labels = tuple(shape), labels is not None

    def keep(self, rows):
        self._images = self._images[rows]
        self._labels = None if self._labels is None else self._labels[rows]
        self.count = len(rows)

    def read(self):
        return self._images, self._labels


class Npz(InMemory):
    """One split of an `.npz` file; `load` says how its arrays are named."""

    def __init__(self, path: str | os.PathLike, split: str):
        self.name = str(path)
        with self._open() as file:
            keys = set(file.files)
            splits = sorted(key[2:] for key in keys if key.startswith("x_"))
            others = keys - {"labels", "y_train"}
            if splits:
                check_split(self.name, split, splits)
                images, labels = f"x_{split}", f"y_{split}"
            elif "images" in keys or len(others) == 1:
                check_split(self.name, split, ["train"])
                images = "images" if "images" in keys else others.pop()
                labels = "labels" if "labels" in keys else "y_train"
            else:
                raise ValueError(
                    f"{self.name} holds the arrays {quoted(sorted(keys))}; they must be called images (and labels), "
                    "or x_train and x_test (and y_train and y_test)."
                )
            self.has_labels = labels in keys
            self._keys = [images, labels] if self.has_labels else [images]
            for key in self._keys:
                if f"{key}.npy" not in file.zip.namelist():
                    raise ValueError(f"{key!r} in {self.name} is not a NumPy array; write the file with numpy.savez.")
            self._members = [file.zip.getinfo(f"{key}.npy") for key in self._keys]
            self._images = f"the images {images!r} in {self.name}"
            self.count, *shape = _with_channels(self._images, self._header(file))
            self.shape, self._rows = tuple(shape), None

    def _open(self) -> contextlib.AbstractContextManager[np.lib.npyio.NpzFile]:
        with self._damaged_if_it_fails():
            if not zipfile.is_zipfile(self.name):
                raise zipfile.BadZipFile("it is not a zip archive, or only a part of one")
            return np.load(self.name, allow_pickle=False)

    def _header(self, file) -> tuple[int, ...]:
        """The shape of the array of images, which is not read."""
        with self._damaged_if_it_fails(), file.zip.open(self._members[0]) as member:
            if np.lib.format.read_magic(member) == (1, 0):
                return np.lib.format.read_array_header_1_0(member)[0]
            return np.lib.format.read_array_header_2_0(member)[0]

    @contextlib.contextmanager
    def _damaged_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except PermissionError:
            raise
        except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs and NumPy
            raise ValueError(f"{self.name} is not a whole .npz file: {first_line(error)}") from error

    def keep(self, rows):
        self._rows, self.count = rows, len(rows)

    def read(self):
        with self._open() as file, self._damaged_if_it_fails():
            arrays = [file[key] for key in self._keys]
        images, labels = _checked(self._images, *arrays)
        if self._rows is None:
            return images, labels
        return images[self._rows], None if labels is None else labels[self._rows]

    def contents(self) -> list:
        members = [[member.filename, member.file_size, member.CRC] for member in self._members]
        return members if self._rows is None else [*members, self._rows.tolist()]


def _checked(name: str, images: np.ndarray, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Images as `InMemory.read` returns them, and int32 labels, if they are what `load` promises to take."""
    images = images.reshape(_with_channels(name, images.shape))
    if np.issubdtype(images.dtype, np.floating):
        checks.unit_interval(name, images)
        images = images.astype(np.float32, copy=False)
    elif images.dtype != np.uint8:
        raise ValueError(
            f"{name} have dtype {images.dtype}; they must be uint8 in 0..255 or floating point in [0, 1]: convert them."
        )
    if labels is not None:
        # (n, 1) is the shape of the labels of keras.datasets.cifar10.
        fits = labels.shape in (images.shape[:1], (len(images), 1)) and np.issubdtype(labels.dtype, np.integer)
        if not fits or labels.min() < -(2**31) or labels.max() >= 2**31:
            raise ValueError(
                f"the labels of {name} have shape {labels.shape} and dtype {labels.dtype}; they must be integers of "
                f"32 bits, one for each of the {len(images)} images."
            )
        labels = labels.reshape(-1).astype(np.int32)
    return images, labels


def _with_channels(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (n, H, W, C) of images of that shape."""
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{name} have shape {shape}; it must be (n, H, W) or (n, H, W, C), with at least 1 of each.")
    return (*shape, 1)[:4]
