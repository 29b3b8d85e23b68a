"""Trained models as .keras files: written small, and read without trusting them.

A .keras file is a zip archive of metadata.json, config.json and model.weights.h5 (HDF5).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from tf_isvae import files
from tf_isvae.model import DiscreteVAE

# All that DiscreteVAE.save writes. Keras would unpack other members of the archive to disk.
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
# Far above what any model needs: the configuration of a network of thousands of layers, in bytes.
_LARGEST_JSON = 16 * 1024**2
# Weights hardly shrink: a trained model's by a twelfth, one rounded to bfloat16 by a half.
_LARGEST_RATIO = 64
# HDF5's own tables: so many bytes for each data set, and for the file.
_HDF5_OVERHEAD = 16 * 1024

# Settings of layers and initializers that Keras 3.13 and later write, and 3.12 refuses. None is what 3.12 does.
_NEWER_SETTINGS = ("quantization_config", "input_axes", "output_axes")


def write(model: DiscreteVAE, path: str | os.PathLike) -> None:
    """Writes the model as a compressed .keras file, whole or not at all.

    Keras itself stores the members uncompressed. Compressed, a trained model takes a twelfth less space, and one whose
    matrices were rounded to bfloat16 half.

    Args:
        model: a DiscreteVAE.
        path: the file, ending in .keras, in a folder that exists.

    Raises:
        OSError: it cannot be written.
    """
    with files.atomic_write(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as stored:
            members = {name: stored.read(name) for name in stored.namelist()}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as deflated:
            for name, content in members.items():
                deflated.writestr(name, content)


def read(path: str | os.PathLike) -> DiscreteVAE:
    """The model of a .keras file that DiscreteVAE.save or `write` wrote, not compiled.

    Nothing is unpickled, and no code that the file may hold is run: Keras's safe_mode is on, Lambda layers are refused.
    What the file declares is compared with what it holds before any of it is read, so that a small file cannot take
    much memory.

    Raises:
        ValueError: the file is damaged, altered, or of another kind, or there is none.
    """
    path = Path(path)
    what = "it must be a model that DiscreteVAE.save wrote, ending in .keras"
    if path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file; {what}.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            oversized = _oversized(archive) if members <= _MEMBERS else None
            damaged = archive.testzip() if members <= _MEMBERS and not oversized else None
            known = "config.json" in members and not oversized
            config = json.loads(archive.read("config.json")) if known else {}
            metadata = json.loads(archive.read("metadata.json")) if known and "metadata.json" in members else {}
            newer = metadata.get("keras_version") != keras.version()
        lambda_layer = "Lambda" in _class_names(config)
    except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs, HDF5 and json
        raise ValueError(f"{path} is damaged, or of another kind ({_line(error)}); {what}.") from None
    if oversized:
        raise ValueError(f"{path} declares more than it holds ({oversized}); {what}.")
    if damaged is not None:
        raise ValueError(f"{path} is damaged ({damaged} has a wrong checksum); {what}.")
    kind = config.get("registered_name") if isinstance(config, dict) else None
    if members != _MEMBERS or kind != "tf_isvae>DiscreteVAE":
        names = " ".join(", ".join(sorted(members)).split())[:200]
        raise ValueError(f"{path} holds {str(kind or 'something else')[:100]!r} in {names}; {what}.")
    if lambda_layer:
        raise ValueError(f"{path} has a Lambda layer, which could run any code; it is not loaded.")
    try:
        with _as_before(path, config) if newer else contextlib.nullcontext(path) as readable:
            return keras.models.load_model(readable, compile=False, safe_mode=True)
    except Exception as error:  # an altered file may fail anywhere in Keras
        raise ValueError(f"{path} cannot be loaded ({_line(error)}); {what}.") from None


@contextlib.contextmanager
def _as_before(path: Path, config: dict) -> Iterator[Path]:
    """A copy of the file without the settings of newer versions of Keras that change nothing."""

    def reduced(value):
        if isinstance(value, dict):
            kept = {key: reduced(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if key not in _NEWER_SETTINGS or item is not None}
        return [reduced(item) for item in value] if isinstance(value, list) else value

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(copy, "w") as written:
            for name in whole.namelist():
                written.writestr(name, json.dumps(reduced(config)) if name == "config.json" else whole.read(name))
        yield copy


def _oversized(archive: zipfile.ZipFile) -> str | None:
    """What the archive declares and does not hold, from its table and the table of its HDF5 file; None if nothing."""
    for member in archive.infolist():
        if member.filename.endswith(".json") and member.file_size > _LARGEST_JSON:
            return f"{member.filename} of {member.file_size} bytes, at most {_LARGEST_JSON} are read"
        if member.file_size > _LARGEST_RATIO * (member.compress_size + _HDF5_OVERHEAD):
            return f"{member.filename} of {member.file_size} bytes in {member.compress_size}"
    if "model.weights.h5" not in archive.namelist():
        return None
    found, stored = [], [_HDF5_OVERHEAD]
    size = archive.getinfo("model.weights.h5").file_size

    def look(name, item):
        stored.append(_HDF5_OVERHEAD)
        if isinstance(item, h5py.Dataset):
            declared = math.prod(item.shape or ()) * item.dtype.itemsize
            stored.append(declared)
            # What is compressed, or was never written, takes more memory than the file has bytes.
            if item.id.get_storage_size() < declared:
                found.append(f"{name[:100]} of {item.shape} in {item.id.get_storage_size()} bytes")

    with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as weights:
        weights.visititems(look)
    if not found and size > sum(stored):
        found.append(f"model.weights.h5 of {size} bytes for {sum(stored)} bytes of weights")
    return found[0] if found else None


def _class_names(config) -> set:
    if isinstance(config, dict):
        own = {config["class_name"]} if isinstance(config.get("class_name"), str) else set()
        return own.union(*map(_class_names, config.values()))
    return set().union(*map(_class_names, config)) if isinstance(config, list) else set()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
