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

from tf_isvae import files
from tf_isvae.export import card, serving
from tf_isvae.export.signatures import signatures
from tf_isvae.model import DiscreteVAE, check_model
from tf_isvae.precision import in_precision

try:
    import fcntl
except ImportError:  # Windows: what a killed export left behind stays, under a name that no server loads
    fcntl = None

# A server loads any directory whose name is an integer, and no other.
_UNFINISHED = "unfinished-"


def saved_model(
    model: DiscreteVAE,
    folder: str | os.PathLike,
    config: dict | None = None,
    metrics: dict | None = None,
    *,
    warmup: bool | None = None,
    precision: str | None = "float32",
) -> Path:
    """Writes the model as a SavedModel, `<folder>/<the next integer version>`, and returns that path.

    The signatures are those of `tf_isvae.export.signatures`. A version appears whole or not at all, and two exports
    at once get two versions. README.md and metadata.json in `folder` describe the newest.

    Args:
        config, metrics: what config.json and metrics.json of the run say, for the card.
        warmup: whether to add requests that TensorFlow Serving runs before it takes the model into service (extra
            `serving`); default: where that extra is installed.
        precision: what the networks compute in, whatever they were trained in: "float32" or "mixed_bfloat16"; None for
            the model's own.

    Raises:
        TypeError: not a DiscreteVAE, or a config or metrics that is no dict. ValueError: precision is none of these.
        FileExistsError: `folder` is a file, or
        holds a README.md of another kind. OSError: it cannot be written. ModuleNotFoundError: warmup=True without the
        extra. RuntimeError: a warm-up request fails, and with it every server's attempt to load the model.
    """
    check_model(model)
    if warmup:
        serving.require("warm-up requests")
    for name, value in (("config", config), ("metrics", metrics)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"{name} is {value!r}; it must be a dict, what {name}.json of the run holds, or None.")
    folder = Path(folder)
    card.check_folder(folder)
    model = in_precision(model, precision)
    graphs = signatures(model)
    with new_version(folder) as staging:
        write(model, graphs, staging)
        if warmup or (warmup is None and serving.available()):
            serving.write_warmup(staging, folder.resolve().name)
        description = card.describe(model, graphs, staging, config, metrics)
        # One at a time, so that the card is that of the newest version.
        with _lock(folder):
            version = _commit(staging, folder)
            card.write(folder, int(version.name), description)
    return version


def write(model: DiscreteVAE, graphs: dict, path: str | os.PathLike) -> None:
    """Writes the graphs, `signatures(model)`, as a SavedModel at `path`."""
    module = tf.Module()
    # Only what inference needs, once: neither the optimizer's state nor generators of noise.
    module.weights = [variable.value for part in (model.encoder, model.decoder) for variable in part.variables]
    # Without gradients of the operations, which only training would use.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), {**graphs, "serving_default": graphs["encode"]}, options)


@contextlib.contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """Gives a directory in `folder` to fill, which a server takes for no version; what is not committed is removed.

    What a killed export left behind is removed by the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        # Nobody else may take the directory for a leftover before it is locked.
        with _lock(folder):
            _remove_leftovers(folder)
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(_lock(staging))
        yield staging


def versions(folder: Path) -> list[int]:
    """The versions in a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if serving.is_version(path))


def _commit(staging: Path, folder: Path) -> Path:
    """Renames a complete directory to the next version."""
    for number in itertools.count(max(versions(folder), default=0) + 1):
        try:
            os.rename(staging, folder / str(number))
        except OSError as error:
            # Another export was faster, perhaps on another machine, where the lock may not reach.
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
    """Removes what killed exports left behind; the caller holds the folder's lock."""
    for path in folder.glob(_UNFINISHED + "[0-9a-f]" * 32):
        with contextlib.suppress(FileNotFoundError), _lock(path, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)
    # Half a card. Cards are written under the folder's lock, which is held here.
    for path in folder.iterdir():
        if files.is_leftover(path) and path.suffix in (".json", ".md"):
            path.unlink()
