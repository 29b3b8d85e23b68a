"""Rows, a chunk at a time: those of an array, or the images of a data set whose batches may have any size.

What takes long shows a progress bar on the standard error, unless Keras's interactive logging is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import checks

# A progress bar appears after so many seconds.
PATIENCE = 5.0


def of_array(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs (number of the first row, at most `size` rows)."""
    with _progress(len(rows)) as progress:
        for i in range(0, len(rows), size):
            chunk = rows[i : i + size]
            yield i, chunk
            progress.update(len(chunk))


def of_images(images, image_shape: tuple[int, int, int], size: int) -> Iterator[tuple[int, np.ndarray | tf.Tensor]]:
    """Pairs (number of the first image, at most `size` images, float32) of an array or a data set.

    They are arrays, and tensors of a data set, which need not be copied for a model. A data set gives the chunks that
    the array of all its images would give; labels are left out. An array is checked before its first chunk, a data set
    chunk by chunk.

    Raises:
        TypeError, ValueError: as `checks.images`; or a data set without a batch, or without an end.

    Example:
        >>> from tf_isvae import chunks
        >>> data = tf.data.Dataset.from_tensor_slices((np.zeros((5, 8, 8, 1)), range(5))).batch(3)
        >>> [(i, len(images)) for i, images in chunks.of_images(data, (8, 8, 1), 4)]
        [(0, 4), (4, 1)]
    """
    if not isinstance(images, tf.data.Dataset):
        return of_array(checks.images("images", images, image_shape), size)
    if images.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("images come as a data set without an end; it must have one: images.take(batches) has.")
    checks.training_images("images", images, image_shape)
    return _of_data_set(images.map(_only_images).rebatch(size), image_shape)


def collected(function: Callable, rows: Iterator[tuple[int, np.ndarray | tf.Tensor | tuple]], *seeds: tf.Tensor):
    """function(*tensors of the rows, *seeds) of each chunk, with seeds of the chunk's own.

    Returns the results as one array, or as a tuple of arrays if the function gives several tensors.
    """
    fold_in, results = tf.random.experimental.stateless_fold_in, []
    for i, chunk in rows:
        result = function(*map(tf.constant, parts_of(chunk)), *(fold_in(seed, i) for seed in seeds))
        results.append([part.numpy() for part in parts_of(result)])
    arrays = tuple(map(np.concatenate, zip(*results, strict=True)))
    return arrays if len(arrays) > 1 else arrays[0]


def parts_of(rows) -> tuple:
    """What comes alone or as a tuple, as a tuple: `encode` gives codes, or a pair of codes and features."""
    return rows if isinstance(rows, tuple) else (rows,)


def _only_images(*batch) -> tf.Tensor:
    return keras.utils.unpack_x_y_sample_weight(batch if len(batch) > 1 else batch[0])[0]


def _of_data_set(batches: tf.data.Dataset, image_shape: tuple[int, int, int]) -> Iterator:
    done = 0
    with _progress(None) as progress:
        for batch in batches:
            images = checks.images("images", batch, image_shape)
            # The tensor itself, which a model need not copy; what has another dtype comes converted.
            yield done, batch if batch.dtype == tf.float32 else images
            done += len(batch)
            progress.update(len(batch))


def _progress(total: int | None):
    import tqdm  # which `import tf_isvae` does not need

    shown = keras.config.is_interactive_logging_enabled()
    return tqdm.tqdm(total=total, unit=" images", delay=PATIENCE, disable=not shown, leave=False)
