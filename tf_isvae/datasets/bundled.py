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


def photo_patches(split: str) -> Source:
    """Patches of 32x32 pixels in colour of the two photographs of scikit-learn, 427x640: a temple, and a flower.

    "test" are the 104 that tile two stripes of 64 pixels of each; "train" are the 5,500 that lie 8 pixels apart in what
    is left. No pixel is in both. The label is the number of the photograph.
    """
    check_split("photo_patches", split, ["train", "test"])
    from sklearn.datasets import load_sample_images

    step = 32 if split == "test" else 8
    images, labels = [], []
    for label, photo in enumerate(load_sample_images().images):
        for begin, end in _STRIPES[split]:
            for top in range(0, photo.shape[0] - 31, step):
                for left in range(begin, end - 31, step):
                    images.append(photo[top : top + 32, left : left + 32])
                    labels.append(label)
    return Arrays("photo_patches", np.stack(images), np.array(labels, np.int32))


# The columns of the photographs that a split is cut from.
_STRIPES = {"train": ((0, 128), (192, 448), (512, 640)), "test": ((128, 192), (448, 512))}

DATASETS: dict[str, Callable[[str], Source]] = {"digits": digits, "photo_patches": photo_patches}
