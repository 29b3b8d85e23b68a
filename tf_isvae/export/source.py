"""What is exported: a trained model, read from a .keras file or the directory of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import keras

from tf_isvae.model import DiscreteVAE

# All that DiscreteVAE.save writes. Keras would unpack other members of the archive to disk.
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model, and where it comes from a run, the run's config.json and metrics.json."""

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
        return Source(_load_model(path))
    file = path / "model.keras"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no trained model: {file} is missing; give the directory of a run.")
    config, metrics = _read_json(path / "config.json"), _read_json(path / "metrics.json")
    return Source(_load_model(file), config, metrics)


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


def _load_model(path: Path) -> DiscreteVAE:
    what = "it must be a model that DiscreteVAE.save wrote, ending in .keras"
    if path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file; {what}.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            damaged = archive.testzip() if members <= _MEMBERS else None
            config = json.loads(archive.read("config.json")) if "config.json" in members else {}
        lambda_layer = "Lambda" in _class_names(config)
    except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs and json
        raise ValueError(f"{path} is damaged, or of another kind ({_line(error)}); {what}.") from None
    if damaged is not None:
        raise ValueError(f"{path} is damaged ({damaged} has a wrong checksum); {what}.")
    kind = config.get("registered_name") if isinstance(config, dict) else None
    if members != _MEMBERS or kind != "tf_isvae>DiscreteVAE":
        names = " ".join(", ".join(sorted(members)).split())[:200]
        raise ValueError(f"{path} holds {str(kind or 'something else')[:100]!r} in {names}; {what}.")
    if lambda_layer:
        raise ValueError(f"{path} has a Lambda layer, which could run any code; it is not loaded.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # an altered file may fail anywhere in Keras
        raise ValueError(f"{path} cannot be loaded ({_line(error)}); {what}.") from None


def _class_names(config) -> set:
    if isinstance(config, dict):
        own = {config["class_name"]} if isinstance(config.get("class_name"), str) else set()
        return own.union(*map(_class_names, config.values()))
    return set().union(*map(_class_names, config)) if isinstance(config, list) else set()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
