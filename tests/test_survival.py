"""training: runs that are killed, that find the disk full, and that must be the same twice."""

import contextlib
import csv
import os
import random
import resource
import signal
import sys
import time
import uuid

import numpy as np
import pytest
import tensorflow as tf
from helpers import same_run
from tensorflow.python.framework.config import is_op_determinism_enabled

from tf_isvae import files, training
from tf_isvae.training import Config, checkpoints, recorder
from tf_isvae.training.recorder import Recorder
from tf_isvae.training.run_directory import RunDirectory

STEPS = 15  # an epoch: 1,437 digits in batches of 100


def config(run_dir, **settings):
    """A small model, with all that is random or changes in a run: binarisation, noise, learning rate, KL weight."""
    small = {"dataset": "digits", "image_size": (8, 8), "latent_dim": 6, "epochs": 6, "batch_size": 100, "seed": 1}
    small["precision"] = "float32"
    moving = {"estimator": "DisARM", "binarize": "dynamic", "schedule": "cosine", "kl_start": 5.0, "kl_epochs": 3}
    return Config(**{**small, **moving, "run_dir": str(run_dir), **settings})


def saved_steps(run_dir):
    """The steps of the checkpoints, in order."""
    return sorted(int(path.stem) for path in run_dir.glob("checkpoints/[0-9]*.npz"))


def events(run_dir, part, tag):
    """(epoch, value) of each TensorBoard event with this tag, in the order in which they were written."""
    (path,) = (run_dir / "tensorboard" / part).iterdir()
    found = []
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        found += [(event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value if v.tag == tag]
    return found


def tensorboard_is_the_history(run_dir):
    with open(run_dir / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for part, tag, name in (("train", "epoch_kl", "kl"), ("validation", "epoch_loss", "val_loss")):
        expected = [(epoch, np.float32(row[name])) for epoch, row in enumerate(rows)]
        assert events(run_dir, part, tag) == expected


# --- Killed.


def train(settings, resume):
    """In a process of its own: a checkpoint is due at each step."""
    recorder.SAVE_AFTER_SECONDS, recorder.CHECKPOINT_SHARE = -1, 1e9
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    training.train(settings, resume=resume)


def kill_and_resume(forks, settings, run_dir, kills):
    """Kills the run `kills` times at random moments, spread over its length; every fourth time while it starts."""
    total = settings.epochs * STEPS
    killed = 0
    while killed < kills:
        process = forks.Process(target=train, args=(settings, (run_dir / "config.json").exists()))
        process.start()
        try:
            if killed % 4 == 3:
                time.sleep(random.uniform(0, 2))
            else:
                step = (killed + random.random()) / (kills + 1) * total
                deadline = time.monotonic() + 200
                while not [saved for saved in saved_steps(run_dir) if saved >= step]:
                    assert process.is_alive() and time.monotonic() < deadline
                    time.sleep(0.001)
                time.sleep(random.uniform(0, 0.02))
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before the kill: the test shows nothing"
        killed += 1
    return training.train(settings, resume=True)[1]


@pytest.mark.all
def test_a_run_that_is_killed_twenty_times_ends_as_one_left_alone(forks, tmp_path):
    alone = training.train(config(tmp_path / "alone", epochs=60))[1]
    run_dir = kill_and_resume(forks, config(tmp_path / "run", epochs=60), tmp_path / "run", kills=20)
    same_run(run_dir, alone)
    tensorboard_is_the_history(run_dir)
    assert sorted(path.name for path in run_dir.rglob("*") if ".tfevents." not in path.name) == sorted(
        path.name for path in alone.rglob("*") if ".tfevents." not in path.name
    )


def test_what_a_killed_process_was_writing(tmp_path):
    """Half a config.json does not occupy a directory; half a checkpoint is not read, and is removed."""
    half = f".{uuid.uuid4().hex}"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in (f"{half}.json", f"checkpoints/{half}.npz"):
        (tmp_path / "run" / name).write_text("{")
        assert files.is_leftover(tmp_path / name)
    assert checkpoints.newest(tmp_path / "run") is None
    (tmp_path / "run" / "config.json").write_text("{}")
    RunDirectory(tmp_path / "run").begin({})
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == ["checkpoints", "config.json"]
    (tmp_path / "run" / "checkpoints").rmdir()
    (tmp_path / "run" / "config.json").rename(tmp_path / "run" / f"{half}.json")
    RunDirectory(tmp_path / "run").claim(new=True).release()
    for name in (".hidden", ".gitignore", f"{half[1:]}.json", ".0123.npz"):
        assert not files.is_leftover(tmp_path / name)


# --- A disk that is full.


@pytest.fixture
def file_limit():
    """file_limit(n): no file can grow beyond n bytes, which fails as a full disk does; None lifts it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run directory of a run of 6 epochs that nothing happened to."""
    return training.train(config(tmp_path_factory.mktemp("runs") / "finished"))[1]


def at_the_end_of_epochs(monkeypatch, actions):
    """Does actions[epoch](run) before the end of that epoch is recorded. A checkpoint is due at each epoch."""
    on_epoch_end = Recorder.on_epoch_end

    def and_act(self, epoch, logs=None):
        actions.get(epoch + 1, lambda run: None)(self)
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(Recorder, "on_epoch_end", and_act)
    monkeypatch.setattr(recorder, "CHECKPOINT_SHARE", 1e9)


@pytest.mark.all
def test_a_disk_that_is_full_for_a_while(finished, tmp_path, monkeypatch, file_limit, capsys):
    kept = {}

    def room_again(run):
        kept["steps"], kept["files"] = (
            saved_steps(run.directory.path),
            list((run.directory.path / "checkpoints").iterdir()),
        )
        file_limit(None)

    at_the_end_of_epochs(monkeypatch, {3: lambda run: file_limit(100_000), 5: room_again})
    run_dir = training.train(config(tmp_path / "run"))[1]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.partition(" in ")[0] for line in warnings] == [
        f"warning: step {epoch * STEPS}: a checkpoint" for epoch in (3, 4)
    ]
    for line in warnings:
        assert "cannot be written (File too large); the run goes on and tries again" in line
        assert f"the last good checkpoint is that of step {2 * STEPS}: make room." in line
    assert kept["steps"] == [STEPS, 2 * STEPS] and len(kept["files"]) == 2
    same_run(run_dir, finished)


@pytest.mark.all
def test_a_disk_that_stays_full(finished, tmp_path, monkeypatch, file_limit):
    """The run ends without its model, and resumed with room it ends as if nothing had happened."""
    at_the_end_of_epochs(monkeypatch, {4: lambda run: file_limit(100_000)})
    with pytest.raises(OSError) as error:
        training.train(config(tmp_path / "run"))
    file_limit(None)
    assert str(error.value) == (
        f"the trained model cannot be written to {tmp_path / 'run'} (File too large); make room there, then "
        f"--resume --run-dir {tmp_path / 'run'} goes on from the last checkpoint"
    )
    assert saved_steps(tmp_path / "run") == [2 * STEPS, 3 * STEPS]
    assert not (tmp_path / "run" / "model.keras").exists()
    assert not [path for path in (tmp_path / "run").rglob("*") if files.is_leftover(path)]
    monkeypatch.undo()
    same_run(training.train(config(tmp_path / "run"), resume=True)[1], finished)


@pytest.mark.all
def test_stopped_while_the_disk_is_full(finished, tmp_path, monkeypatch, file_limit, capsys):
    def fill_and_stop(run):
        file_limit(100_000)
        signal.raise_signal(signal.SIGTERM)

    at_the_end_of_epochs(monkeypatch, {3: fill_and_stop})
    with pytest.raises(training.Interrupted) as stopped:
        training.train(config(tmp_path / "run"))
    file_limit(None)
    assert "what was done up to the last good checkpoint is kept in" in str(stopped.value)
    assert f"--resume --run-dir {tmp_path / 'run'} goes on" in str(stopped.value)
    assert saved_steps(tmp_path / "run") == [STEPS, 2 * STEPS]


# --- The same twice.


def train_twice(folder):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for name in ("one", "other"):
            training.train(config(folder / name, model="cnn_bvae", epochs=1, deterministic=True))
    sys.exit(0 if is_op_determinism_enabled() else 3)


@pytest.mark.all
def test_deterministic(forks, tmp_path):
    """In a process of its own: the switch holds for the whole process."""
    process = forks.Process(target=train_twice, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    same_run(tmp_path / "one", tmp_path / "other")
    assert training.stored_config(tmp_path / "one").deterministic is True
