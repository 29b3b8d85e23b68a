"""From a Config to a trained model: the steps of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import datasets, estimators, networks, optimizers, zoo
from tf_isvae.callbacks import (
    FirstEstimator,
    GradientVariance,
    KLAnnealing,
    NonFiniteLoss,
    StopOnNonFiniteLoss,
    WaitingPrior,
    WarmStart,
)
from tf_isvae.model import DiscreteVAE
from tf_isvae.precision import cap_below_bfloat16, in_precision, layers_in, multiplies_bfloat16
from tf_isvae.training import checkpoints, progress, report, run_directory
from tf_isvae.training.config import Config, check_same
from tf_isvae.training.data import Data
from tf_isvae.training.recorder import Recorder
from tf_isvae.training.run_directory import RunDirectory
from tf_isvae.training.signals import Interrupted
from tf_isvae.training.trained import Trained, read_trained
from tf_isvae.training.workers import Workers, for_strategy


def train(config: Config, resume: bool = False) -> tuple[dict, Path]:
    """Runs a training, or goes on with one that was stopped.

    Everything that can be refused is refused before the first file is written. Ctrl-C and SIGTERM stop the run after
    the current step (or the validation under way), with a checkpoint.

    Returns:
        What metrics.json holds, and the run directory.

    Raises:
        ValueError, TypeError: bad settings, or resume=True with settings that contradict the run's, or with other data.
        FileExistsError: the run directory holds another run, or one that has not ended.
        FileNotFoundError: there is nothing to resume.
        NonFiniteLoss: the loss became NaN or infinite; model.keras then holds the last good model.
        Interrupted: stopped by a signal; resume=True goes on from the checkpoint.
        WorkerLost: another worker ended, or cannot be reached; start all again with resume=True.
        OSError: the trained model cannot be written; resume=True tries again.

    Example:
        >>> config = training.Config(dataset="digits", image_size=8, epochs=1)
        >>> metrics, run_dir = training.train(config)
        data           digits: 1,437 training and 360 test images of 8x8x1
        ...
        epoch 1/1  -ELBO ...
        >>> metrics["steps"], str(run_dir)
        (6, 'runs/fc_bvae_digits')
    """
    with prepare(config, resume) as run:
        return run.train(), run.directory.path


def prepare(config: Config, resume: bool = False) -> Run:
    """The first half of `train`: all that can be refused. `Run.train` is the rest. Use it with `with`, or close it.

    Raises: as `train`, without what happens while it trains.

    Example:
        >>> config = training.Config(dataset="digits", image_size=(8, 8), latent_dim=4, batch_size=500, run_dir="run")
        >>> with training.prepare(config) as run:
        ...     print(run.model.image_shape, run.data.steps_per_epoch)
        (8, 8, 1) 3
    """
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}; it must be a training.Config.")
    team = for_strategy(config.strategy)
    if resume:
        config = check_same(config)
    directory = _claim_directory(config, resume, team)
    try:
        with team.losses_named(directory.path):
            run = _prepare_in(directory, config, team)
    except BaseException:
        directory.release()
        raise
    return run


def _prepare_in(directory: RunDirectory, config: Config, team: Workers) -> Run:
    """The steps between the claim of the directory and the first step of training."""
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = team.strategy  # before any other use of TensorFlow
    if team.is_chief:
        _warn_of_slow_precision(config.precision)
    checkpoint = checkpoints.newest(directory.path)
    start = 0 if checkpoint is None else checkpoint.progress["step"]
    team.check_agreement({**dataclasses.asdict(config), "run_dir": None}, start)
    keras.utils.set_random_seed(config.seed)
    data = Data(config, start, team)
    with strategy.scope():
        model = _build(config, data.image_shape, data.steps_per_epoch)
    config = dataclasses.replace(config, likelihood=model.likelihood)  # or a later version might choose another
    recorder = Recorder(model, directory, team, data.steps_per_epoch, data.identity)
    if checkpoint is not None:
        recorder.restore(checkpoint)
    elif config.start_at_mean:
        networks.start_at_mean(model.decoder, team.mean(next(iter(data.train)).numpy()), model.likelihood)
    directory.begin(dataclasses.asdict(config))
    return Run(config, data, recorder)


class Run(contextlib.AbstractContextManager):
    """A run that is ready to train: model, data and run directory, which is its own until it is closed."""

    def __init__(self, config: Config, data: Data, recorder: Recorder):
        self.config = config
        self.data = data
        self.recorder = recorder
        self.model = recorder.model
        self.directory = recorder.directory
        self.workers = recorder.workers

    def train(self) -> dict:
        """Trains to the end and writes what a finished run leaves; returns what metrics.json holds."""
        callbacks = _callbacks(self.config, self.data.training_images)
        if self.config.gradient_variance:
            callbacks.append(GradientVariance(self.data.held_out(256)))
        lines = progress.EpochLine(self.config.epochs, "held out" if self.config.validation_split else "test")
        if self.workers.is_chief:
            callbacks.append(lines)
            print(self.banner(), flush=True)
        with self.workers.losses_named(self.directory.path):
            try:
                self.recorder.fit(self.data.train, self.data.test, self.config.epochs, callbacks, verbose=0)
            except NonFiniteLoss:
                report.save_model(self.recorder)
                raise
            finally:
                lines.close()
        report.write(self.recorder, self.config, self.data)
        return report.metrics(self.recorder)

    def banner(self) -> str:
        """What is about to be trained, on what data, and where the run is kept."""
        images = {{"train": "training"}.get(split, split): row["images"] for split, row in self.data.identity.items()}
        return progress.banner(
            self.config,
            report.parameters(self.model),
            images,
            self.data.image_shape,
            self.data.steps_per_epoch,
            self.directory.path,
        )

    def close(self) -> None:
        """Gives up the run directory."""
        self.directory.release()

    def __exit__(self, *error) -> None:
        self.close()


def finish(config: Config, comparison: str | os.PathLike) -> Trained:
    """The trained model of one of several runs: names and trains it, goes on with it, or reads it if it is finished.

    Args:
        config: settings with a `run_dir`.
        comparison: the folder of all the runs, which the message of an interrupted one names.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the same call goes on.

    Example:
        >>> config = training.Config(dataset="digits", image_size=8, epochs=1, latent_dim=4, run_dir="runs/four")
        >>> training.finish(config, "runs").model.latent.code_units
        <BLANKLINE>
        runs/four
        data           digits: 1,437 training and 360 test images of 8x8x1
        ...
        4
    """
    directory = Path(config.run_dir)
    if not (directory / "metrics.json").exists():
        print(f"\n{directory}", flush=True)
        try:
            train(config, resume=(directory / "config.json").exists())
        except Interrupted as stop:
            raise Interrupted(stop.signal, comparison, True, "the same command") from None
    return read_trained(directory)


def fit(config: Config, images: np.ndarray, verbose: int = 0) -> DiscreteVAE:
    """Trains on an array, in memory: no run directory, nothing is written, and nothing can be resumed.

    Args:
        config: the settings; paths and the strategy are ignored here.
        images: (n, H, W, C), uint8 in 0..255 or floating point in [0, 1].
        verbose: as of keras.Model.fit.

    Returns:
        The trained model, which computes in float32: the one that `train` would write.

    Raises:
        ValueError, TypeError: the images are not as described. NonFiniteLoss: the loss became NaN or infinite.

    Example:
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
        >>> training.fit(training.Config(latent_dim=3, epochs=1), images).encode(images).shape
        (64, 3)
    """
    options = {name: getattr(config, name) for name in ("batch_size", "seed", "binarize", "validation_split")}
    options["validation_seed"] = config.seed
    data = datasets.load(images, epochs=config.epochs, **options)
    steps = int(data.cardinality()) // config.epochs
    state = random.getstate()
    try:
        random.seed(config.seed)  # from which Keras draws initial weights; the caller's own draws go on as they were
        model = _build(config, tuple(data.element_spec.shape[1:]), steps)
    finally:
        random.setstate(state)
    if config.start_at_mean:
        networks.start_at_mean(model.decoder, next(iter(data)).numpy().mean(axis=0), model.likelihood)

    def training_images():
        return datasets.load(images, **options)

    model.fit(
        data,
        epochs=config.epochs,
        steps_per_epoch=steps,
        callbacks=_callbacks(config, training_images),
        verbose=verbose,
    )
    return in_precision(model, "float32")


# --- The steps.


def _claim_directory(config: Config, resume: bool, team: Workers) -> RunDirectory:
    """The run directory: new or empty, or with resume=True that of the same run. Nobody else gets it meanwhile."""
    if resume:
        directory = RunDirectory(Path(config.run_dir), team.is_chief).claim(new=False)
        if directory.is_finished:
            directory.release()
            raise ValueError(f"the run in {config.run_dir} is finished; there is nothing to resume.")
        return directory
    if config.run_dir is not None:
        return RunDirectory(Path(config.run_dir), team.is_chief).claim(new=True)
    if team.count > 1:
        raise ValueError("run_dir is None; with several workers it must be a directory that all of them share.")
    dataset = Path(config.dataset).name.removesuffix(".npz")
    return run_directory.claim_numbered(Path("runs"), f"{config.model}_{dataset}")


def _warn_of_slow_precision(precision: str) -> None:
    if precision != "mixed_bfloat16" or multiplies_bfloat16():
        return
    cap = cap_below_bfloat16()
    reason = (
        f"{cap} keeps this machine from instructions for bfloat16: mixed_bfloat16 is slow here, or ends the process"
        if cap
        else "this machine has no instructions for bfloat16, which TensorFlow then imitates: mixed_bfloat16 can be "
        "ten times slower than float32 here"
    )
    print(f"warning: {reason}; choose precision float32.", file=sys.stderr)


def _build(config: Config, image_shape: tuple[int, int, int], steps_per_epoch: int) -> DiscreteVAE:
    """The model with its initial weights, compiled, the optimizer built."""
    parts = {"estimator": config.make_estimator(), "likelihood": config.make_likelihood()}
    with layers_in(config.precision):
        parts |= {name: getattr(config, name) for name in ("prior", "kl_weight", "seed")}
        parts |= {name: getattr(config, name) or None for name in ("distortion", "hidden_pixels")}
        model = zoo.build(config.model, image_shape, config.latent_dim, **parts)
    if config.first_estimator is not None:
        estimators.check(config.make_first_estimator(), model.latent)
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = _cosine(rate, steps_per_epoch * config.warm_epochs, steps_per_epoch * config.epochs)
    optimizer = getattr(optimizers, config.optimizer)(rate, weight_decay=config.weight_decay or None)
    optimizer.exclude_from_weight_decay(var_names=["bias"])  # the decoder's last one holds the mean image
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    return model


def _cosine(rate: float, warm: int, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """From `rate` to 0 in so many steps; with a warm start, in its steps, and again in the others."""
    schedules = keras.optimizers.schedules
    if not 0 < warm < steps:
        return schedules.CosineDecay(rate, steps)
    return schedules.CosineDecayRestarts(rate, warm, t_mul=(steps - warm) / warm)


def _callbacks(config: Config, training_images: Callable[[], tf.data.Dataset]) -> list[keras.callbacks.Callback]:
    callbacks = [StopOnNonFiniteLoss()]
    if config.kl_epochs:
        callbacks.append(KLAnnealing(config.kl_start, config.kl_epochs))
    if config.first_epochs:
        callbacks.append(FirstEstimator(config.make_first_estimator(), config.first_epochs))
    if config.warm_epochs:
        callbacks.append(WarmStart(training_images, config.warm_epochs, seed=config.seed & 0x7FFFFFFF))
    elif config.prior != "uniform":
        callbacks.append(WaitingPrior())
    return callbacks
