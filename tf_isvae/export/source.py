"""What is exported: a trained model, read from a .keras file or the directory of a run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from tf_isvae import zoo
from tf_isvae.model import DiscreteVAE


@dataclasses.dataclass(frozen=True)
class Source:
    """A model; where it comes from a run, its config.json, and its metrics.json with evaluation.json added."""

    model: DiscreteVAE
    config: dict | None = None
    metrics: dict | None = None


def load(path: str | os.PathLike) -> Source:
    """The model of a .keras file that DiscreteVAE.save wrote, or of a run directory (its model.keras).

    Nothing is unpickled, and no code that a file may hold is run: Keras's safe_mode is on, Lambda layers are refused.

    Raises:
        FileNotFoundError: there is no such file, or the run has no model yet.
        ValueError: it is damaged, altered, or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a .keras file or the directory of a run.")
    if not path.is_dir():
        return Source(zoo.load(path))
    file = path / "model.keras"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no trained model: {file} is missing; give the directory of a run.")
    config, *figures = (_read_json(path / name) for name in ("config.json", "metrics.json", "evaluation.json"))
    metrics = {name: value for part in figures for name, value in (part or {}).items()}
    return Source(zoo.load(file), config, metrics or None)


def _read_json(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__}: {error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; it must be the JSON object that a run wrote.")
    return value
