"""The images of a run."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_isvae import datasets
from tf_isvae.training.config import Config
from tf_isvae.training.workers import Workers


class Data:
    """What a run trains on from step `start` on, and what it is tested on; this worker's part of each batch.

    train             all batches that are left, so that the data is read once
    test              one pass over the test images, or over those that are held out of the training images for that;
                      None if there are none
    steps_per_epoch   batches of one pass over the training images
    identity          JSON values that tell whether a run is resumed on the same images
    """

    def __init__(self, config: Config, start: int, workers: Workers):
        self._config = config
        shard = (workers.index, workers.count)
        self.train = self._load("train", epochs=config.epochs, start=start, shard=shard)
        self.steps_per_epoch = (int(self.train.cardinality()) + start) // config.epochs
        self._test_split = "validation" if config.validation_split else "test"
        try:
            self.test = self._load(self._test_split, shard=shard)
        except datasets.NoSuchSplit:
            self.test = None
        splits = ("train",) if self.test is None else ("train", self._test_split)
        self.identity = {split: self._identity(split) for split in splits}

    def _identity(self, split: str) -> dict:
        config = self._config
        return datasets.fingerprint(
            config.dataset,
            split,
            image_size=config.image_size,
            channels=config.channels,
            data_dir=config.data_dir,
            validation_split=config.validation_split,
            validation_seed=config.seed,
        )

    def _load(self, split: str, **options) -> tf.data.Dataset:
        config = self._config
        return datasets.load(
            config.dataset,
            split,
            batch_size=config.batch_size,
            seed=config.seed if split == "train" else None,
            image_size=config.image_size,
            channels=config.channels,
            # The test images are drawn once, so that all epochs, also those of a resumed run, see the same.
            binarize="static" if config.binarize and split != "train" else config.binarize,
            data_dir=config.data_dir,
            validation_split=config.validation_split,
            validation_seed=config.seed,
            **options,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.train.element_spec.shape[1:])

    def held_out(self, count: int) -> np.ndarray:
        """`count` images of this worker's test set, or of what is left to train on if there is none."""
        images = self.train if self.test is None else self.test
        return next(iter(images.unbatch().batch(count))).numpy()

    def training_images(self) -> tf.data.Dataset:
        """One pass over all training images, of all workers."""
        return self._load("train")

    def first_images(self, count: int) -> np.ndarray:
        """The first test images, or those of the first training batch; the same for a resumed run."""
        return next(iter(self._load("train" if self.test is None else self._test_split))).numpy()[:count]
