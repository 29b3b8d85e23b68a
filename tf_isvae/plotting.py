"""Figures of a run, each one PNG: learning curves, reconstructions, samples (paper, figures 6 to 13).

Drawn with matplotlib's objects alone: no pyplot, so no global state and no display, and safe inside a
training loop. A file appears whole or not at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import IdentityTransform

from tf_isvae import checks, files

# Column of the history, title of its panel, unit. The variance is that of a gradient in nats, hence squared.
_PANELS = (
    ("loss", "negative ELBO", "nats per image"),
    ("log_likelihood", "expected log-likelihood", "nats per image"),
    ("kl", "KL divergence", "nats per image"),
    ("gradient_variance", "gradient variance", "nats² per parameter"),
)
# Okabe & Ito's colours, told apart with any colour vision; their yellow is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TRAIN, _TEST = "-", (0, (4, 1.5))  # line styles

# Pixels of an image mosaic.
_WIDTH, _HEIGHT = 1000, 1500  # small images are enlarged towards this size
_LARGEST = 4000  # large ones are thinned to stay near this size
_GAP, _PAIR_GAP, _MARGIN = 8, 2, 10
_ONE, _ZERO = (0, 64, 120), (205, 222, 235)  # colours of bits


def training_curves(history: Mapping[str, Sequence[float]], path: str | os.PathLike, title: str | None = None):
    """Draws one run's learning curves on the training and test data (paper, figures 6, 9 and 12).

    One panel each for the negative ELBO, the expected log-likelihood, the KL divergence and, on a log scale,
    the gradient variance: those that the history has.

    Args:
      history: `epoch` (1, 2, ...) and any of `loss`, `log_likelihood`, `kl` (nats per image) and
        `gradient_variance` (nats squared per encoder parameter), for the test data with `val_` in front: one number per
        epoch. A number that is not finite is left out, and the line joins its neighbours.
      path: the PNG to write, in a folder that exists.
      title: a line above the panels.

    The vertical axis fits the curves after the first 4% of a long run: its start would flatten the rest.

    Raises:
      ValueError: the history has no epochs, none of these columns, or columns of different lengths; or `path`
        does not end in .png.
      FileNotFoundError: the folder of `path` does not exist.
    """
    if not isinstance(history, Mapping):
        raise TypeError(f"history is a {type(history).__name__}; it must be a mapping from columns to their numbers")
    curves = {"train": {name: values for name, values in history.items() if not name.startswith("val_")}}
    test = {name: history["val_" + name] for name, _, _ in _PANELS if "val_" + name in history}
    if test:
        curves["test"] = {"epoch": history.get("epoch", ()), **test}
    compare_curves(curves, path, title)


def compare_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike, title: str | None = None
):
    """Draws several runs' learning curves in the panels of `training_curves` (paper, figures 6, 9 and 12).

    Each run has its colour; its test curves are dashed.

    Args:
      histories: the name of each run, as the legend shows it, and its history as in `training_curves`.
      path: the PNG to write, in a folder that exists.
      title: a line above the panels.

    Raises:
      ValueError, FileNotFoundError: as in `training_curves`; or there is no run.
    """
    path = _check_path(path)
    runs = {label: _check_history(label, history) for label, history in histories.items()}
    columns = {name for run in runs.values() for name in run}
    panels = [panel for panel in _PANELS if columns & {panel[0], "val_" + panel[0]}]
    if not panels:
        given = sorted(set().union(*histories.values()))
        raise ValueError(
            f"nothing to draw: {len(runs)} histories with columns {given}; give `epoch` and at least one of "
            f"{', '.join(name for name, _, _ in _PANELS)}"
        )

    colours = dict(zip(runs, _colours(len(runs)), strict=True))
    epochs = np.concatenate([run["epoch"] for run in runs.values()])
    side = max(0.02 * np.ptp(epochs), 0.5)

    # The legend's size decides the figure's: about 12 letters to the inch, and 6 for the line and the space.
    entries = [(Line2D([], [], color=colour, linewidth=2), label) for label, colour in colours.items()]
    if any(column.startswith("val_") for column in columns):
        entries += [(Line2D([], [], color="0.4", linestyle=s), t) for s, t in ((_TRAIN, "train"), (_TEST, "test"))]
    width = max(2.7 * len(panels), 4.0)
    room, lengths = int(12 * width), [len(label) + 6 for _, label in entries]
    across = len(entries) if sum(lengths) <= room else max(1, room // max(lengths))
    height = 2.6 + 0.22 * -(-len(entries) // across) + (0.3 if title else 0)

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)
    for axes, (name, heading, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines = [
            (run["epoch"], run[column], style, colours[label])
            for label, run in runs.items()
            for column, style in ((name, _TRAIN), ("val_" + name, _TEST))
            if column in run
        ]
        # A log scale cannot show 0, the variance of an exact gradient: alone it is drawn on a linear one.
        log = name == "gradient_variance" and any(np.any(_positive(values) > 0) for _, values, _, _ in lines)
        for epoch, values, style, colour in lines:
            _draw_line(axes, epoch, _positive(values) if log else values, style, colour)
        if log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high < 100 * low:  # powers of ten alone would leave hardly a tick
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.set_xlim(epochs.min() - side, epochs.max() + side)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)

    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=across, frameon=False, borderaxespad=0)
    if title:
        figure.suptitle(title, fontsize=12, wrap=True)
    _save(figure, path)


def elbo_curves(results: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike):
    """Draws the training ELBO of several runs against steps and against seconds.

    Args:
      results: the name of each run, and its rows, each with `step`, `seconds` and `train_elbo` (nats per image).
      path: the PNG to write, in a folder that exists.

    Raises:
      ValueError: no run, a run without rows, or a row without one of the three; or `path` does not end in .png.
      FileNotFoundError: the folder of `path` does not exist.
    """
    path = _check_path(path)
    if not results:
        raise ValueError("there are no runs to draw; give at least one")
    for label, rows in results.items():
        if not rows or not all({"step", "seconds", "train_elbo"} <= row.keys() for row in rows):
            raise ValueError(
                f"{label!r} has no rows, or some without `step`, `seconds` and `train_elbo`; give all three"
            )
    figure = Figure(figsize=(9, 4), dpi=160, layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for i, (label, rows) in enumerate(results.items()):
            # Colours of names rather than of an order, and shapes beside them: ten lines may lie close together.
            axes.plot(
                [row[column] for row in rows],
                [row["train_elbo"] for row in rows],
                label=label,
                color=f"C{i % 10}",
                marker="osD^v<>PX*"[i % 10],
                markersize=5,
            )
        axes.set_xlabel(column if column == "seconds" else "steps")
        axes.set_ylabel("training ELBO, nats per image")
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def reconstructions(
    images: np.ndarray,
    reconstructions: np.ndarray,
    path: str | os.PathLike,
    title: str | None = None,
    columns: int = 10,
):
    """Draws images, each above its reconstruction (paper, figures 7, 10 and 13).

    Args:
      images: (n, height, width, channels) in [0, 1]: grey (1 channel), RGB (3), or else the channels' mean is
        shown.
      reconstructions: as `images`, in the same order.
      path: the PNG to write, in a folder that exists.
      title: a line above the images.
      columns: the number of pairs in a row.

    Raises:
      ValueError: images that are empty, not in [0, 1], of another rank or too many for a picture;
        reconstructions of another shape; a number of columns below 1; or `path` does not end in .png.
      FileNotFoundError: the folder of `path` does not exist.
    """
    path = _check_path(path)
    if np.shape(images) != np.shape(reconstructions):
        raise ValueError(
            f"images of shape {np.shape(images)} do not pair up with reconstructions of shape "
            f"{np.shape(reconstructions)}; give one reconstruction of the same size for each image"
        )
    above = _resize(_check_images("images", images), columns, stacked=2)
    below = _resize(_check_images("reconstructions", reconstructions), columns, stacked=2)
    height = above.shape[1]
    gap = np.full_like(above[:, :1], 255).repeat(_PAIR_GAP, axis=1)
    centres = {"input": height / 2, "reconstruction": height + _PAIR_GAP + height / 2}
    _draw_mosaic(np.concatenate([above, gap, below], axis=1), columns, path, title, centres)


def image_grid(images: np.ndarray, path: str | os.PathLike, title: str | None = None, columns: int = 10):
    """Draws images side by side, row after row: samples from the prior, say (paper, figures 8 and 11).

    Args:
      images: (n, height, width, channels) in [0, 1]: grey (1 channel), RGB (3), or else the channels' mean is
        shown.
      path: the PNG to write, in a folder that exists.
      title: a line above the images.
      columns: the number of images in a row; the last row may have fewer.

    Raises:
      ValueError: images that are empty, not in [0, 1], of another rank or too many for a picture; a number of
        columns below 1; or `path` does not end in .png.
      FileNotFoundError: the folder of `path` does not exist.
    """
    path = _check_path(path)
    _draw_mosaic(_resize(_check_images("images", images), columns), columns, path, title, {})


def overview(
    images: np.ndarray, bits: np.ndarray, reconstructions: np.ndarray, samples: np.ndarray, path: str | os.PathLike
):
    """Draws what a model with bits does: images, the bits of each, reconstructions, and samples of the prior.

    Args:
      images: (n, height, width, channels) in [0, 1]: grey (1 channel), RGB (3), or else the channels' mean is shown.
      bits: (n, units), the codes of the images: a 1 is drawn as a dark cell, a 0 as a pale one.
      reconstructions, samples: as `images`.
      path: the PNG to write, in a folder that exists.

    Raises:
      ValueError: shapes that do not fit together, images not in [0, 1], bits other than 0 and 1; or `path` does not
        end in .png.
      FileNotFoundError: the folder of `path` does not exist.
    """
    path, bits = _check_path(path), np.asarray(bits)
    n = len(images)
    for name, given in (("reconstructions", reconstructions), ("samples", samples)):
        if np.shape(given) != np.shape(images):
            raise ValueError(f"{name} have shape {np.shape(given)}; they must have that of images, {np.shape(images)}")
    if bits.ndim != 2 or len(bits) != n or bits.size == 0 or not np.isin(bits, (0, 1)).all():
        raise ValueError(f"bits have shape {bits.shape}; they must be 0 or 1 and of shape ({n}, units)")
    parts = {
        "input": _resize(_check_images("images", images), n),
        f"{bits.shape[1]} bits": _bit_cells(bits),
        "reconstruction": _resize(_check_images("reconstructions", reconstructions), n),
        "prior sample": _resize(_check_images("samples", samples), n),
    }
    width = max(part.shape[2] for part in parts.values())
    rows, centres, height = [], {}, 0
    for label, part in parts.items():
        left = (width - part.shape[2]) // 2
        sides = ((0, 0), (0, _GAP), (left, width - part.shape[2] - left), (0, 0))
        rows.append(np.pad(part, sides, constant_values=255))
        centres[label] = height + part.shape[1] / 2
        height += part.shape[1] + _GAP
    _draw_mosaic(np.concatenate(rows, axis=1)[:, :-_GAP], n, path, None, centres)


def _bit_cells(bits: np.ndarray) -> np.ndarray:
    """Each code as cells in rows, twice as wide as high: uint8 (n, height, width, 3)."""
    n, units = bits.shape
    across = math.ceil(math.sqrt(2 * units))
    down = -(-units // across)
    colours = np.full((n, down * across, 3), 255, np.uint8)
    colours[:, :units] = np.where(bits[..., None] == 1, _ONE, _ZERO)
    cell = max(2, _WIDTH // (n * across) - 1)
    cells = colours.reshape(n, down, across, 3).repeat(cell, axis=1).repeat(cell, axis=2)
    cells[:, ::cell] = cells[:, :, ::cell] = 255  # thin lines between the cells
    return cells


def _check_path(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"cannot write {str(path)!r}: figures are PNG files; give a name that ends in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first")
    return path


def _check_history(label: str, history: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """The columns to draw, and `epoch`, as float arrays of one length."""
    if len(history.get("epoch", ())) == 0:
        raise ValueError(
            f"the history of {label!r} has no epochs (columns {sorted(history)}); "
            "give `epoch`, the numbers 1, 2, ..., beside the other columns"
        )
    drawn = {"epoch"} | {prefix + name for name, _, _ in _PANELS for prefix in ("", "val_")}
    try:
        run = {name: np.asarray(values, dtype=float) for name, values in history.items() if name in drawn}
    except (TypeError, ValueError) as error:
        raise ValueError(f"the history of {label!r} holds what are not numbers: {error}") from None
    for name, values in run.items():
        if values.shape != run["epoch"].shape:
            raise ValueError(
                f"the history of {label!r} has {values.size} numbers in {name!r} "
                f"for {run['epoch'].size} epochs; give one number per epoch (nan where there is none)"
            )
    return run


def _check_images(name: str, images: np.ndarray) -> np.ndarray:
    """The images as uint8 (n, height, width, 3)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"{name} must have the shape (n, height, width, channels), none of them 0, not {images.shape}; "
            "a grey image has 1 channel, a single image n = 1"
        )
    if not np.can_cast(images.dtype, np.float64, "same_kind"):
        raise ValueError(f"{name} have dtype {images.dtype}; they must be numbers in [0, 1]")
    images = images.astype(np.float32)
    low, high = images.min(), images.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # a resized image may overshoot by a rounding error; nan fails
        raise ValueError(f"{name} must be in [0, 1], not in [{low:g}, {high:g}]; divide bytes by 255")
    if images.shape[-1] != 3:
        images = images.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.round(255 * images.clip(0, 1)).astype(np.uint8)


def _resize(images: np.ndarray, columns: int, stacked: int = 1) -> np.ndarray:
    """Enlarges (or thins) by a whole factor, to keep each pixel crisp. `stacked`: images in one tile."""
    checks.integer("columns", columns)
    n, h, w, _ = images.shape
    across, down = min(n, columns), stacked * -(-n // columns)
    if max(across, down) * _GAP > _LARGEST:
        raise ValueError(
            f"{n} images in {across} columns are too many for a picture; draw fewer, images[:100] say, "
            f"and at most {_LARGEST // _GAP} in a row or column"
        )
    step = -(-max(across * w, down * h) // _LARGEST)
    # A few images alone are not blown up: at most a quarter of the width each.
    factor = max(1, min(_WIDTH // (max(across, 4) * w), _HEIGHT // (down * h)))
    return images[:, ::step, ::step].repeat(factor, axis=1).repeat(factor, axis=2)


def _draw_mosaic(tiles: np.ndarray, columns: int, path: Path, title: str | None, centres: Mapping[str, float]):
    """Draws rows of tiles, uint8 (n, height, width, 3). `centres`: a row's labels, pixels below its top."""
    n, h, w, _ = tiles.shape
    columns = min(n, columns)
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + _GAP, w + _GAP, 3), 255, np.uint8)
    cells[:n, :h, :w] = tiles
    mosaic = cells.reshape(rows, columns, h + _GAP, w + _GAP, 3).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * (h + _GAP), columns * (w + _GAP), 3)[:-_GAP, :-_GAP]

    # Everything is placed in whole pixels and the mosaic is copied as it is: an Axes would resample it. A
    # power of two for the dpi makes the figure's size in inches exact too.
    figure = Figure(dpi=128)
    pixels = IdentityTransform()
    small = min(11.0, 0.8 * h / max(len(centres), 1) * 72 / figure.dpi)  # lines must not overlap
    labels = [
        (
            figure.text(0, 0, label, fontsize=small, ha="right", va="center", transform=pixels),
            row * (h + _GAP) + centre,
        )
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
    _save(figure, path)


def _colours(n: int) -> Sequence[str] | np.ndarray:
    if n <= len(_COLOURS):
        return _COLOURS[:n]
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where((values > 0) & np.isfinite(values), values, np.nan)


def _draw_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, style: str | tuple, colour: str | np.ndarray):
    finite = np.isfinite(values)  # false where nothing was measured, or where the run diverged
    x, y = epochs[finite], values[finite]
    settled = x >= epochs.min() + np.ptp(epochs) // 25
    if not settled.any():
        settled[:] = True
    marker = "o" if x.size <= 20 else None
    (line,) = axes.plot(
        x[settled], y[settled], linestyle=style, color=colour, marker=marker, markersize=4, linewidth=1.4
    )
    line.set_data(x, y)  # the whole curve, in the limits of its settled part: set_data does not change them


def _save(figure: Figure, path: Path):
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)
