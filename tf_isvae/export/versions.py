"""The versions of a model in its folder: <folder>/1, <folder>/2 ... appear whole, whoever else exports or is killed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tf_isvae import files

try:
    import fcntl
except ImportError:  # Windows: what a killed export left behind stays, under a name that no server loads
    fcntl = None

# A server loads any directory whose name is an integer, and no other.
_UNFINISHED = "unfinished-"


def is_version(path: Path) -> bool:
    """True if a server takes a directory of this name for a version."""
    return path.name.isascii() and path.name.isdecimal()


@contextlib.contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """Gives a directory in `folder` to fill, which no server takes for a version; `commit` makes it one.

    It is removed at the end if it was not committed, or by the next export if this one is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        # Nobody else may take the directory for a leftover before it is locked.
        with lock(folder):
            _remove_leftovers(folder)
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(lock(staging))
        yield staging


def versions(folder: Path) -> list[int]:
    """The versions in a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if is_version(path))


def commit(staging: Path, folder: Path) -> Path:
    """Renames a complete directory to the next version, and returns its path."""
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
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a directory, which ends with the process, however that ends.

    Gives False if another process holds it, and `wait` is False.
    """
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
        with contextlib.suppress(FileNotFoundError), lock(path, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)
    # Half a card. Cards are written under the folder's lock, which is held here.
    for path in folder.iterdir():
        if files.is_leftover(path) and path.suffix in (".json", ".md", ".png"):
            path.unlink()
