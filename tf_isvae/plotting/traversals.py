"""What one continuous variable of a hybrid latent does in every category (paper, section 7)."""

from __future__ import annotations

import os

import numpy as np

from tf_isvae import checks
from tf_isvae.chunks import parts_of
from tf_isvae.model import DiscreteVAE, check_model
from tf_isvae.plotting import mosaics, png

# Standard deviations to both sides, and categories that are shown: the commonest.
_REACH, _ROWS = 2.0, 10
# Fewer images of a code say little of how far its features reach: of 40 bits, nearly every image has a code of its own.
_ENOUGH = 10


def traversals(
    model: DiscreteVAE,
    images,
    path: str | os.PathLike,
    feature: int | None = None,
    columns: int = 9,
    title: str | None = None,
) -> int:
    """Draws a row for each category, a column for each value of one feature; the others stay at their mean.

    Each row is labelled with its code and the share of the images that have it. Mean and standard deviation are those
    of the features of these images; the feature runs through two standard deviations to both sides of its mean. (The
    standard deviation is that of all images, for a code that fewer than ten images have: a code of many bits.)

    Args:
        model: a DiscreteVAE whose latent has discrete and continuous parts.
        images: (n, H, W, C) in [0, 1], from which categories and features come; the ten commonest codes are shown.
        path: the PNG to write, in a folder that exists.
        feature: which; None for the one that changes most in the images.
        columns: how many values.
        title: a line above the images.

    Returns:
        Which feature it is.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument is not as described.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> model = zoo.build("fc_hvae", image_shape=(4, 4, 1), latent_dim="2x3")
        >>> images = np.random.default_rng(0).random((9, 4, 4, 1), np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.traversals(model, images, Path(folder) / "rows.png", feature=1)
        1
    """
    check_model(model)
    path = png.check_path(path)
    columns = checks.integer("traversals: columns", columns, 2)
    count = model.latent.feature_units
    if not count or model.latent.code_values is None:
        raise ValueError(
            f"the model's latent is {type(model.latent).__name__} without continuous parts beside discrete ones; it "
            "must be a ProductLatent that has both."
        )
    if feature is not None:
        feature = checks.integer("traversals: feature", feature, 0, count)
    codes, features = parts_of(model.encode(images))
    kinds, which, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    which = which.ravel()
    shown = np.sort(np.argsort(-sizes, kind="stable")[:_ROWS])

    def row(kind: int, feature: int, columns: int) -> np.ndarray:
        own = features[which == kind]
        path_of = np.tile(own.mean(axis=0), (columns, 1))
        spread = (own if len(own) >= _ENOUGH else features)[:, feature].std()
        path_of[:, feature] += np.linspace(-_REACH, _REACH, columns) * spread
        return model.decode(np.tile(kinds[kind], (columns, 1)), path_of)

    if feature is None:
        change = [sum(np.abs(np.diff(row(kind, i, 2), axis=0)).sum() for kind in shown) for i in range(count)]
        feature = int(np.argmax(change))
    # Many entries of one digit each, such as bits, stand side by side.
    comma = "" if kinds.shape[1] > 4 and kinds.max() < 10 else ", "
    names = {kind: comma.join(map(str, kinds[kind])) for kind in shown}
    rows = {f"{names[kind]}: {sizes[kind] / len(codes):.1%}": row(kind, feature, columns) for kind in shown}
    mosaics.image_rows(rows, path, title)
    return feature
