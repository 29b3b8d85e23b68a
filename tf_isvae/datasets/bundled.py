"""Data sets that need no download. To add one, write a function of the split and name it in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tf_isvae.datasets.arrays import Arrays
from tf_isvae.datasets.sources import Source, check_split


def digits(split: str) -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8 in 17 grey levels, every fifth of them in "test"."""
    check_split("digits", split, ["train", "test"])
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    test = np.arange(len(images)) % 5 == 0
    chosen = test if split == "test" else ~test
    images = (images[chosen] / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    return Arrays("digits", images, labels[chosen].astype(np.int32), default_size=(28, 28))


DATASETS: dict[str, Callable[[str], Source]] = {"digits": digits}
