"""training: a run leaves what it promises, and one that was stopped ends as if it had not been."""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import shlex
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import needs_bfloat16, one_line, same_run
from PIL import Image

from tf_isvae import datasets, estimators, evaluation, files, likelihoods, optimizers, training, zoo
from tf_isvae.callbacks import FirstEstimator, NonFiniteLoss, StopOnNonFiniteLoss
from tf_isvae.precision import cap_below_bfloat16, multiplies_bfloat16
from tf_isvae.training import RECIPES, Config, progress, run, run_directory
from tf_isvae.training.config import as_meant
from tf_isvae.training.recorder import Recorder
from tf_isvae.training.run_directory import RunDirectory, claim_numbered
from tf_isvae.training.tensorboard import Events

STEPS = 3  # an epoch: 1,437 digits in batches of 500


def config(run_dir, **settings):
    """Three epochs of a small model, 9 steps in all."""
    small = {"dataset": "digits", "image_size": (8, 8), "latent_dim": 6, "epochs": 3, "batch_size": 500, "seed": 1}
    small.update(precision="float32", start_at_mean=False)
    return Config(**{**small, "run_dir": str(run_dir), **settings})


def stop_at(monkeypatch, step, number):
    """Makes a run receive a signal in its `step`-th step; returns a function that undoes it."""
    on_train_batch_end = Recorder.on_train_batch_end

    def and_stop(self, batch, logs=None):
        if self.step == step:
            signal.raise_signal(number)
        on_train_batch_end(self, batch, logs)

    monkeypatch.setattr(Recorder, "on_train_batch_end", and_stop)
    return lambda: monkeypatch.setattr(Recorder, "on_train_batch_end", on_train_batch_end)


def run_in_two_parts(monkeypatch, settings, step, number, between=lambda: None):
    go_on = stop_at(monkeypatch, step, number)
    with pytest.raises(training.Interrupted) as stopped:
        training.train(settings)
    assert stopped.value.signal == number and settings.run_dir in str(stopped.value)
    go_on()
    between()
    return training.train(settings, resume=True)[1]


def history(run_dir):
    with open(run_dir / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(metrics, run directory) of a run that was not interrupted."""
    return training.train(config(tmp_path_factory.mktemp("runs") / "finished"))


# --- What a run is, and what it leaves.


@pytest.mark.parametrize("model", ["fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae"])
def test_the_papers_recipe(model):
    settings = Config(model=model, recipe="paper")
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (300, 2048, 1e-3)
    assert (settings.estimator, settings.schedule, settings.kl_epochs) == ("ImportanceSampling", "constant", 0)
    assert (settings.precision, settings.strategy, settings.seed) == ("float32", "default", 0)
    assert not settings.start_at_mean


@pytest.mark.parametrize(
    "model, estimator",
    [("fc_bvae", "DisARM"), ("fc_cvae", "Enumerated"), ("cnn_bvae", "DisARM"), ("cnn_cvae", "Enumerated")],
)
def test_the_default_is_the_best_recipe(model, estimator):
    settings = Config(model=model)
    assert (settings.dataset, settings.binarize, settings.recipe) == ("mnist", None, "best")
    assert settings.estimator == estimator == type(zoo.build(model, (4, 4, 1), 3).estimator).__name__
    assert settings.precision in training.PRECISIONS and settings.schedule == "cosine"
    assert (settings.kl_start > 1) == model.endswith("cvae")


@pytest.mark.parametrize("epochs, share", [(None, 20), (40, 20), (7, 3), (1, 0), (400, 200)])
def test_the_weight_falls_over_a_share_of_the_run(epochs, share):
    """The recipe's, half of the epochs; what is given holds."""
    assert Config(model="cnn_cvae", epochs=epochs).kl_epochs == share
    assert Config(model="cnn_cvae", epochs=epochs, kl_epochs=5).kl_epochs == 5


def test_a_terminal_sees_the_steps(monkeypatch):
    """A bar of the epoch under way, which its line replaces; a bar that is interrupted leaves the next line free."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(progress, "REFRESH", -1.0)
    with contextlib.redirect_stdout(Terminal()) as shown:
        lines = progress.EpochLine(12)
        lines.set_params({"steps": 2})
        lines.on_epoch_begin(3)
        lines.on_train_batch_end(0)
        lines.on_train_batch_end(1)
        lines.on_epoch_end(3, {"loss": 123.456, "kl": 1e6})
        lines.close()
        lines.on_epoch_begin(4)
        lines.on_train_batch_end(0)
        lines.close()
    half, whole = "=" * 10 + " " * 10, "=" * 20
    bars = f"\repoch  4/12  [{half}]\repoch  4/12  [{whole}]\repoch  4/12  -ELBO   123.46  KL    1e+06  0.0 s  0 s left"
    assert shown.getvalue().startswith(bars) and shown.getvalue().endswith(f"\n\repoch  5/12  [{half}]\n")
    assert max(map(len, re.split("[\r\n]", shown.getvalue()))) < 80


@pytest.mark.all
def test_an_epoch_line_says_what_was_validated_on(tmp_path, capsys):
    """Images that were held out of the training are not called test images, and the line stays below 80 columns."""
    images = np.random.default_rng(0).random((40, 4, 4, 1))
    np.savez(tmp_path / "x.npz", images)
    settings = {"dataset": str(tmp_path / "x.npz"), "latent_dim": 2, "epochs": 1, "run_dir": str(tmp_path / "run")}
    training.train(Config(**settings, validation_split=0.25))
    (line,) = re.findall("^epoch.*$", capsys.readouterr().out, re.M)
    assert " held out " in line and "test" not in line
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        lines = progress.EpochLine(220, "held out")
        lines.on_epoch_begin(0)
        lines.on_epoch_end(0, {"loss": 1e4, "val_loss": 1e4, "kl": 1e4})
    assert len(shown.getvalue().rstrip("\n")) < 80


@pytest.mark.parametrize("instructions, precision", [(True, "mixed_bfloat16"), (False, "float32")])
def test_the_fastest_precision_depends_on_the_machine(monkeypatch, instructions, precision):
    monkeypatch.setattr("tf_isvae.precision.multiplies_bfloat16", lambda: instructions)
    assert Config(precision="fastest").precision == precision == Config(model="fc_bvae").precision
    assert Config(precision="float32").precision == "float32"


@pytest.mark.parametrize("cap, capped", [("AVX2", True), ("avx512_core_vnni", True), ("AVX512_CORE_BF16", False)])
def test_onednn_kept_from_bfloat16(monkeypatch, capsys, cap, capped):
    """Whatever the processor can do, bfloat16 is slow then, or ends the process; one line says so."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    uncapped = multiplies_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    if capped and tf.config.list_physical_devices("GPU"):
        pytest.skip("the GPU multiplies")
    assert multiplies_bfloat16() == (uncapped and not capped)
    run._warn_of_slow_precision("mixed_bfloat16")
    told = capsys.readouterr().err
    assert bool(told) == (not multiplies_bfloat16()) and (f"ONEDNN_MAX_CPU_ISA={cap}" in told) == capped


def test_what_a_run_leaves(finished):
    metrics, run_dir = finished
    expected = ["config.json", "figures", "history.csv", "metrics.json", "model.keras", "tensorboard", "timing.csv"]
    assert sorted(path.name for path in run_dir.iterdir()) == expected
    assert training.stored_config(run_dir) == config(run_dir, likelihood="Bernoulli")  # chosen by the images
    assert json.loads((run_dir / "config.json").read_text())["versions"]["tensorflow"] == tf.__version__
    for name in ("training_curves", "reconstructions", "prior_samples"):
        with Image.open(run_dir / "figures" / f"{name}.png") as figure:
            figure.load()
    assert json.loads((run_dir / "metrics.json").read_text()) == metrics


def test_metrics_are_the_last_row_of_the_history(finished):
    metrics, run_dir = finished
    rows = history(run_dir)
    assert [row.pop("epoch") for row in rows] == [1, 2, 3]
    assert {name: metrics[name] for name in rows[-1]} == rows[-1]
    assert list(rows[0]) == ["kl", "log_likelihood", "loss", "val_kl", "val_log_likelihood", "val_loss"]
    for row in rows:
        for prefix in ("", "val_"):
            assert row[prefix + "loss"] == pytest.approx(row[prefix + "kl"] - row[prefix + "log_likelihood"], rel=1e-5)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] and rows[-1]["loss"] < rows[0]["loss"] - 1
    assert (metrics["epochs"], metrics["steps"]) == (3, 3 * STEPS)


@pytest.mark.all
def test_another_seed_and_the_gradient_variance(finished, tmp_path):
    """The last row is that of the stored model on the first 256 test images."""
    _, run_dir = training.train(config(tmp_path / "run", seed=2, epochs=2, gradient_variance=True))
    assert history(run_dir)[0]["loss"] != history(finished[1])[0]["loss"]
    images = next(iter(datasets.load("digits", "test", batch_size=500, image_size=(8, 8)))).numpy()[:256]
    model = keras.models.load_model(run_dir / "model.keras")
    found = [row["gradient_variance"] for row in history(run_dir)]
    assert found[1] == pytest.approx(evaluation.gradient_variance(model, images, draws=20), rel=1e-4) != found[0]


def test_timing_grows(finished):
    metrics, run_dir = finished
    with open(run_dir / "timing.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert len(seconds) == 3 and 0 < seconds[0] < seconds[1] < seconds[2] == metrics["seconds"]


def test_the_model_evaluates_as_reported(finished):
    metrics, run_dir = finished
    model = keras.models.load_model(run_dir / "model.keras")
    test = datasets.load("digits", "test", batch_size=500, image_size=8)
    loss = model.evaluate(test, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(metrics["val_loss"], abs=0.5)  # another sample of z for each image
    layers = [network.count_params() for network in (model.encoder, model.decoder)]
    assert metrics["parameters"] == sum(layers)


def test_tensorboard_shows_the_history(finished):
    _, run_dir = finished
    rows = history(run_dir)
    for part, name in (("train", "loss"), ("validation", "val_loss")):
        (path,) = (run_dir / "tensorboard" / part).glob("events*")
        values = {}
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag == "epoch_loss":
                    values[event.step] = float(tf.make_ndarray(value.tensor))
        np.testing.assert_allclose([values[i] for i in sorted(values)], [row[name] for row in rows], rtol=1e-6)


def test_tensorboard_gets_samples_of_the_prior(finished):
    """After each epoch of a short run; the last are those of the final figure, from weights read back."""
    metrics, run_dir = finished
    (path,) = (run_dir / "tensorboard" / "samples").glob("events*")
    pictures = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.tag == "prior samples"
            pictures[event.step] = tf.io.decode_png(value.tensor.string_val[2]).numpy()
    assert sorted(pictures) == list(range(metrics["epochs"]))
    model = keras.models.load_model(run_dir / "model.keras")
    samples = model.generate(100, seed=json.loads((run_dir / "config.json").read_text())["seed"])
    left, top = (samples.shape[2] + 8) * 3, (samples.shape[1] + 8) * 9  # the tile of sample 93
    tile = pictures[metrics["epochs"] - 1][top : top + samples.shape[1], left : left + samples.shape[2]]
    expected = np.broadcast_to(255 * samples[93], tile.shape)
    assert np.abs(tile - expected).max() < 1
    assert (pictures[0] != pictures[metrics["epochs"] - 1]).any()


def test_pictures_stay_when_the_events_of_the_history_are_written_anew(tmp_path):
    directory = RunDirectory(tmp_path, True)
    for epoch in range(2):
        with Events(directory) as events:
            events.write(epoch, {"loss": 1.0})
            events.write_picture(epoch, "samples", np.zeros((4, 4, 3), np.uint8))
    counts = {part: len(list((tmp_path / "tensorboard" / part).iterdir())) for part in ("train", "samples")}
    assert counts == {"train": 1, "samples": 2}


@pytest.mark.all
@needs_bfloat16
def test_mixed_precision(tmp_path, monkeypatch, capsys):
    """model.keras computes in float32, and can be trained on."""
    monkeypatch.setattr(run, "multiplies_bfloat16", lambda: False)
    metrics, run_dir = training.train(config(tmp_path / "run", precision="mixed_bfloat16", epochs=1))
    assert math.isfinite(metrics["val_loss"])
    assert keras.config.dtype_policy().name == "float32", "the global policy is put back"
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no instructions for bfloat16" in line]
    assert warning.startswith("warning: ")
    model = keras.models.load_model(run_dir / "model.keras")
    assert {layer.compute_dtype for layer in (*model.encoder.layers, *model.decoder.layers)} == {"float32"}
    assert int(model.optimizer.iterations) == STEPS and model.seed == 1


@pytest.mark.all
def test_two_replicas(finished, tmp_path, apart):
    """They learn what one does: the noise differs, the first epochs hardly do."""
    assert apart("mirrored_training", tmp_path / "run", devices=2) == (2, 3 * STEPS)
    for ours, theirs in zip(history(tmp_path / "run"), history(finished[1]), strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.02)


# --- Stopped and resumed.


@pytest.mark.parametrize(
    "step, number",
    [
        pytest.param(2, signal.SIGINT, id="inside the first epoch"),
        pytest.param(2 * STEPS, signal.SIGTERM, id="at the end of an epoch", marks=pytest.mark.all),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(finished, tmp_path, monkeypatch, step, number):
    before = signal.getsignal(signal.SIGINT)
    run_dir = run_in_two_parts(monkeypatch, config(tmp_path / "run"), step, number)
    same_run(run_dir, finished[1])
    assert not (run_dir / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.all
def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, monkeypatch, capsys):
    """Stopped in epoch 2, whose checkpoint is then damaged: the run goes on from the end of epoch 1."""
    newest = tmp_path / "run" / "checkpoints" / f"{STEPS + 2:012d}.npz"

    def damage():
        assert sorted(path.name for path in newest.parent.iterdir()) == [f"{STEPS:012d}.npz", newest.name]
        newest.write_bytes(newest.read_bytes()[:-1000])

    run_dir = run_in_two_parts(monkeypatch, config(tmp_path / "run"), STEPS + 2, signal.SIGINT, damage)
    same_run(run_dir, finished[1])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(warnings) == 1 and newest.name in warnings[0]


@pytest.mark.all
def test_everything_random_is_resumed(tmp_path, monkeypatch):
    """Binarisation anew in each epoch, a schedule of the rate, annealing of the KL; in bfloat16 if it can be."""
    settings = {"binarize": "dynamic", "schedule": "cosine", "kl_start": 5.0, "kl_epochs": 2, "estimator": "DisARM"}
    settings |= {"kl_weight": 0.5, "distortion": 0.1, "hidden_pixels": 0.1, "first_estimator": "ReinMax"}
    settings["weight_decay"] = 0.1
    settings["precision"] = "float32" if cap_below_bfloat16() else "mixed_bfloat16"
    uninterrupted = training.train(config(tmp_path / "whole", **settings))[1]
    resumed = run_in_two_parts(monkeypatch, config(tmp_path / "parts", **settings), STEPS + 1, signal.SIGTERM)
    same_run(resumed, uninterrupted)


def test_weights_decay_and_biases_do_not():
    """A gradient of 0 moves nothing in Adam: weight * (1 - rate * decay) is left, as in AdamW (arXiv:1711.05101)."""
    model = run._build(Config(latent_dim=3, weight_decay=0.25, learning_rate=0.1, schedule="constant"), (4, 4, 1), 1)
    weights = model.trainable_variables
    for weight in weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    before = model.encoder.get_weights() + model.decoder.get_weights()
    model.optimizer.apply([np.zeros(weight.shape, np.float32) for weight in weights], weights)
    for old, new in zip(before, model.encoder.get_weights() + model.decoder.get_weights(), strict=True):
        np.testing.assert_allclose(new, old * (1 - 0.1 * 0.25) if old.ndim > 1 else old, rtol=1e-6)


def test_the_optimizer_of_a_run():
    """Muon for bits in dense networks, Adam for the others, and in runs of before there was a choice."""
    for settings, kind in (({}, "Muon"), ({"optimizer": "Adam"}, "Adam"), ({"model": "fc_cvae"}, "Adam")):
        model = run._build(Config(latent_dim=3, **settings), (4, 4, 1), 1)
        assert type(model.optimizer) is getattr(optimizers, kind)
    assert as_meant({"epochs": 3})["optimizer"] == "Adam"


@pytest.mark.all
def test_a_run_without_a_checkpoint_begins_anew(finished, tmp_path):
    settings = config(tmp_path / "run")
    with training.prepare(settings):
        (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "000000000003.npz").write_bytes(b"damaged")
    same_run(training.train(settings, resume=True)[1], finished[1])


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of a run directory that can be resumed."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[1], run_dir)
    (run_dir / "metrics.json").unlink()
    return run_dir


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_contradicting_settings_are_all_named(stopped):
    before = contents(stopped)
    with pytest.raises(ValueError) as error:
        training.train(config(stopped, epochs=9, learning_rate=0.5, model="fc_cvae"), resume=True)
    text = str(error.value)
    for difference in ("'fc_bvae' in the run and 'fc_cvae' now", "3 in the run and 9 now", "0.5 now"):
        assert difference in text
    assert "\n" not in text and "seed" not in text and contents(stopped) == before


def test_a_finished_run_is_not_resumed(finished):
    with pytest.raises(ValueError, match="is finished; there is nothing to resume"):
        training.train(config(finished[1]), resume=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "fc_bvae"}', "null"])
def test_a_strange_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not the config.json of a run \(") as error:
        training.train(config(tmp_path), resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_nothing_to_resume(tmp_path, make):
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        training.train(config(tmp_path / "run"), resume=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_refused(stopped, capsys):
    (stopped / "checkpoints").mkdir()
    arrays = {"means": np.zeros((1, 6)), "model/0": np.zeros(3)}
    np.savez(stopped / "checkpoints" / "000000000003.npz", progress='{"step": 3}', **arrays)
    with pytest.raises(ValueError, match="of another model"):
        training.train(config(stopped), resume=True)


# --- Refused before anything is written.


@pytest.mark.parametrize("new", [{}, {"model": "cnn_bvae"}])
def test_a_run_directory_in_use_is_refused(stopped, new):
    before = contents(stopped)
    with pytest.raises(FileExistsError, match="already holds another run"):
        training.train(config(stopped, **new))
    assert contents(stopped) == before


def test_an_empty_directory_is_used_and_names_are_numbered(tmp_path):
    (tmp_path / "empty").mkdir()
    RunDirectory(tmp_path / "empty").claim(new=True).release()
    assert (tmp_path / "empty").exists(), "it was not made for the run"
    claimed = [claim_numbered(tmp_path / "runs", "fc_bvae_digits") for _ in range(3)]
    names = ["fc_bvae_digits", "fc_bvae_digits-2", "fc_bvae_digits-3"]
    assert [directory.path.name for directory in claimed] == names
    for directory in reversed(claimed):  # the first made the folder
        directory.release()
    assert not (tmp_path / "runs").exists(), "nothing was written"


@pytest.mark.all
def test_a_run_is_not_resumed_on_other_data(tmp_path, monkeypatch):
    """What would shift its epochs, or show it other images, is refused; the same data is not."""

    def write(count=30, size=8, content=0):
        images = np.random.default_rng(content).integers(0, 256, (count, size, size), np.uint8)
        np.savez(tmp_path / "images.npz", images=images)

    write()
    given = config(tmp_path / "run", dataset=str(tmp_path / "images.npz"), batch_size=9)
    go_on = stop_at(monkeypatch, 5, signal.SIGINT)
    with pytest.raises(training.Interrupted):
        training.train(given)
    go_on()
    before = contents(tmp_path / "run")
    for changed, word in (({"count": 40}, "images 30"), ({"size": 9}, "digest"), ({"content": 9}, "digest")):
        write(**changed)
        with pytest.raises(ValueError, match="the data of the run in .* has changed") as error:
            training.prepare(given, resume=True)
        assert word in str(error.value) and "\n" not in str(error.value)
        assert contents(tmp_path / "run") == before
    write()
    assert training.train(given, resume=True)[0]["steps"] == 12


def without_test_images(folder):
    """Settings of a run on 40 labelled images, of which it holds 10 out; and the images."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(40) % 2)
    return {"dataset": str(folder / "images.npz"), "batch_size": 9, "validation_split": 0.25}, images


@pytest.mark.all
def test_a_run_validates_on_the_images_that_it_holds_out(tmp_path):
    settings, images = without_test_images(tmp_path)
    metrics, run_dir = training.train(config(tmp_path / "run", epochs=1, **settings))
    assert metrics["steps"] == 4  # 30 images
    model = training.read_trained(run_dir).model
    with pytest.raises(datasets.NoSuchSplit, match="--validation-split"):
        evaluation.data_for(model, settings["dataset"])
    data = evaluation.data_for(model, settings["dataset"], validation_split=0.25, validation_seed=1)
    numbers = {
        part: [int(np.abs(images / 255 - image[..., 0]).max((1, 2)).argmin()) for image in data[part][0]]
        for part in data
    }
    assert len(numbers["test"]) == 10 and sorted(numbers["test"] + numbers["train"]) == list(range(40))
    np.testing.assert_array_equal(data["test"][1], np.array(numbers["test"]) % 2)
    model.compile()
    again = model.evaluate(data["test"][0], verbose=0, return_dict=True)
    assert metrics["val_kl"] == pytest.approx(again["kl"], rel=1e-4)


@pytest.mark.all
def test_a_run_on_colours_chooses_its_likelihood_and_says_bits(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    metrics, run_dir = training.train(
        config(tmp_path / "run", dataset=str(tmp_path / "images.npz"), image_size=None, epochs=1, validation_split=0.1)
    )
    trained = training.read_trained(run_dir)
    assert trained.config["likelihood"] == likelihoods.name_of(trained.model.likelihood) == likelihoods.default(3)
    assert "--likelihood DiscretizedLogistic:channel" in training.command(trained.config)
    for prefix in ("", "val_"):  # 48 values an image
        assert metrics[f"{prefix}bits_per_dimension"] == pytest.approx(metrics[f"{prefix}loss"] / np.log(2) / 48)
    figures = evaluation.evaluate(trained.model, (images[:5] / 255, None), (images / 255, None))
    assert figures["test_bits_per_dimension"] == pytest.approx(figures["test_neg_elbo"] / np.log(2) / 48)


@pytest.mark.all
def test_a_resumed_run_holds_out_the_same_images(tmp_path, monkeypatch):
    settings, _ = without_test_images(tmp_path)
    uninterrupted = training.train(config(tmp_path / "whole", **settings))[1]
    resumed = run_in_two_parts(monkeypatch, config(tmp_path / "parts", **settings), 5, signal.SIGINT)
    same_run(resumed, uninterrupted)


def test_the_config_of_an_earlier_version(stopped):
    """It lacks the settings that have come since, and means what runs did then."""
    stored = json.loads((stopped / "config.json").read_text())
    assert stored["likelihood"] == "Bernoulli"  # what the run chose is written: its images are grey
    for name in ("validation_split", "likelihood"):
        stored.pop(name)
    (stopped / "config.json").write_text(json.dumps(stored))
    of_run = training.stored_config(stopped)
    assert of_run.validation_split is None and of_run.likelihood == "Bernoulli"
    with pytest.raises(ValueError, match="likelihood is 'Bernoulli' in the run and 'Gaussian:1.0' now"):
        training.prepare(config(stopped, likelihood=likelihoods.Gaussian()), resume=True)
    training.prepare(config(stopped), resume=True).close()


def test_another_number_of_threads_is_said(finished, stopped, capsys):
    """The bits of a run depend on it. It goes on all the same, here from the beginning."""
    stored = json.loads((stopped / "config.json").read_text())
    assert stored["threads"] == run_directory.threads()
    (stopped / "config.json").write_text(json.dumps({**stored, "threads": 77}))
    training.prepare(config(stopped), resume=True).close()
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "threads" in line]
    assert warning.startswith(f"warning: the run in {stopped} began with 77 threads and goes on with ")
    stored.pop("threads")  # a run of version 0.1
    (stopped / "config.json").write_text(json.dumps(stored))
    training.prepare(config(stopped), resume=True).close()
    assert "threads" not in capsys.readouterr().err


# --- Its own directory.


def begin_or_resume(settings, resume, barrier, connection):
    """Trains as soon as the other process is ready as well; sends the run directory, or what was refused."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    barrier.wait(60)
    try:
        connection.send(("done", str(training.train(settings, resume)[1])))
    except Exception as error:
        connection.send((type(error).__name__, str(error)))


def at_once(forks, settings, resume=False):
    """What two processes answer that begin the same run at the same moment, in order."""
    barrier, answers = forks.Barrier(2), []
    for _ in range(2):
        mine, theirs = forks.Pipe(duplex=False)
        process = forks.Process(target=begin_or_resume, args=(settings, resume, barrier, theirs))
        process.start()
        theirs.close()
        answers.append((process, mine))
    for process, mine in answers:
        assert mine.poll(120)
        process.join(60)
    return sorted(mine.recv() for _, mine in answers)


@pytest.mark.all
def test_two_runs_at_once_do_not_share_a_directory(forks, tmp_path):
    run_dir = tmp_path / "run"
    refused, done = at_once(forks, config(run_dir))
    assert done == ("done", str(run_dir)) and refused[0] == "FileExistsError"
    assert refused[1] in (
        f"run_dir {run_dir} is in use by a run that has not ended; wait for it, or choose a new directory.",
        f"run_dir {run_dir} already holds another run or other files; choose a new directory, or resume that run.",
    )
    assert [row["epoch"] for row in history(run_dir)] == [1, 2, 3]


@pytest.mark.all
def test_two_runs_at_once_get_directories_of_their_own(forks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dataclasses.replace(config("."), run_dir=None)
    assert at_once(forks, settings) == [("done", "runs/fc_bvae_digits"), ("done", "runs/fc_bvae_digits-2")]
    same_run(tmp_path / "runs" / "fc_bvae_digits", tmp_path / "runs" / "fc_bvae_digits-2")


def test_a_run_that_has_not_ended_is_not_resumed(stopped):
    """Not even by the same process; it can be once it is closed."""
    going_on, in_use = training.prepare(config(stopped), resume=True), "is in use by a run that has not ended"
    with going_on, pytest.raises(FileExistsError, match=in_use):
        training.train(config(stopped), resume=True)
    training.prepare(config(stopped), resume=True).close()


def test_what_is_refused_leaves_no_directory(tmp_path):
    for setting in ("estimator", "first_estimator"):
        with pytest.raises(TypeError, match="GaussianLatent"):
            training.train(config(tmp_path / "a" / "b" / "run", **{setting: "Reparameterized"}))
    assert list(tmp_path.iterdir()) == []


# --- Settings.


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


DIFFERENT = {  # from the recipe and from Config's own defaults, each of them
    **{"model": "fc_hvae", "dataset": "digits", "recipe": "paper", "latent_dim": (2, 3), "batch_size": 300},
    **{
        "estimator": "Hybrid+LeaveOneOut:3",
        "epochs": 2,
        "learning_rate": 0.004,
        "schedule": "cosine",
        "kl_start": 7.5,
        "kl_epochs": 1,
    },
    **{"start_at_mean": True, "seed": 5, "precision": "mixed_bfloat16", "strategy": "mirrored", "image_size": (6, 8)},
    **{"channels": 3, "binarize": "dynamic", "gradient_variance": True, "deterministic": True},
    **{"validation_split": 0.2, "prior": "clusters", "likelihood": "Gaussian:0.5"},
    **{
        "kl_weight": 0.5,
        "distortion": 0.1,
        "hidden_pixels": 0.2,
        "weight_decay": 0.25,
        "optimizer": "Muon",
        "first_estimator": "Hybrid+ReinMax",
        "first_epochs": 1,
        "warm_epochs": 1,
    },
}


def test_the_command_on_a_card_gives_the_same_settings():
    """For a run whose every setting differs from what it would be by itself."""
    recipe, settings = Config(model="fc_hvae", recipe="paper"), Config(**DIFFERENT, run_dir="a", data_dir="b")
    for field in dataclasses.fields(Config):
        if not field.metadata["of_this_machine"]:
            assert DIFFERENT[field.name] != field.default, field.name
            if field.name not in ("model", "recipe"):
                assert DIFFERENT[field.name] != getattr(recipe, field.name), field.name
    stored = json.loads(json.dumps(dataclasses.asdict(settings)))
    given = training.read(vars(arguments_of(training.command(stored))))
    assert given.keys() == DIFFERENT.keys()
    assert Config(**given) == dataclasses.replace(settings, run_dir=None, data_dir=None)
    # It names all that a recipe fixes: a later version's recipe must not change what it means.
    assert set(RECIPES["paper"]["fc_hvae"]) <= set(given)


def test_what_a_recipe_sets_can_be_switched_off():
    """By 0, on the command line too, which the command on the card then says."""
    assert Config(model="fc_hbvae").hidden_pixels == 0.1 and Config(recipe="hash").distortion == 0.1
    off = Config(model="fc_hbvae", hidden_pixels=0, weight_decay=0, distortion=0, first_epochs=0)
    assert training.read(vars(arguments_of("python scripts/train.py --hidden-pixels 0"))) == {"hidden_pixels": 0.0}
    assert [type(callback) for callback in run._callbacks(off, None)] == [StopOnNonFiniteLoss]
    model = run._build(off, (4, 4, 1), 1)
    assert (model.hidden_pixels, model.distortion, model.optimizer.weight_decay) == (None, None, None)
    assert Config(**training.read(vars(arguments_of(training.command(dataclasses.asdict(off)))))) == off
    assert as_meant({"weight_decay": None, "epochs": 3})["weight_decay"] == 0  # of before 0 stood for none


def test_the_epochs_of_the_first_estimator():
    """Three fifths, or the recipe's share of them, or so many; in a run of before they could be set, three fifths."""
    assert Config(model="cnn_bvae").first_epochs == 0
    assert [Config(model="cnn_bvae", first_estimator="ReinMax", epochs=n).first_epochs for n in (5, 60)] == [3, 36]
    assert [Config(model="fc_hbvae", epochs=n).first_epochs for n in (10, 250)] == [6, 150]
    given = Config(model="fc_hbvae", estimator="Hybrid+ARMS:4")  # all of the run has it, unless both are given
    assert (given.first_estimator, given.first_epochs) == (None, 0)
    assert Config(estimator="ARMS:4", first_estimator="ReinMax", epochs=60).first_epochs == 3
    *_, first = run._callbacks(Config(first_estimator="ReinMax", first_epochs=1), None)
    assert type(first) is FirstEstimator and first.epochs == 1
    assert as_meant({"first_estimator": "ReinMax", "epochs": 7})["first_epochs"] == 5  # 4.2 were over
    with pytest.raises(ValueError) as error:
        Config(model="cnn_bvae", first_epochs=3)
    one_line(error, "first_epochs is 3", "without first_estimator it must be 0")


@pytest.mark.all
@needs_bfloat16
def test_the_command_on_a_card_makes_the_same_model(apart, tmp_path):
    """Bit for bit."""
    apart("card_command", tmp_path, DIFFERENT, devices=2)
    same_run(tmp_path / "one", tmp_path / "two")


def arguments_of(command):
    """The arguments that scripts/train.py makes of a command, by its own loop."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(Config):
        action = argparse.BooleanOptionalAction if field.metadata["kind"].is_flag else "store"
        parser.add_argument(training.option(field.name), action=action)
    return parser.parse_args(shlex.split(command)[2:])


@pytest.mark.parametrize("flag", [True, False])
def test_a_command_says_what_a_flag_is(flag):
    """A later recipe may have another value: both are written."""
    expected = "--start-at-mean" if flag else "--no-start-at-mean"
    assert training.command({"start_at_mean": flag, "data_dir": "/data"}) == f"python scripts/train.py {expected}"


@keras.saving.register_keras_serializable("tests")
class Half(estimators.LeaveOneOut):
    """An estimator of one's own."""


@pytest.mark.parametrize(
    "given, kept",
    [("ARMS:4", "ARMS:4"), (estimators.ARMS(4), "ARMS:4"), (estimators.Linearized(), "Linearized+DisARM:1")],
    ids=str,
)
def test_an_estimator_is_a_name_or_an_object(given, kept):
    settings = Config(estimator=given)
    assert settings.estimator == kept
    assert settings.make_estimator().get_config() == estimators.get(given).get_config()


def test_an_estimator_of_ones_own_is_kept_in_full(tmp_path):
    settings = Config(estimator=Half(3), run_dir=str(tmp_path))
    again = training.read(vars(arguments_of(training.command(dataclasses.asdict(settings)))))
    for config in (settings, dataclasses.replace(settings), Config(**again)):
        estimator = config.make_estimator()
        assert type(estimator) is Half and estimator.num_samples == 3
    files.write_json(tmp_path / "config.json", dataclasses.asdict(settings))
    assert training.stored_config(tmp_path) == settings


@pytest.mark.parametrize("given", ["24x4", (24, 4), [24, 4]], ids=str)
def test_a_latent_of_several_variables(given):
    settings = Config(model="fc_cvae", latent_dim=given)
    assert settings.latent_dim == (24, 4) and settings.estimator == "LeaveOneOut"  # 4^24 codes
    assert Config(model="fc_cvae", latent_dim=(6, 4)).estimator == "Enumerated"
    assert (Config().latent_dim, Config(model="fc_cvae").latent_dim) == (50, 100)


# --- A run that goes wrong.


@pytest.mark.all
def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(NonFiniteLoss) as error:
        training.train(config(tmp_path / "run", learning_rate=1e30))
    found = re.match(r"the loss became (nan|inf|-inf) in epoch (\d+), step (\d+); (.*)", str(error.value))
    assert found and "\n" not in str(error.value)
    epoch, step = int(found[2]), int(found[3])
    assert 1 <= epoch <= 3 and 1 <= step <= STEPS
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    images = next(iter(datasets.load("digits", "test", batch_size=50, image_size=8)))
    assert np.isfinite(model.elbo(images)).all()
    assert not (tmp_path / "run" / "metrics.json").exists()
