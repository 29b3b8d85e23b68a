"""A run, and a second one by the command that stands on the card of the first."""

import json
import shlex
from pathlib import Path

from tf_isvae import training
from tf_isvae.commands import train


def main(folder, settings):
    """Trains <folder>/one, and <folder>/two as the command says; returns the command."""
    training.train(training.Config(**settings, run_dir=str(folder / "one")))
    command = training.command(json.loads(Path(folder / "one" / "config.json").read_text()))
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "scripts/train.py")
    given = train.make_parser().parse_args([*arguments, "--run-dir", str(folder / "two")])
    train.work(train.prepare(given))
    return command
