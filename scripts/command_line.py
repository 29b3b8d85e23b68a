"""What the scripts share: errors of one line, and exit statuses.

2: bad arguments. 1: the run failed. 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

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


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage. Defaults are left to the package."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def run(parser: Parser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parses the arguments, calls `main` with them, and exits with the status of the module's text."""
    arguments = parser.parse_args()
    try:
        with quiet():
            import tf_isvae  # noqa: F401
        main(arguments)
    except KeyboardInterrupt as stop:
        _exit(parser, 128 + getattr(stop, "signal", signal.SIGINT), str(stop) or "stopped")
    except BAD_ARGUMENTS as error:
        _exit(parser, 2, f"error: {_one_line(error)}")
    except Exception as error:
        _exit(parser, 1, f"failed: {_one_line(error)}")


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


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def _exit(parser: Parser, status: int, message: str) -> None:
    sys.stdout.flush()
    print(f"{parser.prog}: {message}", file=sys.stderr)
    sys.exit(status)
