"""Learning curves of one run or several (paper, figures 6, 9 and 12)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from tf_isvae.plotting import png

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


def training_curves(history: Mapping[str, Sequence[float]], path: str | os.PathLike, title: str | None = None) -> None:
    """Draws one run's learning curves on the training and test data (paper, figures 6, 9 and 12).

    One panel each for the negative ELBO, the expected log-likelihood, the KL divergence and, on a log scale,
    the gradient variance: those that the history has. The vertical axis fits the curves after the first 4% of a long
    run: its start would flatten the rest.

    Args:
        history: `epoch` (1, 2, ...) and any of `loss`, `log_likelihood`, `kl` (nats per image) and
            `gradient_variance` (nats squared per encoder parameter), with `val_` in front for the test data: one
            number per epoch. A number that is not finite is left out, and the line joins its neighbours.
        path: the PNG to write, in a folder that exists.
        title: a line above the panels.

    Raises:
        TypeError: the history is no mapping.
        ValueError: it has no epochs, none of these columns, or columns of different lengths; or `path` does not end
            in .png.
        FileNotFoundError: the folder of `path` does not exist.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> history = {"epoch": [1, 2, 3], "loss": [300.0, 200.0, 150.0], "val_loss": [310.0, 205.0, 160.0]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.training_curves(history, Path(folder) / "curves.png", "three epochs")
    """
    if not isinstance(history, Mapping):
        raise TypeError(f"history is a {type(history).__name__}; it must be a mapping from columns to their numbers.")
    curves = {"train": {name: values for name, values in history.items() if not name.startswith("val_")}}
    test = {name: history["val_" + name] for name, _, _ in _PANELS if "val_" + name in history}
    if test:
        curves["test"] = {"epoch": history.get("epoch", ()), **test}
    compare_curves(curves, path, title)


def compare_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike, title: str | None = None
) -> None:
    """Draws several runs' learning curves in the panels of `training_curves` (paper, figures 6, 9 and 12).

    Each run has its colour; its test curves are dashed.

    Args:
        histories: the name of each run, as the legend shows it, and its history as in `training_curves`.
        path: the PNG to write, in a folder that exists.
        title: a line above the panels.

    Raises:
        ValueError, FileNotFoundError: as in `training_curves`; or there is no run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> runs = {"one": {"epoch": [1, 2], "loss": [3.0, 2.0]}, "other": {"epoch": [1, 2], "loss": [4.0, 1.0]}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.compare_curves(runs, Path(folder) / "curves.png")
    """
    path = png.check_path(path)
    runs = {label: _check_history(label, history) for label, history in histories.items()}
    columns = {name for run in runs.values() for name in run}
    panels = [panel for panel in _PANELS if columns & {panel[0], "val_" + panel[0]}]
    if not panels:
        given = sorted(set().union(*histories.values()))
        raise ValueError(
            f"histories are {len(runs)} with columns {given}; there must be one or more with `epoch` and at least one "
            f"of {', '.join(name for name, _, _ in _PANELS)}."
        )
    colours = dict(zip(runs, _colours(len(runs)), strict=True))
    epochs = np.concatenate([run["epoch"] for run in runs.values()])
    dashed = any(column.startswith("val_") for column in columns)
    figure = _figure(len(panels), colours, dashed, title)
    for axes, (name, heading, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines = [
            (run["epoch"], run[column], style, colours[label])
            for label, run in runs.items()
            for column, style in ((name, _TRAIN), ("val_" + name, _TEST))
            if column in run
        ]
        _draw_panel(axes, lines, logarithmic=name == "gradient_variance")
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        side = max(0.02 * np.ptp(epochs), 0.5)
        axes.set_xlim(epochs.min() - side, epochs.max() + side)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    png.save(figure, path)


def _check_history(label: str, history: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """The columns to draw, and `epoch`, as float arrays of one length."""
    if len(history.get("epoch", ())) == 0:
        raise ValueError(
            f"the history of {label!r} has no epochs (columns {sorted(history)}); "
            "it must have `epoch`, the numbers 1, 2, ..., beside the other columns."
        )
    drawn = {"epoch"} | {prefix + name for name, _, _ in _PANELS for prefix in ("", "val_")}
    try:
        run = {name: np.asarray(values, dtype=float) for name, values in history.items() if name in drawn}
    except (TypeError, ValueError) as error:
        raise ValueError(f"the history of {label!r} has columns that are not all numbers: {error}.") from None
    for name, values in run.items():
        if values.shape != run["epoch"].shape:
            raise ValueError(
                f"the history of {label!r} has {values.size} numbers in {name!r} "
                f"for {run['epoch'].size} epochs; it must have one number per epoch (nan if there is none)."
            )
    return run


def _figure(panels: int, colours: Mapping, dashed: bool, title: str | None) -> Figure:
    """An empty figure with its title and legend, whose size fits both. `dashed`: the legend explains dashed lines."""
    # About 12 letters of the legend go into an inch; 6 more for the line and the space.
    entries = [(Line2D([], [], color=colour, linewidth=2), label) for label, colour in colours.items()]
    if dashed:
        entries += [(Line2D([], [], color="0.4", linestyle=s), t) for s, t in ((_TRAIN, "train"), (_TEST, "test"))]
    width = max(2.7 * panels, 4.0)
    room, lengths = int(12 * width), [len(label) + 6 for _, label in entries]
    across = len(entries) if sum(lengths) <= room else max(1, room // max(lengths))
    height = 2.6 + 0.22 * -(-len(entries) // across) + (0.3 if title else 0)
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)
    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=across, frameon=False, borderaxespad=0)
    if title:
        figure.suptitle(title, fontsize=12, wrap=True)
    return figure


def _draw_panel(axes: Axes, lines: Sequence[tuple], logarithmic: bool) -> None:
    """Draws (epochs, values, style, colour) each."""
    # A log scale cannot show 0, the variance of an exact gradient: alone it is drawn on a linear one.
    logarithmic = logarithmic and any(np.any(_positive(values) > 0) for _, values, _, _ in lines)
    for epochs, values, style, colour in lines:
        _draw_line(axes, epochs, _positive(values) if logarithmic else values, style, colour)
    if logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 100 * low:  # powers of ten alone would leave hardly a tick
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, style: str | tuple, colour: str | np.ndarray):
    finite = np.isfinite(values)  # false if nothing was measured, or if the run diverged
    x, y = epochs[finite], values[finite]
    settled = x >= epochs.min() + np.ptp(epochs) // 25
    if not settled.any():
        settled[:] = True
    marker = "o" if x.size <= 20 else None
    (line,) = axes.plot(
        x[settled], y[settled], linestyle=style, color=colour, marker=marker, markersize=4, linewidth=1.4
    )
    line.set_data(x, y)  # the whole curve, in the limits of its settled part: set_data does not change them


def _colours(n: int) -> Sequence[str] | np.ndarray:
    if n <= len(_COLOURS):
        return _COLOURS[:n]
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where((values > 0) & np.isfinite(values), values, np.nan)
