"""All that a folder of exported_models/ holds: versions of a SavedModel, files in other formats, and a card."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tf_isvae import checks
from tf_isvae.export import card
from tf_isvae.export.formats import FORMATS
from tf_isvae.export.saved_model import saved_model
from tf_isvae.model import DiscreteVAE, check_model


def to_folder(
    model: DiscreteVAE,
    folder: str | os.PathLike,
    formats: Iterable[str] = (),
    config: dict | None = None,
    metrics: dict | None = None,
    *,
    calibration: np.ndarray | None = None,
) -> list[Path]:
    """Writes the model in several formats, the next version of its SavedModel, and a card of them all.

    Args:
        model: a DiscreteVAE.
        folder: where to write; it is created. Files are named after it.
        formats: names in `export.FORMATS`: "keras", "litert-float32" ...
        config, metrics: of the run, for the card, as of `saved_model`.
        calibration: for formats that need them ("litert-int8"), images (n, H, W, C) in [0, 1] of the kind that will be
            encoded; 100 to 1,000 do.

    Returns:
        The paths of the files and of the version, then of README.md and metadata.json.

    Raises:
        ValueError: an unknown format, or calibration images that are missing, or that no format needs.
        As `saved_model` and `litert`.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> [path.name for path in export.to_folder(model, "exported/small", ["keras"])]
        ['small.keras', '1', 'README.md', 'metadata.json']
    """
    check_model(model)
    rows = [FORMATS[checks.one_of("format", name, FORMATS)] for name in formats]
    if (calibration is None) == any(row.needs_images for row in rows):
        given = "missing" if calibration is None else "given"
        needing = ", ".join(name for name, row in FORMATS.items() if row.needs_images)
        raise ValueError(f"calibration images are {given}; they must be given for {needing}, and for nothing else.")
    folder = Path(folder)
    card.check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [row.write_beside(model, folder, calibration) for row in rows]
    written.append(saved_model(model, folder, config, metrics))
    return [*written, folder / card.README, folder / card.METADATA]
