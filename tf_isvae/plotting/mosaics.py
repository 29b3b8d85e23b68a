"""Images side by side, every pixel of them crisp (paper, figures 7, 8, 10, 11 and 13)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform

from tf_isvae import checks
from tf_isvae.plotting import png

# In pixels.
_WIDTH, _HEIGHT = 1000, 1500  # small images are enlarged towards this size
_LARGEST = 4000  # large ones are thinned to stay near this size
_GAP, _PAIR_GAP, _MARGIN = 8, 2, 10


def image_grid(images, path: str | os.PathLike, title: str | None = None, columns: int = 10) -> None:
    """Draws images side by side, row after row: samples from the prior, say (paper, figures 8 and 11).

    Args:
        images: (n, H, W, C) in [0, 1]: grey (1 channel), RGB (3), or else the mean of the channels is shown.
        path: the PNG to write, in a folder that exists.
        title: a line above the images.
        columns: the number of images in a row; the last row may have fewer.

    Raises:
        TypeError: the images are not numbers.
        ValueError: images that are none, not in [0, 1], of another rank or too many for a picture; a number of
            columns below 1; or `path` does not end in .png.
        FileNotFoundError: the folder of `path` does not exist.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.image_grid(np.zeros((25, 8, 8, 1)), Path(folder) / "grid.png", columns=5)
    """
    path = png.check_path(path)
    _draw_mosaic(_resize(_as_rgb("images", images), columns), columns, path, title, {})


def reconstructions(
    images, reconstructions, path: str | os.PathLike, title: str | None = None, columns: int = 10
) -> None:
    """Draws images, each above its reconstruction (paper, figures 7, 10 and 13).

    Args:
        images: (n, H, W, C) in [0, 1]: grey (1 channel), RGB (3), or else the mean of the channels is shown.
        reconstructions: as `images`, in the same order.
        path: the PNG to write, in a folder that exists.
        title: a line above the images.
        columns: the number of pairs in a row.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `image_grid`; or reconstructions of another shape.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> images = np.zeros((3, 8, 8, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.reconstructions(images, 1 - images, Path(folder) / "pairs.png")
    """
    path = png.check_path(path)
    if np.shape(images) != np.shape(reconstructions):
        raise ValueError(
            f"reconstructions have shape {np.shape(reconstructions)}; they must have that of images, "
            f"{np.shape(images)}: one reconstruction of the same size for each image."
        )
    rows = {"input": _as_rgb("images", images), "reconstruction": _as_rgb("reconstructions", reconstructions)}
    _draw_rows(rows, columns, _PAIR_GAP, path, title)


def image_rows(rows: Mapping[str, np.ndarray], path: str | os.PathLike, title: str | None = None) -> None:
    """Draws rows of images, each with its label to the left; what stands in one column belongs together.

    Args:
        rows: the label of each row, and its images as in `image_grid`; as many images in each row, the sizes may
            differ between rows.
        path: the PNG to write, in a folder that exists.
        title: a line above the images.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `image_grid`; or rows of different lengths, or none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> rows = {"large": np.zeros((3, 8, 8, 1)), "small": np.ones((3, 4, 4, 3))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.image_rows(rows, Path(folder) / "rows.png")
    """
    path = png.check_path(path)
    lengths = {label: len(images) for label, images in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows have {lengths} images; they must be at least one row, all with the same number.")
    rows = {label: _as_rgb(label, images) for label, images in rows.items()}
    _draw_rows(rows, max(lengths.values()), _GAP, path, title)


def grid(images, columns: int = 10) -> np.ndarray:
    """Images side by side as one image, pixel by pixel, with no title and no enlargement: uint8 (height, width, 3).

    Args:
        images: (n, H, W, C) in [0, 1], as in `image_grid`.
        columns: the number of images in a row; the last row may have fewer.

    Raises:
        TypeError, ValueError: the images or the columns are not as described.

    Example:
        >>> plotting.grid(np.zeros((25, 8, 8, 1)), columns=5).shape  # with gaps of 8 pixels
        (72, 72, 3)
    """
    return _mosaic(_as_rgb("images", images), checks.integer("columns", columns))


def _as_rgb(name: str, images) -> np.ndarray:
    """The images as uint8 (n, H, W, 3)."""
    images = checks.images(name, images)
    if images.shape[-1] != 3:
        images = images.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.round(255 * images).astype(np.uint8)


def _resize(images: np.ndarray, columns: int, stacked: int = 1) -> np.ndarray:
    """Enlarges (or thins) by a whole factor, to keep each pixel crisp. `stacked`: images in one tile."""
    checks.integer("columns", columns)
    n, h, w, _ = images.shape
    across, down = min(n, columns), stacked * -(-n // columns)
    if max(across, down) * _GAP > _LARGEST:
        raise ValueError(
            f"there are {n} images in {across} columns; there must be at most {_LARGEST // _GAP} in a row or column: "
            "draw fewer, images[:100] say."
        )
    step = -(-max(across * w, down * h) // _LARGEST)
    # A few images alone are not blown up: at most a quarter of the width each.
    factor = max(1, min(_WIDTH // (max(across, 4) * w), _HEIGHT // (down * h)))
    return images[:, ::step, ::step].repeat(factor, axis=1).repeat(factor, axis=2)


def _draw_rows(rows: Mapping[str, np.ndarray], columns: int, gap: int, path, title: str | None) -> None:
    """Stacks the images of the rows, uint8 (n, H, W, 3) each, to tiles, `gap` pixels apart, and draws those."""
    parts = {label: _resize(images, columns, stacked=len(rows)) for label, images in rows.items()}
    width = max(part.shape[2] for part in parts.values())
    stack, centres, height = [], {}, 0
    for label, part in parts.items():
        left = (width - part.shape[2]) // 2
        sides = ((0, 0), (0, gap), (left, width - part.shape[2] - left), (0, 0))
        stack.append(np.pad(part, sides, constant_values=255))
        centres[label] = height + part.shape[1] / 2
        height += part.shape[1] + gap
    _draw_mosaic(np.concatenate(stack, axis=1)[:, :-gap], columns, path, title, centres)


def _mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Rows of tiles, uint8 (n, H, W, 3), as one image."""
    n, h, w, _ = tiles.shape
    columns = min(n, columns)
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + _GAP, w + _GAP, 3), 255, np.uint8)
    cells[:n, :h, :w] = tiles
    mosaic = cells.reshape(rows, columns, h + _GAP, w + _GAP, 3).swapaxes(1, 2)
    return mosaic.reshape(rows * (h + _GAP), columns * (w + _GAP), 3)[:-_GAP, :-_GAP]


def _draw_mosaic(tiles: np.ndarray, columns: int, path, title: str | None, centres: Mapping[str, float]) -> None:
    """Draws rows of tiles, uint8 (n, H, W, 3). `centres`: the labels of a row, and how many pixels below its top."""
    h, rows = tiles.shape[1], -(-len(tiles) // columns)
    mosaic = _mosaic(tiles, columns)

    # Everything is placed in whole pixels and the mosaic is copied as it is: an Axes would resample it. A
    # power of two for the dpi makes the figure's size in inches exact too.
    figure = Figure(dpi=128)
    pixels = IdentityTransform()
    small = min(11.0, 0.8 * h / max(len(centres), 1) * 72 / figure.dpi)  # lines must not overlap
    labels = [
        (figure.text(0, 0, label, fontsize=small, ha="right", va="center", transform=pixels), row * (h + _GAP) + centre)
        for row in range(rows)
        for label, centre in centres.items()
    ]
    left = _MARGIN + max(
        (round(text.get_window_extent().width) + _MARGIN for text, _ in labels[: len(centres)]), default=0
    )
    bottom = _MARGIN
    top = bottom + mosaic.shape[0]
    width, height = left + mosaic.shape[1] + _MARGIN, top + _MARGIN
    for text, below in labels:
        text.set_position((left - _MARGIN, top - below))
    if title:
        text = figure.text(left, height, title, fontsize=13, ha="left", va="bottom", transform=pixels)
        extent = text.get_window_extent()
        width = max(width, left + round(extent.width) + _MARGIN)
        height += round(extent.height) + _MARGIN
    figure.set_size_inches(width / figure.dpi, height / figure.dpi)
    figure.figimage(mosaic, left, bottom, origin="upper")
    png.save(figure, path)
