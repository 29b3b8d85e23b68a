"""What a finished run has left: its model, its settings and its figures."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from tf_isvae import zoo
from tf_isvae.model import DiscreteVAE
from tf_isvae.training.config import as_meant


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, and what the directory of its run says of it.

    model     a DiscreteVAE that computes in float32, not compiled
    config    the settings, as config.json has them; None for a .keras file alone
    metrics   the figures of metrics.json and evaluation.json; None if there are none
    """

    model: DiscreteVAE
    config: dict | None = None
    metrics: dict | None = None


def read_trained(path: str | os.PathLike) -> Trained:
    """Reads the directory of a finished run, a trained model of the zoo, or a .keras file.

    `zoo.load` gives the model alone.

    Nothing is unpickled, and no code that a file may hold is run.

    Args:
        path: the directory of a run; one of `zoo.names()`, or a folder as exported_models/ has them, whose card holds
            the settings and figures of the run; or a .keras file that DiscreteVAE.save wrote.

    Raises:
        FileNotFoundError: there is no such file or model, or the run has no model yet.
        ValueError: it is damaged, altered, or of another kind.

    Example:
        >>> zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4).save("digits.keras")
        >>> trained = training.read_trained("digits.keras")
        >>> trained.model.image_shape, trained.config
        ((8, 8, 1), None)
    """
    path = Path(path)
    if str(path) in zoo.names():
        return _read_exported(zoo.find(path))
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a .keras file, the directory of a run, or one of {', '.join(zoo.names())}."
        )
    if (path / "metadata.json").is_file() and not (path / "model.keras").is_file():
        return _read_exported(zoo.find(path))
    if not path.is_dir():
        return Trained(zoo.load(path))
    file = path / "model.keras"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no trained model: {file} is missing; give the directory of a run.")
    config, *figures = (_read_json(path / name) for name in ("config.json", "metrics.json", "evaluation.json"))
    if config is not None:
        config = as_meant(config)
    metrics = {name: value for part in figures for name, value in (part or {}).items()}
    return Trained(zoo.load(file), config, metrics or None)


def _read_exported(file: Path) -> Trained:
    """A .keras file, with what the card beside it says of its run."""
    card = _read_json(file.parent / "metadata.json") or {}
    config = (card.get("training") or {}).get("config")
    return Trained(zoo.load(file), None if config is None else as_meant(config), card.get("metrics"))


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
