"""What the scripts share: errors of one line, and exit statuses.

2: bad arguments. 1: the run failed. 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable

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
    # TensorFlow's start-up messages (no GPU found, and the like) would drown ours; errors reach Python anyway.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arguments = parser.parse_args()
    try:
        main(arguments)
    except KeyboardInterrupt as stop:
        _exit(parser, 128 + getattr(stop, "signal", signal.SIGINT), str(stop) or "stopped")
    except BAD_ARGUMENTS as error:
        _exit(parser, 2, f"error: {_one_line(error)}")
    except Exception as error:
        _exit(parser, 1, f"failed: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def _exit(parser: Parser, status: int, message: str) -> None:
    sys.stdout.flush()
    print(f"{parser.prog}: {message}", file=sys.stderr)
    sys.exit(status)
