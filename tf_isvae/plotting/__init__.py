"""Figures of a run, each one PNG: learning curves, reconstructions, samples (paper, figures 6 to 13).

Drawn with matplotlib's objects alone: no pyplot, so no global state and no display, and safe inside a training loop.
"""

from tf_isvae.plotting.curves import compare_curves, training_curves
from tf_isvae.plotting.mosaics import grid, image_grid, image_rows, reconstructions
from tf_isvae.plotting.png import check_path, save
from tf_isvae.plotting.traversals import traversals

__all__ = [
    "check_path",
    "compare_curves",
    "grid",
    "image_grid",
    "image_rows",
    "reconstructions",
    "save",
    "training_curves",
    "traversals",
]
