"""scripts: what they print, write and exit with."""

import csv
import dataclasses
import functools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers import ROOT, one_line
from PIL import Image

from tf_isvae import estimators, training, zoo
from tf_isvae.callbacks import NonFiniteLoss
from tf_isvae.commands import command_line, evaluate, export

SCRIPT = ROOT / "scripts" / "train.py"
EPOCHS = 15
DIGITS = ["--dataset", "digits", "--image-size", "8", "--latent-dim", "6", "--batch-size", "300", "--seed", "3"]


@pytest.fixture
def train(script):
    return functools.partial(script, "train.py")


# --- Whole runs, each in a process of its own.


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fresh_python):
    """The completed process, and the run directory."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    # Without the setting of the tests: the script itself keeps TensorFlow quiet.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": None}
    return fresh_python(SCRIPT, *DIGITS, "--epochs", EPOCHS, "--run-dir", run_dir, environment=quiet), run_dir


@pytest.mark.all
def test_a_run(finished):
    done, run_dir = finished
    assert done.returncode == 0 and done.stderr == ""
    written = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert {"config.json", "model.keras", "history.csv", "timing.csv", "metrics.json"} <= written
    assert {"figures/training_curves.png", "figures/reconstructions.png", "figures/prior_samples.png"} <= written
    assert any(name.startswith("tensorboard/train/events") for name in written)
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["epochs"], config["image_size"], config["latent_dim"]) == (EPOCHS, [8, 8], 6)
    for name in ("config.json", "model.keras", "figures/prior_samples.png", "tensorboard/"):
        assert f"{run_dir / name}" in done.stdout


@pytest.mark.all
def test_what_a_run_shows(finished):
    """At once what is asked for; before the first epoch what it is; a short line an epoch; then what to do next."""
    done, run_dir = finished
    lines = done.stdout.splitlines()
    assert lines[0] == "fc_bvae on digits, recipe best: starting TensorFlow"
    shown = {line[:15].strip(): line[15:] for line in lines[1:7]}
    dense = 64 * 1024 + 1024 + 1024 * 6 + 6
    parameters = dense + 6 * 1024 + 1024 + 1024 * 64 + 64
    assert shown["data"] == "digits: 1,437 training and 360 test images of 8x8x1"
    assert shown["model"].startswith(f"fc_bvae: latent 6, {parameters:,} parameters, ")
    assert shown["steps"] == "15 epochs of 5, batch 300, learning rate 0.003, cosine"
    assert (shown["estimator"], shown["run directory"]) == ("DisARM", str(run_dir))
    epochs = lines[7 : 7 + EPOCHS]
    number = r" +-?\d+\.\d\d  "
    pattern = rf"epoch +(\d+)/15  -ELBO{number}test{number}KL{number}\d+\.\d s(  \d+ s left)?"
    assert [int(re.fullmatch(pattern, line)[1]) for line in epochs] == [*range(1, EPOCHS + 1)]
    assert ["left" in line for line in epochs] == [True] * (EPOCHS - 1) + [False]
    assert max(map(len, lines[:1] + epochs)) < 80
    to_evaluate, to_export, tensorboard = (shlex.split(line) for line in lines[lines.index("next:") + 1 :])
    for (python, script, *arguments), command in ((to_evaluate, evaluate), (to_export, export)):
        assert shutil.which(python) and script == str(ROOT / "scripts" / f"{command.__name__.split('.')[-1]}.py")
        assert command.make_parser().parse_args(arguments).source == str(run_dir)
    assert shutil.which(tensorboard[0]) and tensorboard[1:] == ["--logdir", str(run_dir / "tensorboard")]


@pytest.mark.all
def test_the_table_shows_the_metrics(finished):
    done, run_dir = finished
    metrics = json.loads((run_dir / "metrics.json").read_text())
    with open(run_dir / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert f"after {EPOCHS} epochs, test images, nats per image" in done.stdout
    for label, name in (("-ELBO", "val_loss"), (r"log-likelihood .*", "val_log_likelihood"), (r"KL\(.*", "val_kl")):
        (shown,) = re.findall(rf"^  {label} +(\S+)$", done.stdout, re.MULTILINE)
        assert float(shown) == round(metrics[name], 2) == round(float(last[name]), 2)


@pytest.mark.all
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=lambda x: str(int(x))
)
def test_stopped_and_resumed(finished, tmp_path, train, number, status):
    """At a random moment after the first checkpoint; what is resumed ends as the uninterrupted run did."""
    run_dir = tmp_path / "run"
    command = [sys.executable, SCRIPT, *DIGITS, "--epochs", EPOCHS, "--run-dir", run_dir]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*map(str, command)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(run_dir.glob("checkpoints/*.npz")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        running.send_signal(number)
        errors = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == status
    if status > 0:
        one_line(errors, "stopped by", signal.Signals(number).name, "is kept in", str(run_dir))
    assert not (run_dir / "metrics.json").exists(), "the run was over before the signal: the test shows nothing"
    if number == signal.SIGTERM:
        return  # resumed as after SIGINT, which takes a while
    status, output, errors = train("--resume", "--run-dir", run_dir)
    assert (status, errors) == (0, "")
    assert (run_dir / "history.csv").read_bytes() == (finished[1] / "history.csv").read_bytes()
    one, other = (keras.models.load_model(folder / "model.keras").get_weights() for folder in (run_dir, finished[1]))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


# --- Runs in this process.


@pytest.mark.all
def test_a_folder_of_images(train, tmp_path):
    """End to end: colour images of different sizes, no test split."""
    rng = np.random.default_rng(0)
    for i in range(40):
        image = rng.integers(0, 256, (10 + i % 3, 12, 3), dtype=np.uint8)
        path = tmp_path / "photos" / "some" / f"{i}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    arguments = ["--dataset", "photos", "--image-size", "8x6", "--channels", 1, "--binarize", "dynamic"]
    status, output, errors = train(*arguments, "--batch-size", 16, "--epochs", 1, "--latent-dim", 3)
    assert (status, errors) == (0, "")
    assert "after 1 epochs, train images" in output
    following = output.partition("\nnext:\n")[2]
    assert "export.py" in following and "tensorboard" in following and "evaluate.py" not in following
    run_dir = tmp_path / "runs" / "fc_bvae_photos"
    model = keras.models.load_model(run_dir / "model.keras")
    assert model.image_shape == (8, 6, 1)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert "val_loss" not in metrics and metrics["steps"] == 3
    # Binary images of 48 pixels, hardly learnt: about ln 2 a pixel.
    assert 25 < metrics["loss"] < 40


@pytest.mark.all
@pytest.mark.parametrize("arguments", [[], ["--estimator", "LeaveOneOut"]], ids=["default", "changed"])
def test_the_best_recipe(train, tmp_path, arguments):
    """What a recipe sets holds unless an option says otherwise."""
    settings = [*DIGITS, "--epochs", 1, "--model", "fc_cvae", "--recipe", "best", "--run-dir", tmp_path / "run"]
    status, _, errors = train(*settings, *arguments)
    assert status == 0, errors
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    # The KL weight falls over the recipe's share of the run: the first half, which one epoch does not have.
    expected = {**training.RECIPES["best"]["fc_cvae"], "epochs": 1, "batch_size": 300, "kl_epochs": 0}
    if arguments:
        expected["estimator"] = "LeaveOneOut"
    assert {name: stored[name] for name in expected} == expected


def test_an_enormous_learning_rate(train, tmp_path):
    status, _, errors = train(*DIGITS, "--epochs", 2, "--learning-rate", "1e30")
    assert status == 1
    one_line(errors, "train.py: failed: the loss became", "in epoch", "step", "learning rate")
    assert (tmp_path / "runs" / "fc_bvae_digits" / "model.keras").exists()


def test_a_data_set_that_cannot_be_downloaded(train, tmp_path, offline):
    status, output, errors = train("--dataset", "mnist", "--data-dir", tmp_path / "tfds")
    assert (status, output) == (1, "fc_bvae on mnist, recipe best: starting TensorFlow\n")
    one_line(errors, "train.py: failed: mnist is not in", "must be downloaded", "TFDS_DATA_DIR")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.all
def test_a_run_directory_in_use(finished, train):
    run_dir = finished[1]
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    for arguments, word in (
        ([*DIGITS], "already holds another run"),
        (["--resume"], "is finished"),
        (["--resume", "--seed", 4, "--epochs", 9], f"epochs is {EPOCHS} in the run and 9 now; seed is 3 in the run"),
    ):
        status, output, errors = train(*arguments, "--run-dir", run_dir)
        assert status == 2 and re.fullmatch(".*: starting TensorFlow\n", output)
        one_line(errors, "train.py: error: ", word)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_help_lists_every_option(train):
    status, output, errors = train("--help")
    assert (status, errors) == (0, "")
    listed = set(re.findall(r"^  --([a-z-]+) ", output, re.MULTILINE))
    assert {"model", "dataset", "epochs", "batch-size", "learning-rate", "seed", "run-dir", "resume"} <= listed
    settings = {field.name.replace("_", "-") for field in dataclasses.fields(training.Config)}
    assert listed - {"resume"} <= settings
    # What a recipe sets, for each model; names in full.
    output = " ".join(output.split())
    assert (
        "default 220 (fc_bvae), 60 (fc_cvae), 160 (cnn_bvae), 40 (cnn_cvae), 300 (fc_vae), "
        "24 (fc_hvae), 15 (cnn_hvae), 250 (fc_hbvae); with --recipe paper 300" in output
    )
    # The setting of one model does not pass for that of all.
    assert "0.1 (fc_bvae, fc_hbvae)" in output and "clusters (fc_hvae, cnn_hvae)" in output
    assert f"one of {', '.join(zoo.MODELS)};" in output and f"one of {', '.join(estimators.names())};" in output


# --- Exit statuses.


@pytest.mark.parametrize(
    "error, in_preparation, in_work",
    [
        (ValueError("x is 3"), (2, "error: x is 3"), (1, "internal error")),
        (TypeError("a list"), (2, "error: a list"), (1, "internal error")),
        (FileNotFoundError("no file"), (2, "error: no file"), (1, "failed: no file")),
        (PermissionError("not yours"), (2, "error: not yours"), (1, "failed: not yours")),
        (ConnectionError("no network"), (1, "failed: no network"), (1, "failed: no network")),
        (OSError("no room"), (1, "failed: no room"), (1, "failed: no room")),
        (NonFiniteLoss("the loss is nan"), (1, "failed: the loss is nan"), (1, "failed: the loss is nan")),
        (training.WorkerLost("worker 1"), (1, "failed: worker 1"), (1, "failed: worker 1")),
        (ImportError("no such package"), (1, "failed: no such package"), (1, "failed: no such package")),
        (AttributeError("None has no z"), (1, "internal error"), (1, "internal error")),
        (KeyError("z"), (1, "internal error"), (1, "internal error")),
        (KeyboardInterrupt(), (130, "stopped"), (130, "stopped")),
        (training.Interrupted(signal.SIGTERM, "runs/a", True, "x"), (143, "stopped by"), (143, "stopped by")),
    ],
    ids=repr,
)
def test_exit_statuses(monkeypatch, capfd, error, in_preparation, in_work):
    """Only what the preparation refuses is a bad argument; a defect of the program comes with its traceback."""
    monkeypatch.setattr(sys, "argv", ["scripts/some.py"])

    def fail(given):
        raise error

    def parser():
        return command_line.Parser("")

    for parts, (status, words) in ((fail, print), in_preparation), ((lambda arguments: 1, fail), in_work):
        with pytest.raises(SystemExit) as stop:
            command_line.run(parser, *parts)
        output, errors = capfd.readouterr()
        assert (stop.value.code, output) == (status, "")
        *traceback, last = errors.splitlines()
        assert last.startswith(f"some.py: {words}")
        assert bool(traceback) == ("internal" in words)
        if traceback:
            assert (
                traceback[0].startswith("Traceback") and "please report it" in last and type(error).__name__ in errors
            )
