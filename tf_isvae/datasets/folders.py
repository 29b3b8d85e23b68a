"""Folders of PNG and JPEG images."""

from __future__ import annotations

import functools
import os
import pathlib
import struct
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_isvae.datasets.sources import Encoded, Selectable, check_split, quoted

BROKEN = "cannot be decoded as PNG or JPEG"
_SUFFIXES = (".png", ".jpg", ".jpeg")


class _Header(NamedTuple):
    """What the beginning of an image file says: its shape when it is shown, and how it must be turned for that."""

    height: int
    width: int
    channels: int  # 1 or 3: alpha does not count
    orientation: int  # 1 to 8, as in EXIF


class Files(Encoded, Selectable):
    """Image files, without labels, in the order given.

    Args:
      name: what messages call them together.
      files: their paths, at least one.
      size, channels: what the images will be converted to. If None, all must have the same.
    """

    has_labels = False

    def __init__(self, name: str, files: list[str], size: tuple[int, int] | None, channels: int | None):
        self.name = name
        self._size, self._channels = size, channels
        self._files = files
        self.count = len(files)

    def keep(self, rows):
        self._files = [self._files[row] for row in rows]
        self.count = len(rows)

    def contents(self):
        return [[os.path.relpath(file, self.name), os.path.getsize(file)] for file in self._files]

    @functools.cached_property
    def _headers(self) -> tuple[set[_Header], np.ndarray]:
        """All that occur, and the orientation of each file, uint8 (n,); read when needed, because this opens each."""
        found, orientations = {}, np.empty(self.count, np.uint8)
        for i, file in enumerate(self._files):
            header = _read_header(file)
            found[header], orientations[i] = file, header.orientation
        for what, of, wanted, advice in (
            ("sizes (H, W)", slice(2), self._size, "image_size=(H, W)"),
            ("numbers of channels", slice(2, 3), self._channels, "channels=1 or 3"),
        ):
            kinds = {header[of]: file for header, file in found.items()}
            if wanted is None and len(kinds) > 1:
                (one, first), (two, second) = sorted(kinds.items())[:2]
                raise ValueError(
                    f"{self.name} holds images of different {what}: {first} {one}, {second} {two}: give {advice}."
                )
        return set(found), orientations

    @property
    def shape(self):
        headers, _ = self._headers
        sizes = {header[:2] for header in headers}
        height, width = sizes.pop() if len(sizes) == 1 else (None, None)
        # Decoded to grey only if all are: colours are made grey in `conversion`, in the same way for every source.
        return height, width, max(header.channels for header in headers)

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return np.zeros(self.count, np.int32)

    def records(self, seed):
        names = tf.constant(self._files)
        order = tf.range(self.count, dtype=tf.int64)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, seed)
        return tf.data.Dataset.from_tensor_slices((order, tf.gather(names, order)))

    def parse(self, index, records):
        _, orientations = self._headers
        return (records, tf.gather(orientations, index)), tf.gather(self._labels, index)

    def decode(self, encoded):
        height, width, channels = self.shape
        headers, _ = self._headers
        some_are_turned = any(header.orientation != 1 for header in headers)

        def read(name, orientation):
            image = tf.io.decode_image(tf.io.read_file(name), channels=channels, expand_animations=False)
            if some_are_turned:
                image = _turned(tf.ensure_shape(image, (None, None, channels)), orientation)
            return tf.ensure_shape(image, (height, width, channels))

        def fail(name, orientation):
            broken = tf.debugging.Assert(tf.equal(name, ""), [tf.strings.join([name, " ", BROKEN])])
            with tf.control_dependencies([broken]):
                return tf.zeros([height or 1, width or 1, channels], tf.uint8)

        # The error of a decoder does not say which file it is about: this one does.
        once = tf.data.Dataset.from_tensors(encoded)
        return once.map(read).ignore_errors().concatenate(once.map(fail)).take(1).get_single_element()


class Folder(Files):
    """The images of one split, in the order of their paths.

    They have labels if each lies in a subfolder of the split's folder: the place of that subfolder among the sorted
    names of all, as in `keras.utils.image_dataset_from_directory`. The subfolders of all splits are counted together,
    so that a class has one number, also if one of the splits lacks it.

    Args:
      path: the folder.
      split: the name of the split; `load` says which splits a folder has.
      size, channels: as of `Files`.
    """

    def __init__(self, path: pathlib.Path, split: str, size: tuple[int, int] | None, channels: int | None):
        folder, splits = _folder_of_split(path, split)
        super().__init__(str(folder), image_files(folder), size, channels)
        self.has_labels = all(os.sep in self._relative(file) for file in self._files)
        self._classes = sorted({name for each in splits for name in _subfolders(each)})

    def _relative(self, file: str) -> str:
        return file.removeprefix(self.name).lstrip(os.sep)

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self._classes)}
        first_parts = (self._relative(file).split(os.sep)[0] for file in self._files)
        return np.array([numbers.get(part, 0) for part in first_parts], np.int32)


def _subfolders(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _folder_of_split(path: pathlib.Path, split: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder of a split, and those of all splits."""
    subfolders = _subfolders(path)
    by_name: dict[str, list[str]] = {}
    for subfolder in subfolders:
        by_name.setdefault(subfolder.lower(), []).append(subfolder)
    if not {"train", "test"} & set(by_name):
        check_split(path, split, ["train"])
        return path, [path]
    for same in by_name.values():
        if len(same) > 1:
            raise ValueError(f"{path} has the subfolders {quoted(same)}; it must have one of each split: merge them.")
    if split.lower() not in by_name:
        check_split(path, split, subfolders)
    return path / by_name[split.lower()][0], [path / name for name in subfolders]


def image_files(folder: str | os.PathLike) -> list[str]:
    """The paths of all images below a folder, in order. Follows links to folders, and reads each folder once.

    Raises:
      ValueError: if there are none, or if one of them is a link that leads nowhere.
      FileNotFoundError, NotADirectoryError, PermissionError: if the folder cannot be read.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     plotting.image_grid(np.zeros((1, 4, 4, 1)), f"{folder}/black.png")
      ...     print([path.removeprefix(folder) for path in datasets.image_files(folder)])
      ['/black.png']
    """
    if not os.path.isdir(folder):
        kind = NotADirectoryError if os.path.exists(folder) else FileNotFoundError
        raise kind(f"{folder} is no folder; it must be one that holds PNG or JPEG images.")
    # Plain strings: of all that is kept for an image, only they are many.
    files, seen, waiting = [], set(), [os.fspath(folder)]
    while waiting:
        # Links last, so that a folder that is also linked to is found under its own name, and a loop has no effect.
        for path, subfolders, names in os.walk(waiting.pop(0), onerror=_reraise):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            subfolders.sort()
            waiting += [link for link in (os.path.join(path, name) for name in subfolders) if os.path.islink(link)]
            # Hidden files are no images, whatever their suffix: macOS leaves such behind.
            images = [name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith(".")]
            files += [os.path.join(path, name) for name in images]
    for file in files:
        if not os.path.isfile(file):
            raise ValueError(f"{file} does not lead to a file: repair or remove it.")
    if not files:
        raise ValueError(f"{folder} holds no images; it must hold files that end in .png, .jpg or .jpeg.")
    return sorted(files, key=lambda file: file.replace(os.sep, "\0"))  # folder by folder


def _reraise(error: OSError):
    raise error


def _read_header(path: str) -> _Header:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            channels = 1 if image.mode in ("1", "L", "LA", "I", "I;16", "I;16B") else 3
            height, width, orientation = image.height, image.width, _orientation(image, path)
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(f"{path} {BROKEN}: repair or remove it.") from error
    return _Header(*((width, height) if orientation >= 5 else (height, width)), channels, orientation)


def _orientation(image, path: str) -> int:
    """The orientation that the metadata of an image opened with PIL has; 1, upright, if they have none."""
    from PIL import ExifTags, Image

    if image.format == "PNG" and _has_metadata_after_pixels(path):
        image.load()
    try:
        # Not `image.getexif()`, which decodes a PNG without EXIF to look behind its pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL has many for damaged metadata, beside which there may be a whole image
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_metadata_after_pixels(path: str) -> bool:
    """Whether a PNG has a chunk of text or EXIF after its first chunk of pixels."""
    pixels = False
    with open(path, "rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            pixels |= kind == b"IDAT"
            if pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image (H, W, C) as stored, turned as it is to be shown: EXIF 2.3, 4.6.4, tag 274."""

    def if_among(orientations, change, image):
        return tf.cond(tf.reduce_any(tf.equal(orientation, orientations)), lambda: change(image), lambda: image)

    image = if_among((5, 6, 7, 8), lambda x: tf.transpose(x, (1, 0, 2)), image)
    image = if_among((2, 3, 6, 7), lambda x: tf.reverse(x, (1,)), image)
    return if_among((3, 4, 7, 8), lambda x: tf.reverse(x, (0,)), image)
