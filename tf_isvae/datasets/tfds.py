"""Data sets of TensorFlow Datasets, read from the files that it prepares."""

from __future__ import annotations

import contextlib
import difflib
import os
import pathlib
import re
import socket
import tempfile
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf

from tf_isvae.datasets.bundled import DATASETS
from tf_isvae.datasets.sources import Encoded, check_split, first_line, quoted
from tf_isvae.datasets.splits import Split

# Records can only be read in sequence, so a stream of them is shuffled within this many images.
SHUFFLE_BUFFER = 10_000

# Names that win over a path of the same name.
NAMES = ("mnist", "fashion_mnist")


class Tfds(Encoded):
    """One split, or a slice of one, of a TFDS data set, which is downloaded if it is not prepared.

    Args:
      name: "name", "name:version" or "name/config:version".
      split: the split, whose text may be whatever TFDS reads.
      data_dir: where TFDS keeps its data; None for its own default.
    """

    def __init__(self, name: str, split: Split, data_dir: str | os.PathLike | None):
        import tensorflow_datasets as tfds

        builder = _builder(name, data_dir)
        features = dict(builder.info.features or {})
        images = [k for k, f in features.items() if isinstance(f, tfds.features.Image) and f.np_dtype == np.uint8]
        if not images:
            raise ValueError(f"the TFDS data set {name!r} has no 8-bit images: it has {', '.join(features)}.")
        # is_prepared() logs a warning if there is no folder yet.
        if not (builder.data_path.exists() and builder.is_prepared()):
            _download(builder, name)
        try:
            part = builder.info.splits[split.in_tfds(lambda name: builder.info.splits[name].num_examples)]
        except (ValueError, KeyError):
            if split.share is None or split.name not in builder.info.splits:
                check_split(name, split.text if split.share is None else split.name, list(builder.info.splits))
            raise
        if not part.num_examples:
            raise ValueError(f"split is {split.text!r}; it must have at least 1 image: this one of {name} is empty.")
        if (file_format := builder.info.file_format.value) != "tfrecord":
            raise ValueError(
                f"{builder.data_path} holds {file_format} files; they must be tfrecord: prepare it as such."
            )
        self.name, self.count = name, part.num_examples
        self._full_name, self._files = builder.info.full_name, part.file_instructions
        self._image_key = "image" if "image" in images else images[0]
        self._image = features[self._image_key]
        self.shape = tuple(self._image.shape)
        self.has_labels = isinstance(features.get("label"), tfds.features.ClassLabel)

    def contents(self):
        sizes = [tf.io.gfile.stat(file.filename).length for file in self._files]
        return [
            self._full_name,
            *(
                [os.path.basename(file.filename), size, file.skip, file.take]
                for file, size in zip(self._files, sizes, strict=True)
            ),
        ]

    def records(self, seed):
        # Read here and not by TFDS, which parses and decodes each example on its own: that takes four times as long.
        files = tf.constant([file.filename for file in self._files])
        counts = [file.take if file.take >= 0 else file.examples_in_shard - file.skip for file in self._files]
        begins = np.cumsum([0, *counts[:-1]])
        bounds = tf.constant([(f.skip, f.take, b) for f, b in zip(self._files, begins, strict=True)], tf.int64)

        def pairs(i):
            # Not `tf.unstack(bounds[i])`, with which TensorFlow 2.21 crashes here.
            return tf.data.TFRecordDataset(files[i]).skip(bounds[i, 0]).take(bounds[i, 1]).enumerate(bounds[i, 2])

        order = tf.range(len(self._files))
        if seed is None:
            return tf.data.Dataset.from_tensor_slices(order).flat_map(pairs)
        order = tf.random.experimental.stateless_shuffle(order, seed)
        mixed = tf.data.Dataset.from_tensor_slices(order).interleave(pairs, cycle_length=16)

        # tf.data's own shuffle depends on the global seed too.
        def shuffled(number, window):
            window_seed = tf.random.experimental.stateless_fold_in(seed, number + 1)
            places = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(window[0])[0]), window_seed)
            return tuple(tf.gather(part, places) for part in window)

        return mixed.batch(SHUFFLE_BUFFER).enumerate().map(shuffled).unbatch()

    def parse(self, index, records):
        stored = {self._image_key: tf.io.FixedLenFeature((), tf.string)}
        if self.has_labels:
            stored["label"] = tf.io.FixedLenFeature((), tf.int64)
        example = tf.io.parse_example(records, stored)
        labels = tf.cast(example["label"], tf.int32) if self.has_labels else tf.zeros(tf.shape(records), tf.int32)
        return example[self._image_key], labels

    def decode(self, encoded):
        return self._image.decode_example(encoded)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except Exception as error:  # TFDS has many for a name, configuration or version that it does not know
        known = sorted({*NAMES, *DATASETS, *tfds.list_builders(with_community_datasets=False)})
        if re.split("[/:]", name)[0] in known:
            raise ValueError(f"{name!r} is not a data set of TFDS: {first_line(error)}") from error
        near = difflib.get_close_matches(name, known)
        raise ValueError(
            f"source is {name!r}; it must be a path that exists or a known data set: known are "
            f"{quoted((*NAMES, *DATASETS))}, and those of TFDS."
            f"{' Did you mean ' + quoted(near, 'or') + '?' if near else ''}"
        ) from error


def _download(builder, name) -> None:
    """Downloads and prepares a TFDS data set, whole or not at all."""
    import tensorflow_datasets as tfds

    folder = pathlib.Path(builder.data_path)
    root = folder.parents[2 if builder.builder_config else 1]
    advice = (
        f"{name} is not in {folder} and must be downloaded. Without a network, set TFDS_DATA_DIR to a folder "
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

    made = [p for p in (folder, *folder.parents) if not p.exists()]
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
        raise ConnectionError(f"{advice}. ({first_line(error)})") from error
    finally:
        for made_folder in made:  # the innermost first; only empty folders can be removed
            with contextlib.suppress(OSError):
                made_folder.rmdir()
