"""The history of a run as TensorBoard events, named as keras.callbacks.TensorBoard names them; and its pictures."""

from __future__ import annotations

import shutil

import numpy as np
import tensorflow as tf

from tf_isvae.training.run_directory import RunDirectory


class Events:
    """Events in <run directory>/tensorboard/train and /validation. Those that are there already are replaced.

    Pictures are in /samples. Those that are there already stay: a run that is resumed cannot draw them again.
    """

    def __init__(self, directory: RunDirectory):
        self._folder = directory.path / "tensorboard"
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        if directory.writable:
            for part in ("train", "validation"):
                shutil.rmtree(self._folder / part, ignore_errors=True)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """The values of one epoch, counted from 0 as Keras does."""
        for name, value in values.items():
            with self._writer("validation" if name.startswith("val_") else "train").as_default():
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value, step=epoch)
        for writer in self._writers.values():
            writer.flush()

    def write_picture(self, epoch: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 (height, width, 3), after one epoch, counted from 0."""
        with self._writer("samples").as_default() as writer:
            tf.summary.image(name, picture[None], step=epoch)
            writer.flush()

    def _writer(self, part: str) -> tf.summary.SummaryWriter:
        if part not in self._writers:
            self._writers[part] = tf.summary.create_file_writer(str(self._folder / part))
        return self._writers[part]
