"""The picture on a card: what the model expects, and what it makes of it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_isvae.model import DiscreteVAE

COLUMNS = 10
_TILE, _GAP = 60, 4  # pixels: an image is enlarged to about that, and stands so far from the next


def draw(model: DiscreteVAE, graphs: dict, examples: np.ndarray | None) -> tuple[bytes, str, str | None]:
    """The picture of a model, by its own signatures.

    Args:
        model: a DiscreteVAE.
        graphs: `signatures(model)`.
        examples: images (n, H, W, C) in [0, 1] of the kind that it was trained on; None to show samples of the model.

    Returns:
        A PNG; what it shows; and "light on dark" or "dark on light" if the images are so, else None.
    """
    if examples is None:
        if "generate" in graphs:  # which has been traced
            seed = np.stack([np.arange(COLUMNS), np.zeros(COLUMNS)], axis=1).astype(np.int32)
            images = graphs["generate"](tf.constant(seed))["images"].numpy()
        else:
            images = model.generate(COLUMNS, seed=0)
        return _png([images]), "Samples of the model, which look like what it was trained on", ground(images)
    shown = examples[:COLUMNS].astype(np.float32)
    decoded = graphs["reconstruct"](tf.constant(shown))["images"].numpy()
    return (
        _png([shown, decoded]),
        "Above, images of the kind that it was trained on; below, their codes decoded",
        ground(examples),
    )


def ground(images: np.ndarray) -> str | None:
    """Whether the images (n, H, W, C) are light on a dark ground or dark on a light one; None if neither is plain."""
    edges = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()]).mean()
    if edges < 0.25 and edges < images.mean():
        return "light on dark"
    return "dark on light" if edges > 0.75 and edges > images.mean() else None


def _png(rows: list[np.ndarray]) -> bytes:
    """Rows of images (n, H, W, C) in [0, 1] as a PNG, grey or RGB; other channels as their mean."""
    tiles = np.stack(rows)
    if tiles.shape[-1] not in (1, 3):
        tiles = tiles.mean(axis=-1, keepdims=True)
    height, width = tiles.shape[2:4]
    factor, step = max(1, _TILE // max(height, width)), max(1, max(height, width) // (4 * _TILE))
    tiles = tiles[:, :, ::step, ::step].repeat(factor, axis=2).repeat(factor, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=1.0)
    rows, columns, height, width, channels = tiles.shape
    mosaic = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, channels)[:-_GAP, :-_GAP]
    return tf.io.encode_png(np.round(255 * np.clip(mosaic, 0, 1)).astype(np.uint8)).numpy()
