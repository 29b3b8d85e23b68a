"""Images in batches: which image is in which batch of which epoch, in memory and from disk.

`places` is a data set of pairs: the number of an epoch, and its first wanted batch. What is returned is a data set of
triples: the number of the batch, counted from the beginning of epoch 0; its images as stored; int32 labels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_isvae.datasets import conversion, noise
from tf_isvae.datasets.sources import Encoded


def every_epoch(per_epoch: int) -> tf.data.Dataset:
    """`places` of a data set of one epoch, in which each iteration is the next epoch."""
    # The count of iterations lives in Python: a tf.Variable made under a distribution strategy would be
    # replicated, and tf.data cannot update those.
    counter = itertools.count()

    def place(_):
        epoch = tf.numpy_function(lambda: np.int64(next(counter)), [], tf.int64)
        return tf.ensure_shape(epoch, ()), tf.constant(0, tf.int64)

    # Not Dataset.from_generator, for which TensorFlow sets M_MMAP_THRESHOLD of glibc to 128 KiB: the memory of all
    # that is larger would be taken from the system again at each use (docs/speed.md).
    return tf.data.Dataset.range(1).map(place)


def epochs_from(start: int, epochs: int, per_epoch: int) -> tf.data.Dataset:
    """`places` of a data set of `epochs` epochs without its first `start` batches."""
    first_epoch, first_batch = divmod(start, per_epoch)
    places = tf.data.Dataset.range(first_epoch, epochs)
    return places.map(lambda epoch: (epoch, tf.where(epoch == first_epoch, tf.cast(first_batch, tf.int64), 0)))


def from_memory(images: np.ndarray, labels: np.ndarray | None, places, batch_size, seed, shard) -> tf.data.Dataset:
    """Batches of arrays; seed is None for the order of the source.

    Of a numpy.memmap, the images of a batch are read from its file when their turn comes.
    """
    count = len(images)
    per_epoch = -(-count // batch_size)
    # As tensors, which the function below captures by reference; an array would be copied into its graph.
    # On the CPU, where tf.data runs, also if there is a GPU.
    with tf.device("CPU:0"):
        rows_of = (
            _reader(images) if isinstance(images, np.memmap) else functools.partial(tf.gather, tf.constant(images))
        )
        labels = tf.constant(np.zeros(count, np.int32) if labels is None else labels)

    def indices(epoch, first):
        order = tf.range(count, dtype=tf.int64)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, noise.fold(seed, noise.ORDER, epoch))

        def part(i):
            begin, end = noise.bounds(tf.minimum(tf.cast(batch_size, tf.int64), count - i * batch_size), shard)
            return epoch * per_epoch + i, order[i * batch_size + begin : i * batch_size + end]

        return tf.data.Dataset.range(first, per_epoch).map(part)

    def fetch(number, index):
        return number, rows_of(index), tf.gather(labels, index)

    return places.flat_map(indices).map(fetch)


def _reader(images: np.memmap) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from indices to these images."""

    def read(index):
        rows = tf.numpy_function(lambda rows: images[rows], [index], images.dtype, stateful=False)
        return tf.ensure_shape(rows, (None, *images.shape[1:]))

    return read


def from_disk(source: Encoded, size, channels, static_seed, places, batch_size, seed, shard) -> tf.data.Dataset:
    """Batches of a source that is decoded in every epoch, in memory that does not grow with the number of images.

    static_seed: the seed of `noise.static`; None to leave the images as they are.
    """
    per_epoch = -(-source.count // batch_size)
    decode = conversion.decoder(source, size, channels)

    def part(number, batch):
        index, records = batch
        begin, end = noise.bounds(tf.shape(records)[0], shard)
        index, images, labels = decode(index[begin:end], records[begin:end])
        if static_seed is not None:
            images = noise.static_in_any_order(images, index, static_seed)
        return number, images, labels

    def epoch_batches(epoch, first):
        records = source.records(None if seed is None else noise.fold(seed, noise.ORDER, epoch))
        # Skipped before they are decoded, which is most of the work.
        batches = records.skip(first * batch_size).batch(batch_size).enumerate(epoch * per_epoch + first)
        return batches.map(part, num_parallel_calls=conversion.PARALLEL)

    return places.flat_map(epoch_batches)
