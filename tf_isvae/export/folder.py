"""All that a folder of exported_models/ holds: versions of a SavedModel, files in other formats, and a card."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tf_isvae import checks
from tf_isvae.export import card, litert
from tf_isvae.export.formats import FORMATS
from tf_isvae.export.saved_model import write_version
from tf_isvae.model import DiscreteVAE, check_model


def to_folder(
    model: DiscreteVAE,
    folder: str | os.PathLike,
    formats: Iterable[str] = (),
    config: dict | None = None,
    metrics: dict | None = None,
    *,
    calibration: np.ndarray | None = None,
    examples: np.ndarray | None = None,
) -> list[Path]:
    """Writes the model in several formats, the next version of its SavedModel, and a card of them all.

    Args:
        model: a DiscreteVAE.
        folder: where to write; it is created. Files are named after it.
        formats: names in `export.FORMATS`: "keras", "litert-float32" ...
        config, metrics: of the run, for the card, as of `saved_model`.
        calibration: for formats that need them ("litert-int8"), images (n, H, W, C) in [0, 1] of the kind that will be
            encoded; 100 to 1,000 do. The card says of how many of them the file gives the model's codes.
        examples: images of the same kind, for the picture of the card; default the calibration images, or samples of
            the model.

    Returns:
        The paths of the files and of the version, then of README.md, metadata.json and picture.png.

    Raises:
        ValueError: an unknown format, or calibration images that are missing, or that no format needs.
        As `saved_model` and `litert`.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> [path.name for path in export.to_folder(model, "exported/small", ["keras"])]
        ['small.keras', '1', 'README.md', 'metadata.json', 'picture.png']
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
    quantized = {
        path.name: {"images": len(calibration), "codes_equal": litert.share_of_codes(path, model, calibration)}
        for path, row in zip(written, rows, strict=True)
        if row.needs_images
    }
    examples = calibration if examples is None else examples
    written.append(write_version(model, folder, config, metrics, examples=examples, quantized=quantized))
    return [*written, folder / card.README, folder / card.METADATA, folder / card.PICTURE]
