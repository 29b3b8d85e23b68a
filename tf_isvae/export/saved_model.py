"""SavedModel: <folder>/<version>/, as TensorFlow Serving and the C API load it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from tf_isvae.export import serving
from tf_isvae.export.signatures import signatures
from tf_isvae.model import DiscreteVAE

try:
    import fcntl
except ImportError:  # Windows: what a killed export left behind stays, under a name that no server loads
    fcntl = None

# A server loads any directory whose name is an integer, and no other.
_UNFINISHED = "unfinished-"


def saved_model(model: DiscreteVAE, folder: str | os.PathLike, warmup: bool | None = None) -> Path:
    """Writes the model as a SavedModel, `<folder>/<the next integer version>`, and returns that path.

    The signatures are those of `tf_isvae.export.signatures`. A version appears whole or not at all, and two exports
    at once get two versions. `warmup` adds requests that TensorFlow Serving answers before it takes the model into
    service (extra `serving`); default: where that extra is installed.

    Raises:
        TypeError: not a DiscreteVAE. ValueError: `folder` cannot hold versions. OSError: it cannot be written.
        ModuleNotFoundError: warmup=True without the extra. RuntimeError: a warm-up request fails.
    """
    if warmup is None:
        warmup = serving.available()
    elif warmup:
        serving.require("warm-up requests")
    if not isinstance(model, DiscreteVAE):
        raise TypeError(f"model is {model!r}; it must be a DiscreteVAE.")
    with new_version(folder) as version:
        write(model, version.path)
        if warmup:
            serving.write_warmup(version.path, Path(folder).resolve().name)
    return version.path


def write(model: DiscreteVAE, path: str | os.PathLike, noise_input: bool = False) -> None:
    """The SavedModel itself, at `path`, with `noise` in place of `seed` where LiteRT will read it."""
    module = tf.Module()
    # Only what inference needs, once: neither the optimizer's state nor generators of noise.
    module.weights = [variable.value for part in (model.encoder, model.decoder) for variable in part.variables]
    functions = {}
    for name, (function, inputs) in signatures(model, noise_input).items():
        functions[name] = tf.function(function, input_signature=inputs, autograph=False).get_concrete_function()
    # Without gradients of the operations, which only training would use.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(
        module, str(path), signatures={**functions, "serving_default": functions["encode"]}, options=options
    )


class _Version:
    path: Path


@contextlib.contextmanager
def new_version(folder: str | os.PathLike) -> Iterator[_Version]:
    """Gives an object whose `path` is an empty directory to fill; at the end it is renamed to the next version.

    `path` then names the version. Until then a server takes the directory for none, and if anything fails it is
    removed. What a killed export left behind is removed by the next one.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder in which versions can be written.")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    version = _Version()
    version.path = staging = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        with _lock(staging):
            yield version
            version.path = _commit(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def versions(folder: Path) -> list[int]:
    """The versions in a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal())


def _commit(staging: Path, folder: Path) -> Path:
    for number in itertools.count(max(versions(folder), default=0) + 1):
        try:
            os.rename(staging, folder / str(number))
        except OSError as error:
            # Another export was faster.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return folder / str(number)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a directory, which ends with the process however that ends; False where another holds it."""
    if fcntl is None:
        yield wait
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError), _lock(path, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)
