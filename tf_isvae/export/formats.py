"""The formats of the files that stand beside the versions of a model, one row each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line shows the table before TensorFlow is there
    import numpy as np

    from tf_isvae.model import DiscreteVAE


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    suffix        of the file, after the name of the model's folder
    write         writes a model to a path; takes `calibration=images` besides if needs_images
    needs_images  images of the kind that will be encoded, float32 (n, H, W, C) in [0, 1]
    """

    suffix: str
    write: Callable[..., object]
    needs_images: bool = False

    @property
    def extension(self) -> str:
        return Path(f"name{self.suffix}").suffix

    def write_beside(self, model: DiscreteVAE, folder: Path, images: np.ndarray | None = None) -> Path:
        """Writes the model into its folder, whole or not at all, and returns the path of the file."""
        path = folder / f"{folder.resolve().name}{self.suffix}"
        if self.needs_images:
            self.write(model, path, calibration=images)
        else:
            self.write(model, path)
        return path


def _keras(model: DiscreteVAE, path: Path) -> None:
    from tf_isvae import keras_files

    keras_files.write(model, path)


def _litert(model: DiscreteVAE, path: Path, **options) -> None:
    from tf_isvae.export.litert import litert

    litert(model, path, **options)


# "<kind>" or "<kind>-<variant>": scripts/export.py has an option for each kind, and the card a list of its files.
FORMATS = {
    "keras": Format(".keras", _keras),
    "litert-float32": Format(".tflite", _litert),
    "litert-float16": Format("_float16.tflite", functools.partial(_litert, quantize="float16")),
    "litert-int8": Format("_int8.tflite", functools.partial(_litert, quantize="int8"), needs_images=True),
}


def kinds() -> dict[str, dict[str, Format]]:
    """The rows of FORMATS by kind and variant; the variant of "keras", which has one only, is "".

    Example:
        >>> {kind: [*variants] for kind, variants in export.formats.kinds().items()}
        {'keras': [''], 'litert': ['float32', 'float16', 'int8']}
    """
    found = {}
    for name, row in FORMATS.items():
        kind, _, variant = name.partition("-")
        found.setdefault(kind, {})[variant] = row
    return found
