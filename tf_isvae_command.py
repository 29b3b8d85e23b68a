"""The command `tf_isvae`, and what scripts/ run.

It lies beside the package, whose import takes seconds: TensorFlow's. Where this module has been imported, the package
imports nothing before it is used, so that --help and a mistyped option are answered at once.
"""

import sys


def run(name: str) -> None:
    """Runs one of the commands with the arguments of the process, and exits with its status."""
    from tf_isvae.commands import run

    run(name)


def main() -> None:
    """The command `tf_isvae`."""
    from tf_isvae.commands import main

    sys.exit(main())
