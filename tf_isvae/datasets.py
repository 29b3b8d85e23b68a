"""Images as `tf.data`: from TFDS, arrays, `.npz` files, folders of PNG and JPEG, or the bundled digits.

    train = load("mnist", "train", batch_size=2048, seed=0)     # float32 (batch, H, W, C) in [0, 1]

Everything random (the order of an epoch, the draws of `binarize`) is a function of the seed and of the
number of the epoch, batch or image, never of how much has been read before. So batch k can be made
without making the k batches before it, which is what `start` does.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import operator
import os
import pathlib
import re
import socket
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

# Decoded data up to this size is kept in memory (2 GiB); larger data is read from disk in every epoch.
MEMORY_LIMIT = 2 * 1024**3

# TFDS records can only be read in sequence, so a stream of them is shuffled within this many images.
SHUFFLE_BUFFER = 10_000

_BUILT_IN = ("mnist", "fashion_mnist", "digits")
_BROKEN = "cannot be decoded as PNG or JPEG"
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_CHUNK = 1024  # images that are converted together, so that conversions need little memory beside the result
_PARALLEL = min(os.cpu_count() or 1, 8)  # batches that are decoded, and held, at the same time
_PREFETCHED = 2  # batches

# One stream of random numbers per purpose, so that the noise of `binarize` tells nothing of the order.
_ORDER, _NOISE = 7001, 7002


class _Arrays(NamedTuple):
    """Images in memory: (n, H, W, C), uint8 in 0..255 or float32 in [0, 1], and int32 labels (n,) or None."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None


class _Encoded(NamedTuple):
    """Images that lie encoded on disk.

    records(seed) is a data set of string scalars, one an image, in the order that seed, int64 (2,), determines,
    or in the order of the source if seed is None. parse(records) takes n of them to n encoded images and n int32
    labels. decode(encoded) is one uint8 image. `shape` is that of a decoded image, with None where images differ.
    """

    name: str
    count: int
    shape: tuple[int | None, int | None, int]
    labels: bool
    records: Callable[[tf.Tensor | None], tf.data.Dataset]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    decode: Callable[[tf.Tensor], tf.Tensor]


class NoSuchSplit(ValueError):
    """The source has no split of this name; the text says which it has."""


def load(
    source: str | os.PathLike | np.ndarray,
    split: str = "train",
    *,
    batch_size: int,
    seed: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    binarize: str | None = None,
    data_dir: str | os.PathLike | None = None,
    labels: bool = False,
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
        - a NumPy array (n, H, W) or (n, H, W, C), uint8 in 0..255 or floating point in [0, 1]. Its only
          split is "train".
        - the path of an `.npz` file with such arrays `x_train`, `x_test` ... (and `y_train` ... for labels),
          one per split; or with `images` (and `labels`), or a single array, as its only split "train".
        - the path of a folder of PNG and JPEG images, searched recursively. If it has subfolders `train` or
          `test`, its splits are its subfolders; otherwise its only split is "train" and has every image.
        A path that exists wins over a TFDS name, except over the three names above.
      split: the name of the split; for TFDS also a slice, such as "train[:10%]".
      batch_size: images in a batch. The last batch of an epoch may be smaller.
      seed: None to keep the order of the source. An integer of at least 0 to shuffle: each epoch has an
        order of its own, which depends on the seed and the number of the epoch alone.
      image_size: (H, W), or one integer for both: resizes (bilinear, antialiased, the aspect ratio is not
        kept). 8-bit images are rounded to 8 bits again.
      channels: 1 to make the images grey (ITU-R 601 luma), 3 to make them RGB. None to leave them.
      binarize: None; "static" to draw each pixel once, 1 with the grey value as its probability and else 0,
        the same in every epoch; "dynamic" to draw it anew in each epoch. A seed of None counts as 0 here.
      data_dir: where TFDS keeps its data; by default the environment variable TFDS_DATA_DIR, or
        ~/tensorflow_datasets. Only for TFDS names.
      labels: whether to return pairs (images, int32 labels (batch,)).
      epochs: None for a data set of one epoch, in which each iteration is the next epoch. An integer n for
        one that runs through the same n epochs in one iteration, for `fit` with `steps_per_epoch`.
      start: with `epochs`, the number of batches to leave out at the beginning: a run that was stopped after
        k batches goes on where it was with start=k.
      shard: (i, n), for n workers that share every batch: only part i of its n parts is made, whose sizes differ by
        at most one image. The parts together are the batch that shard=(0, 1) gives.

    Raises:
      NoSuchSplit: if the source has no such split.
      ValueError, TypeError: if an argument, or what the source holds, is not as described above.
      FileNotFoundError, PermissionError: if a path does not exist or may not be read or written.
      ConnectionError: if a TFDS data set must be downloaded and cannot be.
    """
    batch_size = _integer("batch_size", batch_size, 1)
    seed = None if seed is None else _integer("seed", seed, 0)
    epochs = None if epochs is None else _integer("epochs", epochs, 1)
    start = _integer("start", start, 0)
    shard = _shard(shard)
    size = _image_size(image_size)
    if binarize not in (None, "static", "dynamic"):
        raise ValueError(f'binarize={binarize!r}: give "static", "dynamic" or None')
    _check_arguments(split, channels, data_dir)

    if isinstance(source, str) and source == "digits":
        size = size or (28, 28)

    found = _find(source, split, size, channels, data_dir)
    if labels and (found.labels is None or found.labels is False):
        raise ValueError(f"labels=True, but {found.name} has no labels: leave labels out")
    if isinstance(found, _Arrays):
        converted = _in_chunks(lambda chunk: _convert(chunk, size, channels, found.name).numpy(), found.images)
        found = found._replace(images=converted)
        count = len(converted)
    else:
        count, shape = found.count, _converted_shape(found, size, channels)
        if count * int(np.prod(shape)) <= MEMORY_LIMIT:
            found = _decode_all(found, size, channels)

    per_epoch = -(-count // batch_size)
    if epochs is None:
        if start:
            raise ValueError(f"start={start} needs epochs: the number of epochs that the data set runs through")
        # The count of iterations lives in Python: a tf.Variable made under a distribution strategy would be
        # replicated, and tf.data cannot update those.
        counter = itertools.count()
        scalar = tf.TensorSpec((), tf.int64)
        places = tf.data.Dataset.from_generator(lambda: iter([next(counter)]), output_signature=scalar)
        places = places.map(lambda epoch: (epoch, tf.constant(0, tf.int64)))
        cardinality = per_epoch
    else:
        first_epoch, first_batch = divmod(start, per_epoch)
        places = tf.data.Dataset.range(first_epoch, epochs)
        places = places.map(lambda epoch: (epoch, tf.where(epoch == first_epoch, tf.cast(first_batch, tf.int64), 0)))
        cardinality = max(0, epochs * per_epoch - start)

    draw_seed = 0 if seed is None else seed
    static_seed = draw_seed if binarize == "static" else None
    if isinstance(found, _Arrays):
        batches = _batches_from_memory(found, places, batch_size, seed, static_seed, shard)
    else:
        batches = _batches_from_disk(found, places, batch_size, seed, static_seed, size, channels, shard)

    def finish(number, images, targets):
        images = _grey(images)
        if binarize == "dynamic":
            whole_batch = tf.minimum(tf.cast(batch_size, tf.int64), count - number % per_epoch * batch_size)
            images = _draw(images, _fold(draw_seed, _NOISE, number), whole_batch, shard)
        return (images, targets) if labels else images

    dataset = batches.map(finish)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(_PREFETCHED)
    options = _options()
    # What TensorFlow deals out to several workers, where `shard` does not: most sources are not a list of files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def fingerprint(
    source: str | os.PathLike | np.ndarray,
    split: str = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> dict:
    """Returns what identifies the images of one split: the same data has the same, wherever it is stored.

    No image is decoded, so that this takes a moment.

    Args:
      source, split, image_size, channels, data_dir: as of `load`.

    Returns:
      A dictionary of JSON values: "images", their number; "shape", [H, W, C] as `load` returns them; "digest", the
      SHA-256 in hexadecimal digits of
        - an array: its shape, type and bytes;
        - an `.npz` file: the names, sizes and CRC-32s of the arrays of the split;
        - a folder: the relative names and the sizes of the image files;
        - TFDS: the name and version, and the names, sizes and ranges of the files of records.

    Raises:
      As `load`.
    """
    size, _ = _image_size(image_size), _check_arguments(split, channels, data_dir)
    if isinstance(source, str) and source == "digits":
        size = size or (28, 28)
    name, path = _resolve(source)
    if path is not None and path.is_dir():
        path, files = _folder_files(path, split)
        has = (None, None, 3) if size and channels else _folder_shape(path, files, size, channels)
        count, content = len(files), [[os.path.relpath(file, path), os.path.getsize(file)] for file in files]
    elif path is not None:
        count, has, content = _npz_directory(path, split)
    elif name in (None, "digits"):
        found = _find(source, split, size, channels, data_dir)
        count, *has = found.images.shape
        array = np.ascontiguousarray(found.images)
        content = [array.shape, array.dtype.str, hashlib.sha256(array).hexdigest()]
    else:
        builder, part, key = _tfds_split(name, split, data_dir)
        count, has = part.num_examples, builder.info.features[key].shape
        content = [builder.info.full_name]
        for shard in part.file_instructions:
            length = tf.io.gfile.stat(shard.filename).length
            content.append([os.path.basename(shard.filename), length, shard.skip, shard.take])
    height, width, has_channels = has
    if size is None and None in (height, width):
        raise ValueError(f"{name} has images of different sizes: give image_size=(H, W)")
    shape = [int(side) for side in (*(size or (height, width)), channels or has_channels)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {"images": int(count), "shape": shape, "digest": digest}


# --- From images to batches. `places` holds pairs: the number of an epoch, and its first wanted batch.


def _bounds(count, shard):
    """The first row, and the one after the last, of part i of n of so many rows."""
    i, n = shard
    return count * i // n, count * (i + 1) // n


def _batches_from_memory(found, places, batch_size, seed, static_seed, shard):
    """A data set of (number of the batch since epoch 0, images as stored, int32 labels)."""
    images, targets = found.images, found.labels
    count = len(images)
    per_epoch = -(-count // batch_size)
    if static_seed is not None:
        images = _draw_all(images, static_seed)
    # As tensors, which the function below captures by reference; an array would be copied into its graph.
    # On the CPU, where tf.data runs, also if there is a GPU.
    with tf.device("CPU:0"):
        images = tf.constant(images)
        targets = tf.constant(np.zeros(count, np.int32) if targets is None else targets)

    def indices(epoch, first):
        order = tf.range(count, dtype=tf.int64)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, _fold(seed, _ORDER, epoch))

        def part(i):
            begin, end = _bounds(tf.minimum(tf.cast(batch_size, tf.int64), count - i * batch_size), shard)
            return epoch * per_epoch + i, order[i * batch_size + begin : i * batch_size + end]

        return tf.data.Dataset.range(first, per_epoch).map(part)

    def fetch(number, index):
        return number, tf.gather(images, index), tf.gather(targets, index)

    return places.flat_map(indices).map(fetch)


def _batches_from_disk(found, places, batch_size, seed, static_seed, size, channels, shard):
    """As `_batches_from_memory`, in memory that does not grow with the number of images."""
    per_epoch = -(-found.count // batch_size)
    decode = _decoder(found, size, channels, static_seed)

    def part(number, batch):
        begin, end = _bounds(tf.shape(batch)[0], shard)
        return number, *decode(batch[begin:end])

    def epoch_batches(epoch, first):
        records = found.records(None if seed is None else _fold(seed, _ORDER, epoch))
        # Skipped before they are decoded, which is most of the work.
        batches = records.skip(first * batch_size).batch(batch_size).enumerate(epoch * per_epoch + first)
        return batches.map(part, num_parallel_calls=_PARALLEL)

    return places.flat_map(epoch_batches)


def _decoder(found: _Encoded, size, channels, static_seed=None):
    """A function from a batch of records to images and labels."""
    shape = _converted_shape(found, size, channels)

    def decode(encoded):
        image = tf.ensure_shape(_convert(found.decode(encoded), size, channels, found.name), shape)
        if static_seed is not None:
            # What is drawn depends on the image, not on its place, which is another one in every epoch.
            seed = _fold(static_seed, _NOISE, tf.strings.to_hash_bucket_fast(encoded, 2**62))
            image = tf.cast(_draw(_grey(image), seed) * 255, tf.uint8)
        return image

    def decode_batch(records):
        encoded, targets = found.parse(records)
        # A loop over a batch takes a third of the time of a map of the data set over single images.
        return tf.map_fn(decode, encoded, fn_output_signature=tf.TensorSpec(shape, tf.uint8)), targets

    return decode_batch


def _decode_all(found: _Encoded, size, channels) -> _Arrays:
    images = np.empty((found.count, *_converted_shape(found, size, channels)), np.uint8)
    labels = np.empty(found.count, np.int32)
    chunks = found.records(None).batch(_CHUNK).map(_decoder(found, size, channels), num_parallel_calls=_PARALLEL)
    begin = 0
    try:
        for chunk, targets in chunks.with_options(_options()).as_numpy_iterator():
            images[begin : begin + len(chunk)], labels[begin : begin + len(chunk)] = chunk, targets
            begin += len(chunk)
    except tf.errors.OpError as error:
        named = re.search(rf"\[([^\n]*{_BROKEN})\]", error.message)
        reason = named[1] if named else f"{found.name} cannot be read: {_first_line(error.message)}"
        raise ValueError(f"{reason}: repair or remove it") from None
    if begin < found.count:
        raise ValueError(f"{found.name} holds {begin} images where {found.count} were expected: prepare it anew")
    return _Arrays(found.name, images, labels if found.labels else None)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # The thread that tunes sleeps up to a minute between two looks, and where there is one core, the end of an
    # iterator often waits for it: seconds after each evaluation and each fit.
    options.autotune.enabled = False
    return options


def _grey(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images


def _draw(images: tf.Tensor, seed: tf.Tensor, count: tf.Tensor | None = None, shard=(0, 1)) -> tf.Tensor:
    """Bernoulli draws with mean `images`, float32 in [0, 1]; the same where they are a part of `count` rows."""
    # Making noise is most of the cost, so each 32 random bits serve two pixels. 16 bits give every mean to
    # within 2^-16, and give 0 and 1 exactly.
    shape = tf.shape(images)
    if count is not None:
        shape = tf.concat([[tf.cast(count, tf.int32)], shape[1:]], 0)
    size = tf.reduce_prod(shape)
    bits = tf.random.stateless_uniform([(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32)
    noise = tf.reshape(tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[:size], shape)
    if count is not None:
        begin, end = _bounds(shape[0], shard)
        noise = noise[begin:end]
    return tf.cast(tf.cast(noise, tf.float32) < images * 65536, tf.float32)


def _draw_all(images: np.ndarray, seed: int) -> np.ndarray:
    """As `_draw` for a whole array, to uint8 0 and 255."""
    rng = np.random.default_rng([_NOISE, seed])

    def draw(chunk):
        means = chunk / np.float32(255) if chunk.dtype == np.uint8 else chunk
        return np.uint8(255) * (rng.random(chunk.shape, np.float32) < means)

    return _in_chunks(draw, images)


def _fold(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """The seed, int64 (2,), for one purpose in the epoch, batch or image of that number."""
    root = tf.constant([seed, purpose], tf.int64)
    return tf.random.experimental.stateless_fold_in(root, tf.cast(number, tf.int64))


# --- From one size and number of channels to another.


def _convert(images: tf.Tensor, size, channels, name) -> tf.Tensor:
    """Images (..., H, W, C), uint8 or float32, in the size and channels asked for (None: as they are)."""
    images = tf.convert_to_tensor(images)
    has = images.shape[-1]
    if channels not in (None, has):
        if has == 3:
            images = tf.image.rgb_to_grayscale(images)
        elif has == 1:
            images = tf.image.grayscale_to_rgb(images)
        else:
            raise ValueError(f"channels={channels}, but {name} has {has} channels: only 1 and 3 can be converted")
    if size is not None and size != tuple(images.shape[-3:-1]):
        resized = tf.image.resize(images, size, antialias=True)
        if images.dtype == tf.uint8:
            images = tf.saturate_cast(tf.round(resized), tf.uint8)
        else:
            images = tf.clip_by_value(resized, 0.0, 1.0)  # rounding can lead just above 1
    return images


def _converted_shape(found: _Encoded, size, channels) -> tuple[int, int, int]:
    height, width, has = found.shape
    if size is None and None in (height, width):
        raise ValueError(f"{found.name} has images of different sizes: give image_size=(H, W)")
    return (*(size or (height, width)), channels or has)


def _in_chunks(function, images: np.ndarray) -> np.ndarray:
    """function(images), in pieces, so that it needs little memory besides its result."""
    result = None
    for begin in range(0, len(images), _CHUNK):
        piece = function(images[begin : begin + _CHUNK])
        if result is None:
            result = np.empty((len(images), *piece.shape[1:]), piece.dtype)
        result[begin : begin + _CHUNK] = piece
    return result


# --- Sources.


def _find(source, split, size, channels, data_dir) -> _Arrays | _Encoded:
    name, path = _resolve(source)
    if name is None:
        _check_split("an array", split, ["train"])
        return _arrays("the array", source, None)
    if path is not None:
        return _folder(path, split, size, channels) if path.is_dir() else _npz(path, split)
    return _digits(split) if name == "digits" else _tfds(name, split, data_dir)


def _resolve(source) -> tuple[str | None, pathlib.Path | None]:
    """The name of a source, None for an array; and its path, a folder or an .npz file, None if it is no path."""
    if isinstance(source, np.ndarray):
        return None, None
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source is a {type(source).__name__}: give the name of a data set ({_quoted(_BUILT_IN)} or "
            "another of TFDS), a NumPy array, or the path of an .npz file or a folder of images"
        )
    name = os.fspath(source)
    if name == "digits":
        return name, None
    path = pathlib.Path(name).expanduser()
    if name and name not in _BUILT_IN and path.exists():
        if path.is_dir() or path.suffix.lower() == ".npz":
            return name, path
        raise ValueError(f"{path} is neither a folder of PNG or JPEG images nor an .npz file")
    if not isinstance(source, str) or path.suffix.lower() == ".npz" or name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"{path} does not exist: give the path of a folder of images or of an .npz file")
    return name, None


def _digits(split) -> _Arrays:
    _check_split("digits", split, ["train", "test"])
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    test = np.arange(len(images)) % 5 == 0
    chosen = test if split == "test" else ~test
    images = (images[chosen] / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    return _Arrays("digits", images, labels[chosen].astype(np.int32))


def _arrays(name, images, labels) -> _Arrays:
    """Checks that arrays hold what `load` promises to read."""
    given = f"{name} has shape {images.shape} and dtype {images.dtype}"
    if images.ndim not in (3, 4):
        raise ValueError(f"{given}: images must be (n, H, W) or (n, H, W, C)")
    if images.size == 0:
        raise ValueError(f"{given}: it holds no images")
    if np.issubdtype(images.dtype, np.floating):
        low, high = images.min(), images.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{name} holds NaN or infinite values: pixels must be in [0, 1]")
        if low < 0 or high > 1:
            hint = "divide them by 255" if low >= 0 and high <= 255 else "scale them to it"
            raise ValueError(f"{name} holds values from {low:.9g} to {high:.9g}: pixels must be in [0, 1], {hint}")
        images = images.astype(np.float32, copy=False)
    elif images.dtype != np.uint8:
        raise ValueError(f"{given}: pixels must be uint8 in 0..255 or floating point in [0, 1], so convert them")
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"the labels of {name} have shape {labels.shape} and dtype {labels.dtype}: they must be "
                f"integers, one for each of the {len(images)} images"
            )
        labels = labels.astype(np.int32)
    return _Arrays(name, images[..., np.newaxis] if images.ndim == 3 else images, labels)


def _npz(path, split) -> _Arrays:
    with _open_npz(path) as file:
        image_key, label_key = _npz_keys(path, split, set(file.files))
        with _reading(path):
            images = file[image_key]
            labels = file[label_key] if label_key else None
    for key, array in ((image_key, images), (label_key, labels)):
        if not isinstance(array, (np.ndarray, type(None))):  # of a member that is no .npy file, its bytes
            raise ValueError(f"{path} holds {key!r}, which is no NumPy array: write the file with numpy.savez")
    return _arrays(f"{image_key} in {path}", images, labels)


def _npz_directory(path, split) -> tuple[int, tuple[int, ...], list]:
    """The number and the shape of the images, and [name, size, CRC-32] of the arrays, without reading these."""
    with _open_npz(path) as file:
        image_key, label_key = _npz_keys(path, split, set(file.files))
        with _reading(path):
            members = [file.zip.getinfo(f"{key}.npy") for key in (image_key, label_key) if key]
            with file.zip.open(members[0]) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape = read(member)[0]
    if len(shape) not in (3, 4):
        raise ValueError(f"{image_key} in {path} has shape {shape}: images must be (n, H, W) or (n, H, W, C)")
    return shape[0], (*shape, 1)[1:4], [[member.filename, member.file_size, member.CRC] for member in members]


@contextlib.contextmanager
def _open_npz(path):
    with contextlib.ExitStack() as stack:
        with _reading(path):
            if not zipfile.is_zipfile(path):
                raise zipfile.BadZipFile("it is not a zip archive, or only a part of one")
            file = stack.enter_context(np.load(path, allow_pickle=False))
        yield file


def _npz_keys(path, split, keys) -> tuple[str, str | None]:
    """The names of the arrays with the images and the labels of a split."""
    splits = sorted(key[2:] for key in keys if key.startswith("x_"))
    others = keys - {"labels", "y_train"}
    if splits:
        _check_split(path, split, splits)
        image_key, label_key = f"x_{split}", f"y_{split}"
    elif "images" in keys or len(others) == 1:
        _check_split(path, split, ["train"])
        image_key = "images" if "images" in keys else others.pop()
        label_key = "labels" if "labels" in keys else "y_train"
    else:
        raise ValueError(
            f"{path} holds the arrays {_quoted(sorted(keys))}: name them images (and labels), "
            "or x_train and x_test (and y_train and y_test)"
        )
    return image_key, label_key if label_key in keys else None


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs and NumPy
        raise ValueError(f"{path} is not a whole .npz file: {_first_line(error)}") from error


def _folder_files(path, split) -> tuple[pathlib.Path, list[str]]:
    """The folder of a split, and the paths of its images."""
    subfolders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if {"train", "test"} & set(subfolders):
        _check_split(path, split, subfolders)
        path = path / split
    else:
        _check_split(path, split, ["train"])
    # Hidden files are no images, whatever their suffix: macOS leaves such behind.
    # Plain strings: of all that is kept for an image, only they are many.
    files = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")
    ]
    files = sorted(filter(os.path.isfile, files), key=lambda file: file.replace(os.sep, "\0"))  # folder by folder
    if not files:
        raise ValueError(f"{path} holds no images: files ending in .png, .jpg or .jpeg are read")
    return path, files


def _folder_shape(path, files, size, channels) -> tuple[int | None, int | None, int]:
    """The shape of the images as decoded, from their headers; None where they differ."""
    headers = {_header(file): file for file in files}
    for what, place, fixed, argument in (
        ("sizes (H, W)", slice(2), size, "image_size=(H, W)"),
        ("numbers of channels", slice(2, 3), channels, "channels=1 or 3"),
    ):
        kinds = {header[place]: file for header, file in headers.items()}
        if fixed is None and len(kinds) > 1:
            (one, first), (two, second) = sorted(kinds.items())[:2]
            raise ValueError(f"{path} holds images of different {what}: {first} {one}, {second} {two}: give {argument}")
    sizes = {header[:2] for header in headers}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    # Decoded to grey only if all are: colours are made grey by `_convert`, in the same way for every source.
    return height, width, max(header[2] for header in headers)


def _folder(path, split, size, channels) -> _Encoded:
    path, files = _folder_files(path, split)
    height, width, decoded_channels = _folder_shape(path, files, size, channels)
    names, count = tf.constant(files), len(files)

    def records(seed):
        order = tf.range(count)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, seed)
        return tf.data.Dataset.from_tensor_slices(tf.gather(names, order))

    def parse(chosen):
        return chosen, tf.zeros(tf.shape(chosen), tf.int32)

    def read(name):
        image = tf.io.decode_image(tf.io.read_file(name), channels=decoded_channels, expand_animations=False)
        return tf.ensure_shape(image, (height, width, decoded_channels))

    def fail(name):
        broken = tf.debugging.Assert(tf.equal(name, ""), [tf.strings.join([name, " ", _BROKEN])])
        with tf.control_dependencies([broken]):
            return tf.zeros([height or 1, width or 1, decoded_channels], tf.uint8)

    def decode(name):
        # The error of a decoder does not say which file it is about: this one does.
        once = tf.data.Dataset.from_tensors(name)
        either = once.map(read).ignore_errors().concatenate(once.map(fail)).take(1)
        return either.get_single_element()

    return _Encoded(str(path), count, (height, width, decoded_channels), False, records, parse, decode)


def _header(path: str) -> tuple[int, int, int]:
    """(height, width, channels) from the beginning of a PNG or JPEG; channels is 1 or 3, alpha aside."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width, 1 if image.mode in ("1", "L", "LA", "I", "I;16", "I;16B") else 3
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(f"{path} {_BROKEN}: repair or remove it") from error


def _tfds_split(name, split, data_dir):
    """The builder of a TFDS data set, prepared; the information on its split; and the name of its images."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except Exception as error:  # TFDS has many for a name, configuration or version that it does not know
        known = sorted({*_BUILT_IN, *tfds.list_builders(with_community_datasets=False)})
        if re.split("[/:]", name)[0] in known:
            raise ValueError(f"{name!r} is not a data set of TFDS: {_first_line(error)}") from error
        near = difflib.get_close_matches(name, known)
        raise ValueError(
            f"{name!r} is neither a path that exists nor a known data set: known are {_quoted(_BUILT_IN)}, and "
            f"those of TFDS{'. Did you mean ' + _quoted(near, 'or') + '?' if near else ''}"
        ) from error
    features = builder.info.features
    images = [k for k, f in (features or {}).items() if isinstance(f, tfds.features.Image) and f.np_dtype == np.uint8]
    if not images:
        raise ValueError(f"the TFDS data set {name!r} has no 8-bit images: it has {', '.join(features or {})}")
    # is_prepared() logs a warning where there is no folder yet.
    if not (builder.data_path.exists() and builder.is_prepared()):
        _download(builder, name)
    try:
        part = builder.info.splits[split]
    except (ValueError, KeyError):
        _check_split(name, split, list(builder.info.splits))
        raise
    if not part.num_examples:
        raise ValueError(f"split {split!r} of {name} is empty")
    if builder.info.file_format.value != "tfrecord":
        raise ValueError(f"{builder.data_path} holds {builder.info.file_format.value} files: prepare it as tfrecord")

    return builder, part, "image" if "image" in images else images[0]


def _tfds(name, split, data_dir) -> _Encoded:
    import tensorflow_datasets as tfds

    builder, part, key = _tfds_split(name, split, data_dir)
    features = builder.info.features
    # Read here and not by TFDS, which parses and decodes each example on its own: that takes four times as long.
    files = tf.constant([shard.filename for shard in part.file_instructions])
    bounds = tf.constant([(shard.skip, shard.take) for shard in part.file_instructions], tf.int64)

    def shard_records(i):
        return tf.data.TFRecordDataset(files[i]).skip(bounds[i, 0]).take(bounds[i, 1])

    def records(seed):
        order = tf.range(len(files))
        if seed is None:
            return tf.data.Dataset.from_tensor_slices(order).flat_map(shard_records)
        order = tf.random.experimental.stateless_shuffle(order, seed)
        mixed = tf.data.Dataset.from_tensor_slices(order).interleave(shard_records, cycle_length=16)
        # tf.data's own shuffle depends on the global seed too.
        windows = mixed.batch(SHUFFLE_BUFFER).enumerate()
        return windows.map(
            lambda i, window: tf.random.experimental.stateless_shuffle(
                window, tf.random.experimental.stateless_fold_in(seed, i + 1)
            )
        ).unbatch()

    stored = {key: tf.io.FixedLenFeature((), tf.string)}
    labelled = isinstance(dict(features).get("label"), tfds.features.ClassLabel)
    if labelled:
        stored["label"] = tf.io.FixedLenFeature((), tf.int64)

    def parse(chosen):
        example = tf.io.parse_example(chosen, stored)
        return example[key], tf.cast(example["label"], tf.int32) if labelled else tf.zeros(tf.shape(chosen), tf.int32)

    shape = tuple(features[key].shape)
    return _Encoded(name, part.num_examples, shape, labelled, records, parse, features[key].decode_example)


def _download(builder, name) -> None:
    """Downloads and prepares a TFDS data set, whole or not at all."""
    import tensorflow_datasets as tfds

    place = pathlib.Path(builder.data_path)
    root = place.parents[2 if builder.builder_config else 1]
    advice = (
        f"{name} is not in {place} and must be downloaded. Without a network, set TFDS_DATA_DIR to a folder "
        'that has it, or use "digits", which needs no download'
    )
    # TFDS would retry for minutes before it gives up.
    hosts = {
        (url.hostname, url.port or (80 if url.scheme == "http" else 443))
        for url in map(urllib.parse.urlparse, builder.url_infos or ())
        if url.hostname
    }
    for host, port in [] if urllib.request.getproxies() else sorted(hosts):
        try:
            socket.create_connection((host, port), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"{advice}. ({host} cannot be reached: {error})") from error

    made = [p for p in (place, *place.parents) if not p.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root, ignore_cleanup_errors=True) as scratch:
            builder.download_and_prepare(
                download_dir=scratch,
                download_config=tfds.download.DownloadConfig(manual_dir=root / "downloads" / "manual"),
            )
    except PermissionError as error:
        raise PermissionError(f"{root} cannot be written: {advice}") from error
    except Exception as error:
        raise ConnectionError(f"{advice}. ({_first_line(error)})") from error
    finally:
        for folder in made:  # the innermost first; only empty folders can be removed
            with contextlib.suppress(OSError):
                folder.rmdir()


# --- Arguments.


def _integer(name, value, least) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: give an integer of at least {least}") from None
    if not least <= value < 2**63:
        raise ValueError(f"{name}={value}: give an integer of at least {least}" + " and below 2^63" * (value > 0))
    return value


def _check_arguments(split, channels, data_dir) -> None:
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise ValueError(f"channels={channels!r}: give 1 (grey), 3 (RGB), or None to leave the images as they are")
    if not isinstance(split, str):
        raise TypeError(f'split={split!r}: give the name of a split, such as "train" or "test"')
    if not isinstance(data_dir, (str, os.PathLike, type(None))):
        raise TypeError(f"data_dir={data_dir!r}: give the path of a folder, or None")


def _image_size(value) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"image_size={value!r}: give (H, W), or one integer for both")
    size = tuple(_integer("image_size", side, 1) for side in pair)
    if max(size) >= 2**31:
        raise ValueError(f"image_size={value!r}: give integers below 2^31")
    return size


def _shard(value) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"shard={value!r}: give (i, n), to get part i of the n parts of every batch")
    i, n = _integer("shard[0]", value[0], 0), _integer("shard[1]", value[1], 1)
    if i >= n:
        raise ValueError(f"shard={value!r}: of {n} parts, give one from 0 to {n - 1}")
    return i, n


def _check_split(name, split, splits) -> None:
    if split not in splits:
        raise NoSuchSplit(f"{name} has no split {split!r}: it has {_quoted(splits)}")


def _quoted(names, conjunction="and") -> str:
    *most, last = [f'"{name}"' for name in names] or ["none"]
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def _first_line(error) -> str:
    # zipfile quotes up to 64 KiB of a damaged file.
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
