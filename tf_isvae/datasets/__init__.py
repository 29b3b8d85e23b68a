"""Images as `tf.data`: from TFDS, arrays, `.npz` files, folders of PNG and JPEG, or the bundled digits.

    train = load("mnist", "train", batch_size=2048, seed=0)     # float32 (batch, H, W, C) in [0, 1]

Everything random (the order of an epoch, the draws of `binarize`) is a function of the seed and of the
number of the epoch, batch or image, never of how much has been read before. So batch k can be made
without making the k batches before it, which is what `start` does.

Inside: `splits` says which images a split is; `sources` says what a source of images offers, and `arrays`, `bundled`,
`folders` and `tfds` are the sources; `conversion` decodes and converts their images, `noise` draws, and `batches` says
which image is in which batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_isvae import checks
from tf_isvae.datasets import batches, bundled, conversion, noise, splits, tfds
from tf_isvae.datasets.arrays import Arrays, Npz
from tf_isvae.datasets.folders import Files, Folder, image_files
from tf_isvae.datasets.sources import NoLabels, NoSuchSplit, Selectable, Source, check_split, quoted

__all__ = [
    "MEMORY_LIMIT",
    "NoLabels",
    "NoSuchSplit",
    "fingerprint",
    "image_files",
    "load",
    "public_name",
    "read_images",
]

# Decoded data up to this size is kept in memory (2 GiB); larger data is read from disk in every epoch.
MEMORY_LIMIT = 2 * 1024**3

_PREFETCHED = 2  # batches


def load(
    source: str | os.PathLike | np.ndarray | tuple[np.ndarray, np.ndarray],
    split: str = "train",
    *,
    batch_size: int = 256,
    seed: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    binarize: str | None = None,
    data_dir: str | os.PathLike | None = None,
    labels: bool = False,
    validation_split: float | None = None,
    validation_seed: int = 0,
    epochs: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns the images of one split in batches, float32 (batch, H, W, C) in [0, 1].

    Data that takes at most `MEMORY_LIMIT` bytes decoded is decoded now and kept in memory (a byte per value
    if the source has 8 bits per value). Larger data is read from disk and decoded in every epoch.

    Args:
      source: one of
        - "mnist", "fashion_mnist" or the name of any other TFDS data set with an image, also as
          "name/config:version". It is downloaded if `data_dir` does not have it.
        - "digits": the 1,797 handwritten digits that scikit-learn brings (8x8 in 17 grey levels), made
          28x28 unless `image_size` is given. Every fifth image, 360 in all, is the "test" split, the other
          1,437 are "train". Needs no download.
        - "photo_patches": 32x32 pixels each in colour, of the two photographs that scikit-learn brings: 5,500 patches
          are "train", which overlap, and 104 of other parts of the photographs are "test". Needs no download.
        - a NumPy array (n, H, W) or (n, H, W, C), uint8 in 0..255 or floating point in [0, 1]. Its only
          split is "train". Or a pair (images, labels) of such an array and of integers (n,), one an image. Of an
          array that `np.load("images.npy", mmap_mode="r")` maps, only the images of a batch are in memory, unless
          they must be converted.
        - the path of an `.npz` file with such arrays `x_train`, `x_test` ... (and `y_train` ... for labels),
          one per split; or with `images` (and `labels`), or a single array, as its only split "train".
        - the path of a folder of PNG and JPEG images, searched recursively. Links to folders are followed, and
          a folder that is reached in several ways is read once. If it has subfolders `train` or `test`, in
          capitals or small letters, its splits are its subfolders; otherwise its only split is "train" and has
          every image. Images are turned upright, as their EXIF orientation says. If each image of a split lies in a
          subfolder of it, such as train/cats, these are its classes, and the place of an image's class among their
          sorted names is its label, as in `keras.utils.image_dataset_from_directory`.
        A path that exists wins over a TFDS name, except over the four names above.
      split: the name of the split, or a slice of one, such as "train[:90%]" or "train[100:200]": per cent are rounded
        to the nearest image, and negative numbers count from the end, as in TFDS, whose data sets take whatever else
        it reads, too.
      batch_size: images in a batch. The last batch of an epoch may be smaller.
      seed: None to keep the order of the source. An integer of at least 0 to shuffle: each epoch has an
        order of its own, which depends on the seed and the number of the epoch alone.
      image_size: (H, W), or one integer for both: resizes (bilinear, antialiased, the aspect ratio is not
        kept). 8-bit images are rounded to 8 bits again.
      channels: 1 to make the images grey (ITU-R 601 luma), 3 to make them RGB. None to leave them.
      binarize: None; "static" to draw each pixel once, 1 with the grey value as its probability and else 0,
        the same in every epoch, and the same whether the images are kept in memory or not; "dynamic" to draw it
        anew in each epoch. A seed of None counts as 0 here.
      data_dir: where TFDS keeps its data; by default the environment variable TFDS_DATA_DIR, or
        ~/tensorflow_datasets. Only for TFDS names.
      labels: whether to return pairs (images, int32 labels (batch,)).
      validation_split: the share of the images of "train" to hold out, above 0 and below 1: they are then the split
        "validation", and "train" is the others. They are drawn without replacement; TFDS, whose data sets are prepared
        in a random order, gives the last ones. None to hold out none.
      validation_seed: which images are held out depends on it, and on how many there are, alone.
      epochs: None for a data set of one epoch, in which each iteration is the next epoch. An integer n for
        one that runs through the same n epochs in one iteration, for `fit` with `steps_per_epoch`.
      start: with `epochs`, the number of batches to leave out at the beginning: a run that was stopped after
        k batches goes on at the same place with start=k.
      shard: (i, n), for n workers that share every batch: only part i of its n parts is made, whose sizes differ by
        at most one image. The parts together are the batch that shard=(0, 1) gives.

    Raises:
      NoSuchSplit: if the source has no such split.
      NoLabels: if labels is True and the source has none.
      ValueError: if an argument, or what the source holds, is not as described above.
      TypeError: if `source` is neither a string, a path, an array nor a pair of arrays.
      FileNotFoundError, PermissionError: if a path does not exist or may not be read or written.
      ConnectionError: if a TFDS data set must be downloaded and cannot be.

    Example:
      >>> images = datasets.load("digits", "test", batch_size=100)
      >>> images.element_spec
      TensorSpec(shape=(None, 28, 28, 1), dtype=tf.float32, name=None)
      >>> [len(batch) for batch in images]
      [100, 100, 100, 60]
    """
    batch_size = checks.integer("batch_size", batch_size, 1, 2**63)
    seed = None if seed is None else checks.integer("seed", seed, 0, 2**63)
    epochs = None if epochs is None else checks.integer("epochs", epochs, 1, 2**63)
    start = checks.integer("start", start, 0, 2**63)
    if epochs is None and start:
        raise ValueError(
            f"start is {start}; it must be 0 without epochs: say how many epochs the data set runs through."
        )
    shard = _shard(shard)
    checks.one_of("binarize", binarize, (None, "static", "dynamic"))
    checks.flag("labels", labels)
    found, size = _find(source, split, image_size, channels, data_dir, validation_split, validation_seed)
    if labels and not found.has_labels:
        raise NoLabels(f"labels is True; it must be False for {found.name}, which has no labels.")

    draw_seed = 0 if seed is None else seed
    static_seed = draw_seed if binarize == "static" else None
    arrays = conversion.into_memory(found, size, channels, MEMORY_LIMIT)
    count = found.count
    per_epoch = -(-count // batch_size)
    if epochs is None:
        places, cardinality = batches.every_epoch(per_epoch), per_epoch
    else:
        places = batches.epochs_from(start, epochs, per_epoch)
        cardinality = max(0, epochs * per_epoch - start)
    if arrays is None:
        numbered = batches.from_disk(found, size, channels, static_seed, places, batch_size, seed, shard)
    else:
        images, targets = arrays
        if static_seed is not None:
            images = conversion.in_chunks(lambda begin, chunk: noise.static(chunk, begin, static_seed), images)
        numbered = batches.from_memory(images, targets, places, batch_size, seed, shard)

    def finish(number, images, targets):
        images = tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images
        if binarize == "dynamic":
            whole_batch = tf.minimum(tf.cast(batch_size, tf.int64), count - number % per_epoch * batch_size)
            images = noise.dynamic(images, noise.fold(draw_seed, noise.NOISE, number), whole_batch, shard)
        return (images, targets) if labels else images

    dataset = numbered.map(finish)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(_PREFETCHED)
    options = conversion.options()
    # What TensorFlow deals out to several workers if `shard` does not: most sources are not a list of files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def read_images(files: Sequence[str | os.PathLike], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Reads PNG and JPEG files into memory, as `load` reads those of a folder.

    Args:
      files: their paths, at least one.
      image_shape: (H, W, C) that the images are converted to; C is 1 or 3.

    Returns:
      float32 (n, H, W, C) in [0, 1], in the order of the files.

    Raises:
      ValueError: if a file is no whole image, or if there are none.
      FileNotFoundError, PermissionError: if a file does not exist or may not be read.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     plotting.image_grid(np.zeros((1, 4, 4, 1)), f"{folder}/black.png")
      ...     print(datasets.read_images([f"{folder}/black.png"], (8, 8, 1)).shape)
      (1, 8, 8, 1)
    """
    paths = [os.fspath(file) for file in files]
    if not paths:
        raise ValueError("files are none; there must be at least one.")
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is no file; give the path of a PNG or JPEG image.")
    *size, channels = image_shape
    size, channels = checks.image_size("image_shape[:2]", size), checks.one_of("image_shape[2]", channels, (1, 3))
    images, _ = conversion.into_memory(Files("the files", paths, size, channels), size, channels, sys.maxsize)
    return images.astype(np.float32) / 255


def fingerprint(
    source: str | os.PathLike | np.ndarray | tuple[np.ndarray, np.ndarray],
    split: str = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | os.PathLike | None = None,
    validation_split: float | None = None,
    validation_seed: int = 0,
) -> dict:
    """Returns what identifies the images of one split: the same data has the same, wherever it is stored.

    No image is decoded, so that this takes a moment.

    Args:
      source, split, image_size, channels, data_dir, validation_split, validation_seed: as of `load`.

    Returns:
      A dictionary of JSON values: "images", their number; "shape", [H, W, C] as `load` returns them; "digest", the
      SHA-256 in hexadecimal digits of
        - an array: its shape, type and bytes, without its labels;
        - an `.npz` file: the names, sizes and CRC-32s of the arrays of the split, and which images of them it has;
        - a folder: the relative names and the sizes of the image files;
        - TFDS: the name and version, and the names, sizes and ranges of the files of records.

    Raises:
      As `load`.

    Example:
      >>> before = datasets.fingerprint(np.zeros((100, 28, 28), np.uint8))
      >>> before["images"], before["shape"]
      (100, [28, 28, 1])
      >>> datasets.fingerprint(np.ones((100, 28, 28), np.uint8)) == before
      False
    """
    found, size = _find(source, split, image_size, channels, data_dir, validation_split, validation_seed)
    return {
        "images": found.count,
        "shape": list(conversion.converted_shape(found, size, channels)),
        "digest": hashlib.sha256(json.dumps(found.contents()).encode()).hexdigest(),
    }


def _find(
    source, split, image_size, channels, data_dir, validation_split, validation_seed
) -> tuple[Source, tuple[int, int] | None]:
    """The split of a source, and the size to convert it to; None: as it is."""
    size = None if image_size is None else checks.image_size("image_size", image_size)
    channels = checks.one_of("channels", channels, (None, 1, 3))
    split = splits.parse(split, validation_split, validation_seed)
    if not isinstance(data_dir, (str, os.PathLike, type(None))):
        raise ValueError(f"data_dir is {data_dir!r}; it must be the path of a folder, or None.")
    if isinstance(source, np.ndarray):
        check_split("an array", split.name, ["train"])
        found = Arrays("an array", source)
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, np.ndarray) for part in source):
        check_split("a pair of arrays", split.name, ["train"])
        found = Arrays("a pair of arrays", *source)
    elif isinstance(source, (str, os.PathLike)):
        found = _find_by_name(source, split, size, channels, data_dir)
    else:
        raise TypeError(
            f"source is a {type(source).__name__}; it must be the name of a data set ({quoted(_names())} or "
            "another of TFDS), a NumPy array, a pair (images, labels) of them, or the path of an .npz file or a "
            "folder of images."
        )
    if isinstance(found, Selectable) and (rows := split.rows(found.count)) is not None:
        found.keep(rows)
    return found, size or found.default_size


def _find_by_name(source, split, size, channels, data_dir) -> Source:
    name = os.fspath(source)
    if name in bundled.DATASETS:
        return bundled.DATASETS[name](split.name)
    path = pathlib.Path(name).expanduser()
    if not _is_path(source):
        return tfds.Tfds(name, split, data_dir)
    if path.exists():
        if path.is_dir():
            return Folder(path, split.name, size, channels)
        if path.suffix.lower() == ".npz":
            return Npz(path, split.name)
        raise ValueError(f"source is the file {path}; it must be a folder of PNG or JPEG images or an .npz file.")
    raise FileNotFoundError(f"{path} does not exist; give the path of a folder of images or of an .npz file.")


def _is_path(source: str | os.PathLike) -> bool:
    """True if `load` takes it for the path of a folder or file, False if for the name of a data set."""
    name = os.fspath(source)
    path = pathlib.Path(name).expanduser()
    if name and name not in _names() and path.exists():
        return True
    return not isinstance(source, str) or path.suffix.lower() == ".npz" or name.startswith((".", "~", os.sep))


def public_name(source: str | os.PathLike) -> str:
    """What to call a data set elsewhere: its name as it stands; of a path, the last part alone.

    Example:
        >>> datasets.public_name("emnist/letters:3.1.0"), datasets.public_name("/home/me/photos.npz")
        ('emnist/letters:3.1.0', 'photos.npz')
    """
    return pathlib.Path(source).name if _is_path(source) else os.fspath(source)


def _names() -> tuple[str, ...]:
    """The names that win over a path of the same name."""
    return *tfds.NAMES, *bundled.DATASETS


def _shard(value) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"shard is {value!r}; it must be (i, n), for part i of the n parts of every batch.")
    n = checks.integer("shard[1]", value[1], 1, 2**63)
    return checks.integer("shard[0]", value[0], 0, n), n
