"""The package as pip installs it: the command `tf_isvae`, the version, and the trained models in the wheel."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import ROOT

import tf_isvae
import tf_isvae_command
from tf_isvae import commands, zoo


def command(monkeypatch, capfd, *arguments):
    """The exit status, the output and the errors of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tf_isvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        tf_isvae_command.main()
    return stop.value.code, *capfd.readouterr()


def test_the_version():
    assert importlib.metadata.version("tf_isvae") == tf_isvae.__version__
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M) == [tf_isvae.__version__]


def test_the_command_alone(monkeypatch, capfd):
    assert command(monkeypatch, capfd, "--version") == (0, f"tf_isvae {tf_isvae.__version__}\n", "")
    status, output, errors = command(monkeypatch, capfd, "--help")
    assert (status, errors) == (0, "") and all(f"  {name} " in output for name in commands.COMMANDS)
    for given, hint in (([], "--help"), (["trian"], "Did you mean 'train'?")):
        status, output, errors = command(monkeypatch, capfd, *given)
        assert (
            (status, output) == (2, "")
            and errors.count("\n") == 1
            and "train, evaluate, export" in errors
            and hint in errors
        )


def test_every_script_runs_its_command():
    for name in commands.COMMANDS:
        assert f'run("{name}")' in (ROOT / "scripts" / f"{name}.py").read_text()
        assert (ROOT / "tf_isvae" / "commands" / f"{name}.py").exists()


def test_a_bad_argument_of_the_command(monkeypatch, capfd):
    """Its messages name the command."""
    status, output, errors = command(monkeypatch, capfd, "evaluate", "nowhere")
    assert (status, output) == (2, "") and errors.startswith("tf_isvae evaluate: error: nowhere does not exist")


@pytest.mark.all
def test_the_wheel(tmp_path):
    """Installed from a wheel elsewhere, the command is there and the trained models give the clone's codes."""

    def run(*arguments, environment=None):
        variables = {**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
        done = subprocess.run(
            [*map(str, arguments)], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    # A copy, since setuptools leaves build/ beside what it builds.
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, files.decode().split("\0")):
        if (ROOT / name).is_file():
            copy = tmp_path / "clone" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tmp_path / "clone")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 25e6
    names = zipfile.ZipFile(wheel).namelist()
    assert "tf_isvae/py.typed" in names and "tf_isvae_command.py" in names
    models = {name.split("/")[2] for name in names if name.endswith(".keras")}
    assert models == {path.parent.name for path in ROOT.glob("exported_models/*/*.keras")} == {*zoo.names()}
    assert not [name for name in names if "exported_models" in name and not name.endswith((".keras", "/metadata.json"))]

    run(*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    installed = {"PYTHONPATH": str(tmp_path / "site")}
    program = (
        "import numpy as np, tf_isvae; from tf_isvae import zoo\n"
        "images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)\n"
        "print(tf_isvae.__file__); print(zoo.names()); print(zoo.load('fc_bvae_mnist').encode(images).tolist())\n"
    )
    file, found, codes = run(sys.executable, "-c", program, environment=installed).splitlines()
    images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    assert file == str(tmp_path / "site" / "tf_isvae" / "__init__.py") and found == str(zoo.names())
    assert codes == str(zoo.load("fc_bvae_mnist").encode(images).tolist())
    shown = run(sys.executable, tmp_path / "site" / "bin" / "tf_isvae", "train", "--help", environment=installed)
    assert shown.startswith("usage: tf_isvae train ")
