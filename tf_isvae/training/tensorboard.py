"""The history of a run as TensorBoard events, named as keras.callbacks.TensorBoard names them."""

from __future__ import annotations

import shutil

import tensorflow as tf

from tf_isvae.training.run_directory import RunDirectory


class Events:
    """Events in <run directory>/tensorboard/train and /validation. Those that are there already are replaced."""

    def __init__(self, directory: RunDirectory):
        self._folder = directory.path / "tensorboard"
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        if directory.writable:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """The values of one epoch, counted from 0 as Keras does."""
        for name, value in values.items():
            part = "validation" if name.startswith("val_") else "train"
            if part not in self._writers:
                self._writers[part] = tf.summary.create_file_writer(str(self._folder / part))
            with self._writers[part].as_default():
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value, step=epoch)
        for writer in self._writers.values():
            writer.flush()
