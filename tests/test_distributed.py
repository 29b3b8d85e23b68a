"""Several workers: two processes on loopback do what one does, survive each other's end, and say what is wrong."""

import json
import os
import signal
import socket
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import same_run
from PIL import Image

from tf_isvae import datasets, estimators, training, zoo
from tf_isvae.training import Config, recorder, workers
from tf_isvae.training.recorder import Recorder

STEPS = 3  # an epoch: 1,437 digits in batches of 500
DIGITS = {"image_size": (8, 8), "batch_size": 500}


def config(run_dir, **settings):
    """Three epochs of a small model whose gradient takes no noise, 9 steps in all."""
    small = {"dataset": "digits", "latent_dim": 6, "model": "fc_cvae", "estimator": "Enumerated", "seed": 1}
    return Config(**{**small, **DIGITS, "epochs": 3, "run_dir": str(run_dir), "strategy": "multi_worker", **settings})


# --- What each process does: called in a process of its own, by name.


def fit_with_sgd(strategy=None):
    """Weights after two epochs of SGD, which shows any constant factor: Adam would hide it."""

    def part(context=None):
        shard = (context.input_pipeline_id, context.num_input_pipelines) if context else (0, 1)
        return datasets.load("digits", epochs=2, seed=1, binarize="dynamic", shard=shard, **DIGITS)

    with (strategy or tf.distribute.get_strategy()).scope():
        model = zoo.build("fc_cvae", (8, 8, 1), 6, seed=1)
        model.estimator = estimators.Enumerated()
        model.compile(optimizer=keras.optimizers.SGD(1e-3))
        model.optimizer.build(model.trainable_variables)
    batches = strategy.distribute_datasets_from_function(part) if strategy else part()
    model.fit(batches, epochs=2, steps_per_epoch=STEPS, verbose=0)
    return model.get_weights()


def save_fit_with_sgd(run_dir, worker):
    keras.utils.set_random_seed(1)
    np.savez(run_dir.parent / f"sgd{worker}.npz", *fit_with_sgd(workers.for_strategy("multi_worker").strategy))


def train(run_dir, worker, resume=False, step=None, number=None):
    """Trains; SIGTERM goes to worker 1 in that step, or SIGKILL to the chief. Each step is followed by a checkpoint."""
    recorder.SAVE_AFTER_SECONDS, recorder.CHECKPOINT_SHARE, workers.AGREE_STEPS = -1, 1e9, 1
    on_train_batch_end = Recorder.on_train_batch_end

    def and_signal(self, batch, logs=None):
        if self.step == step and worker == (number == signal.SIGTERM):
            os.kill(os.getpid(), number)
        on_train_batch_end(self, batch, logs)

    Recorder.on_train_batch_end = and_signal
    metrics, _ = training.train(config(run_dir), resume=resume)
    print(json.dumps(metrics))


def train_with_another_seed(run_dir, worker):
    training.train(config(run_dir, seed=worker))


def call(function, run_dir, worker, ports, arguments):
    """In a new process: as one of the workers; what it prints, or raises, goes into a file."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker}})
    with open(run_dir.parent / f"output{worker}.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            function(run_dir, worker, **arguments)
        except (Exception, KeyboardInterrupt) as error:
            print(f"\n{type(error).__name__}: {error}")
            sys.exit(1)


@pytest.fixture(scope="module")
def two_workers(forks):
    """Calls a function in two workers; gives the statuses and the last lines of the outputs."""

    def run(function, run_dir, **arguments):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        workers = [
            forks.Process(target=call, args=(function, run_dir, worker, ports, arguments)) for worker in range(2)
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(timeout=150)
            outputs = [(run_dir.parent / f"output{i}.txt").read_text().strip() for i in range(2)]
            return [worker.exitcode for worker in workers], [(output.splitlines() or [""])[-1] for output in outputs]
        finally:
            for worker in workers:
                worker.kill()

    return run


@pytest.fixture(scope="module")
def finished(two_workers, tmp_path_factory):
    """(run directory, the last lines of the outputs) of two workers."""
    run_dir = tmp_path_factory.mktemp("workers") / "run"
    statuses, outputs = two_workers(train, run_dir)
    assert statuses == [0, 0], outputs
    return run_dir, outputs


@pytest.mark.all
def test_two_workers_take_the_steps_of_one_process(two_workers, tmp_path):
    """Weights after 6 steps of SGD, the last of an epoch with 437 images: equal on both, and to those of one."""
    statuses, outputs = two_workers(save_fit_with_sgd, tmp_path / "run")
    assert statuses == [0, 0], outputs
    keras.utils.set_random_seed(1)
    alone = fit_with_sgd()
    started = zoo.build("fc_cvae", (8, 8, 1), 6, seed=1).get_weights()
    first, second = (np.load(tmp_path / f"sgd{worker}.npz") for worker in range(2))
    moved = 0.0
    for i, (expected, start) in enumerate(zip(alone, started, strict=True)):
        np.testing.assert_array_equal(first[f"arr_{i}"], second[f"arr_{i}"])
        np.testing.assert_allclose(first[f"arr_{i}"], expected, atol=1e-5)
        if expected.size > 1:
            moved = max(moved, np.abs(expected - start).max())
    assert moved > 1e-2, "the steps are too small to tell one factor from another"


@pytest.mark.all
def test_a_run_of_two_workers_is_that_of_one(finished, tmp_path):
    """The same history to rounding, in a directory that only the chief wrote."""
    run_dir, outputs = finished
    training.train(config(tmp_path / "run", strategy="default"))
    theirs, ours = (
        np.loadtxt(folder / "history.csv", delimiter=",", skiprows=1) for folder in (tmp_path / "run", run_dir)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    written = [
        sorted(str(path.relative_to(folder)) for path in folder.glob("*")) for folder in (run_dir, tmp_path / "run")
    ]
    assert written[0] == written[1]
    for part in ("train", "validation"):
        assert len(list((run_dir / "tensorboard" / part).iterdir())) == 1
    metrics = [json.loads(line) for line in outputs]
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}


@pytest.mark.all
def test_workers_that_end_are_resumed(finished, two_workers, tmp_path):
    """One is told to stop, and both do; one is killed, and the other says so; then both go on to the same end."""
    run_dir = tmp_path / "run"
    statuses, outputs = two_workers(train, run_dir, step=2, number=signal.SIGTERM)
    assert statuses == [1, 1]
    for line in outputs:
        assert line.startswith("Interrupted: stopped by SIGTERM; everything done so far is kept in"), line
    assert sorted(int(path.stem) for path in run_dir.glob("checkpoints/*")) == [1, 2]
    statuses, outputs = two_workers(train, run_dir, resume=True, step=5, number=signal.SIGKILL)
    assert statuses == [-signal.SIGKILL, 1]
    assert outputs[1] == (
        f"WorkerLost: worker 0 ended or cannot be reached; start all 2 workers again with --resume --run-dir {run_dir}"
    )
    statuses, outputs = two_workers(train, run_dir, resume=True)
    assert statuses == [0, 0], outputs
    same_run(run_dir, finished[0])


@pytest.mark.all
def test_workers_with_different_settings_are_refused(two_workers, tmp_path):
    statuses, outputs = two_workers(train_with_another_seed, tmp_path / "run")
    assert statuses == [1, 1]
    for line in outputs:
        assert line == "ValueError: the workers were started with different settings; start all with the same command."
    assert not (tmp_path / "run").exists()


# --- The data, in parts.


@pytest.fixture(params=["memory", "disk"])
def source(request, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (23, 5, 4, 1), dtype=np.uint8)
    if request.param == "memory":
        return images
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02}.png")
    return tmp_path


@pytest.mark.all
@pytest.mark.parametrize("binarize", [None, "static", "dynamic"])
@pytest.mark.parametrize("count", [2, 5])
def test_the_parts_together_are_the_batches(source, binarize, count):
    """Also if a batch, of 3 images, is smaller than the number of workers, and from the middle of an epoch."""
    settings = {"batch_size": 10, "seed": 3, "binarize": binarize, "epochs": 2, "start": 1}
    whole = [batch.numpy() for batch in datasets.load(source, **settings)]
    parts = [[p.numpy() for p in datasets.load(source, shard=(i, count), **settings)] for i in range(count)]
    assert [len(batch) for batch in whole] == [10, 3, 10, 10, 3]
    for batch, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(shares), batch)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "shard, words",
    [
        ((2, 2), ["shard[0] is 2", "less than 2"]),
        ((-1, 2), ["shard[0] is -1", "at least 0"]),
        ((0, 0), ["shard[1] is 0", "at least 1"]),
        ((0, 1.5), ["shard[1] is 1.5", "integer"]),
        (2, ["shard is 2", "(i, n)"]),
        ("ab", ["shard is 'ab'", "(i, n)"]),
    ],
)
def test_bad_shards(shard, words):
    with pytest.raises((ValueError, TypeError)) as error:
        datasets.load("digits", batch_size=10, shard=shard)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


# --- TF_CONFIG.

TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    "text, words",
    [
        (None, ["TF_CONFIG is not set"]),
        ("", ["TF_CONFIG is not set"]),
        ("{", ["is not JSON"]),
        ("[]", ['"cluster"', "None"]),
        ({}, ['"cluster"', "None"]),
        ({"cluster": {}}, ['"cluster"', "{}"]),
        ({"cluster": {"ps": ["a:1"]}}, ['"cluster"', "'ps'", '"chief" and "worker"']),
        ({"cluster": {"worker": "a:1"}}, ["\"worker\" in TF_CONFIG is 'a:1'", "list of addresses"]),
        ({"cluster": {"worker": []}}, ["list of addresses"]),
        ({"cluster": {"worker": ["a"]}}, ["'a'", "host:port"]),
        ({"cluster": {"worker": [7]}}, ["7", "host:port"]),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, ["twice"]),
        ({"cluster": {"chief": ["a:1", "b:1"], "worker": ["c:1"]}}, ["more than one chief"]),
        ({"cluster": TWO}, ['"type"', "None", "worker"]),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, ['"type"', "'chief'"]),
        ({"cluster": TWO, "task": {"type": "worker"}}, ['"index"', "None", "0 to 1"]),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, ['"index"', "2", "0 to 1"]),
        ({"cluster": TWO, "task": {"type": "worker", "index": "0"}}, ['"index"', "'0'", "0 to 1"]),
    ],
    ids=str,
)
def test_a_bad_tf_config_is_refused(tmp_path, monkeypatch, text, words):
    if text is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError) as error:
        training.train(config(tmp_path / "run"))
    message = str(error.value)
    assert message.startswith("strategy multi_worker: ") and "\n" not in message and "such as {" in message
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_which_worker_this_is(monkeypatch):
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    for job, index, expected in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": job, "index": index}}))
        team = workers.for_strategy("multi_worker")
        assert (team.index, team.count, team.is_chief) == (expected, 3, expected == 0)
        alone = workers.for_strategy("default")
        assert (alone.index, alone.count, alone.is_chief) == (0, 1, True)


def test_several_workers_need_a_directory_that_all_know(monkeypatch):
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": task}))
    with pytest.raises(ValueError, match="run_dir is None; with several workers it must be a directory"):
        training.train(Config(dataset="digits", strategy="multi_worker"))
