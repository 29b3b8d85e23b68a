"""The commands: `tf_isvae train`, which is also `python scripts/train.py`, and the others.

Each module has make_parser, prepare and work, and may have announce, as command_line.run takes them. At its top it
imports what is at hand at once; NumPy, Keras and TensorFlow in functions, so that --help does not wait for them.
"""

from __future__ import annotations

import difflib
import importlib
import sys

import tf_isvae

COMMANDS = {
    "train": "trains a model and writes a run directory",
    "evaluate": "the figures of a trained model on test images",
    "export": "a trained model as SavedModel, LiteRT and .keras files",
    "choose_size": "trains models of several sizes, and says how many bits the images take",
    "search": "the images of a folder that are most like a given one",
    "compare_retrieval": "how well bits find images of the same class, beside ITQ",
    "compare_outliers": "how well a model finds outliers, beside scikit-learn's detectors",
    "compare_estimators": "gradient estimators on the field's protocol: a table, a figure",
    "benchmark": "speed of training and of exported models",
    "gpu_check": "a first run on GPUs: figures beside the CPU's, and speed",
}


def run(name: str) -> None:
    """Runs a command with the arguments of the process, and exits with its status."""
    from tf_isvae.commands import command_line

    command = importlib.import_module(f"tf_isvae.commands.{name}")
    command_line.run(command.make_parser, command.prepare, command.work, getattr(command, "announce", None))


def main() -> int:
    """Runs the command that the first argument names; returns the exit status of what has none of its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        # As if each command were a program of its own: its messages and its help begin with this.
        sys.argv = [f"tf_isvae {name}", *sys.argv[2:]]
        run(name)
        return 0
    if name == "--version":
        print(f"tf_isvae {tf_isvae.__version__}")
        return 0
    if name in ("-h", "--help"):
        print("usage: tf_isvae COMMAND [options]      tf_isvae COMMAND --help lists them\n")
        print(*(f"  {name:20}{text}" for name, text in COMMANDS.items()), "  --version", sep="\n")
        return 0
    given = f"no command is called {name!r}" if name else "no command is given"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " --help says what they do."
    print(f"tf_isvae: error: {given}; there are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
    return 2
