"""The directory of a run: claimed by one process while it runs, and what is written into it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from tf_isvae import files

try:
    import fcntl
except ImportError:  # Windows has no locks on directories
    fcntl = None


class RunDirectory(contextlib.AbstractContextManager):
    """A directory that this process alone writes to, from `claim` to `release`, the end of `with`, or of the process.

    The lock is the operating system's (flock), so a process that is killed leaves none behind. It holds among the
    processes of one machine; on a file system that several share, it does not keep the others out.

    Workers that are not the chief get an object that claims and writes nothing.

    Example:
        >>> from pathlib import Path
        >>> with training.RunDirectory(Path("run")).claim(new=True):
        ...     training.RunDirectory(Path("run")).claim(new=True)
        Traceback (most recent call last):
        FileExistsError: run_dir run is in use by a run that has not ended; wait for it, or choose a new directory.
    """

    def __init__(self, path: Path, writable: bool = True, how_to_resume: str | None = None):
        self.path = path
        self.writable = writable
        self.how_to_resume = how_to_resume or f"--resume --run-dir {path}"
        self._config = path / "config.json"
        self._lock: int | None = None
        self._made: list[Path] = []

    def claim(self, *, new: bool) -> RunDirectory:
        """Makes the directory if there is none, and locks it. `new`: it must then be empty.

        Raises:
            FileExistsError: another process is running in it, or it holds other files. OSError: it cannot be made.
        """
        if not self.writable:
            return self
        if new:
            self._check_empty()
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._made = missing
            self._lock = _lock(self.path)
        except BlockingIOError:
            raise FileExistsError(
                f"run_dir {self.path} is in use by a run that has not ended; wait for it, or choose a new directory."
            ) from None
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if new:
            try:
                self._check_empty()  # again: a run may have begun and ended before the lock was had
            except FileExistsError:
                self.release()
                raise
        return self

    def release(self) -> None:
        """Gives the directory up, and removes it if it was made for this run and nothing was written."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with contextlib.suppress(OSError):  # not empty
            for path in self._made:
                path.rmdir()
        self._made = []

    def __exit__(self, *error) -> None:
        self.release()

    def _check_empty(self) -> None:
        path = self.path
        if path.exists() and not (path.is_dir() and all(map(files.is_leftover, path.iterdir()))):
            raise FileExistsError(
                f"run_dir {path} already holds another run or other files; choose a new directory, or resume that run."
            )

    def begin(self, settings: dict) -> None:
        """Writes config.json: the settings, the versions of the packages, the number of threads.

        A run that is resumed has one. What a killed process was writing is removed, and another number of threads is
        said in a warning of one line.
        """
        if not self.writable:
            return
        if self._config.exists():
            self._go_on()
            return
        names = ("tensorflow", "keras", "tensorflow-probability", "numpy")
        versions = {name: importlib.metadata.version(name) for name in names}
        try:
            files.write_json(self._config, {**settings, "versions": versions, "threads": threads()})
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _go_on(self) -> None:
        for path in self.path.rglob(".*"):
            if files.is_leftover(path):
                path.unlink()
        began, now = json.loads(self._config.read_text()).get("threads"), threads()
        if began not in (None, now):
            print(
                f"warning: the run in {self.path} began with {began} threads and goes on with {now}, which add in "
                "another order: its last digits may differ from those of a run that was not stopped.",
                file=sys.stderr,
            )

    def try_to_write(self, what: str, write: Callable[[], None], step: int) -> bool:
        """Calls `write`, on the chief. Returns False if it fails: the run goes on, with a warning of one line."""
        if not self.writable:
            return True
        try:
            write()
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            kept = sorted(int(path.stem) for path in self.path.glob("checkpoints/[0-9]*.npz"))
            last = f"the last good checkpoint is that of step {kept[-1]}" if kept else "there is no checkpoint yet"
            print(
                f"\nwarning: step {step}: {what} in {self.path} cannot be written ({reason}); the run goes on "
                f"and tries again, {last}: make room.",
                file=sys.stderr,
            )
            return False
        return True

    @property
    def is_finished(self) -> bool:
        """True if the run has left its metrics, which it does last."""
        return (self.path / "metrics.json").exists()


def claim_numbered(parent: Path, name: str) -> RunDirectory:
    """Claims <parent>/<name>, or <name>-2, <name>-3 ... if it is taken; two processes never get the same."""
    for i in itertools.count(1):
        directory = RunDirectory(parent / (name if i == 1 else f"{name}-{i}"))
        if not directory.path.exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                return directory.claim(new=True)


def threads() -> int:
    """How many threads TensorFlow splits one operation over. Sums are added in an order that depends on it."""
    set_by_call = tf.config.threading.get_intra_op_parallelism_threads()
    set_by_variable = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if set_by_call > 0:
        return set_by_call
    if set_by_variable.isdecimal() and int(set_by_variable) > 0:
        return int(set_by_variable)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lock(path: Path) -> int | None:
    """The descriptor that holds an exclusive lock. Raises BlockingIOError if another process has one."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _unwritable(path: Path, error: OSError) -> OSError:
    return type(error)(f"run_dir {path} cannot be written: {error.strerror}; choose another.")
