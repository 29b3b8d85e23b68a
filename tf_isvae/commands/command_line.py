"""What the commands share: errors of one line, and exit statuses.

2: bad arguments. 1: the work failed. 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import tf_isvae

# What the package raises for something it was asked for that it cannot do.
BAD_ARGUMENTS = (
    ValueError,
    TypeError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# What a user can cause without an argument being wrong: no room, no network, no such package, a worker that is lost, a
# loss that is not finite (callbacks.NonFiniteLoss).
FAILURES = (OSError, ImportError, MemoryError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage. Defaults are left to the package."""

    def __init__(self, description: str, **options):
        prog = os.path.basename(sys.argv[0])
        if not prog.endswith(".py"):  # the examples as one types them
            description = re.sub(r"python scripts/(\w+)\.py", r"tf_isvae \1", description)
        super().__init__(
            **{"prog": prog, **options},
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def run(
    make_parser: Callable[[], Parser],
    prepare: Callable[[argparse.Namespace], Any],
    work: Callable[[Any], None],
    announce: Callable[[argparse.Namespace], None] | None = None,
) -> None:
    """Runs a script in two parts, and exits with the status of the module's text.

    Args:
        make_parser: makes the parser of the arguments.
        prepare: takes the arguments, and opens all that they name. What the package refuses here are bad arguments.
        work: takes what `prepare` returns, and does the rest. A ValueError or TypeError here is a defect of the
            program, and is shown as one, with its traceback.
        announce: says what is about to begin, before the seconds that the import of TensorFlow takes.
    """
    try:
        parser = make_parser()
        arguments = parser.parse_args()
        if announce:
            announce(arguments)
        with quiet():
            tf_isvae.import_all()
        try:
            prepared = prepare(arguments)
        except BAD_ARGUMENTS as error:
            _exit(2, f"error: {_one_line(error)}")
        work(prepared)
    except KeyboardInterrupt as stop:
        _exit(128 + getattr(stop, "signal", signal.SIGINT), str(stop) or "stopped")
    except FAILURES as error:
        _exit(1, f"failed: {_one_line(error)}")
    except Exception:
        sys.stdout.flush()
        traceback.print_exc()
        _exit(1, "internal error: this is a defect of the program; please report it, with the lines above")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what TensorFlow's own code writes to standard error (no GPU found, and the like); errors are exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it would write later; errors reach Python anyway
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def exact_float32() -> None:
    """On GPUs with TF32, TensorFlow rounds what it multiplies to 10 bits of mantissa unless it is told not to.

    That does no harm in training, but a command that encodes must find the codes that a CPU finds
    (docs/distributed.md has the figures).
    """
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def typed(name: str, *arguments: str | os.PathLike) -> str:
    """Another command, such as `tf_isvae evaluate runs/a`, as one would type it where this one was typed."""
    called, folder = sys.argv[0], os.path.dirname(sys.argv[0])
    if called.endswith(".py"):
        words = [_program("python"), os.path.join(folder, f"{name}.py")]
    else:
        words = [_program("tf_isvae"), name]
    return shlex.join([*words, *map(str, arguments)])


def typed_tensorboard(folder: str | os.PathLike) -> str:
    """The command that shows the events in a folder."""
    is_beside = os.path.exists(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    program = [_program("tensorboard")] if is_beside else [_program("python"), "-m", "tensorboard.main"]
    return shlex.join([*program, "--logdir", str(folder)])


def _program(name: str) -> str:
    """A program of this Python's environment: its name alone, if that is what a shell finds by it; else its path."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if name == "python" and not os.path.exists(beside):
        beside = sys.executable
    if not os.path.exists(beside) or shutil.which(name) == beside:
        return name
    path = os.path.relpath(beside)
    return beside if path.startswith(os.pardir) else path


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def _exit(status: int, message: str) -> None:
    sys.stdout.flush()
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(status)
