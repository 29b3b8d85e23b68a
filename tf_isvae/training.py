"""A configured, resumable run: what scripts/train.py calls.

A run directory holds
    config.json    the settings, and the versions of the packages
    model.keras    the trained model
    history.csv    one row an epoch: loss (= -ELBO), log_likelihood, kl, and val_ for the test set; nats per image
    timing.csv     seconds since the run began at the end of each epoch (what history.csv leaves out, so that a
                   resumed run's history equals that of the uninterrupted one)
    metrics.json   the final figures
    figures/       training curves, reconstructions, samples of the prior
    tensorboard/   the same curves as TensorBoard events
    checkpoints/   what --resume goes on from
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import checks, datasets, estimators, files, networks, plotting, zoo
from tf_isvae.callbacks import KLAnnealing, NonFiniteLoss, StopOnNonFiniteLoss
from tf_isvae.model import DiscreteVAE

PRECISIONS = ("float32", "mixed_bfloat16")
STRATEGIES = ("default", "mirrored")
SCHEDULES = ("constant", "cosine")
# A checkpoint is saved at the end of an epoch where that keeps all saving below this share of the training time,
CHECKPOINT_SHARE = 0.01
# and inside an epoch where the last one is older than this.
SAVE_AFTER_SECONDS = 300


# What a recipe fixes, unless a setting of the run says otherwise. `kl_start` and `kl_epochs` are those of
# callbacks.KLAnnealing; the schedule "cosine" takes the learning rate to 0 at the end of the run; start_at_mean is
# networks.start_at_mean. FC BVAE on the digits, 60 epochs at batch 64, cosine, seed 0, ends at a test -ELBO of 374
# nats with ImportanceSampling, 304 with DisARM, 301 with DisARM and start_at_mean, 308 with DisARM and a KL weight
# from 10 in 10 epochs. The rows "best" of the two CNNs have not been measured yet.
_PAPER = {
    "estimator": "ImportanceSampling",
    "epochs": 300,
    "batch_size": 2048,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "kl_start": 1.0,
    "kl_epochs": 0,
    "start_at_mean": False,
    "precision": "float32",
}
_BITS = {"estimator": "DisARM", "batch_size": 256, "schedule": "cosine", "start_at_mean": True}
_ANNEALED = {"estimator": "Enumerated", "schedule": "cosine", "kl_start": 30.0}
RECIPES = {
    # Section 6 of the paper, for all models.
    "paper": dict.fromkeys(zoo.ARCHITECTURES, _PAPER),
    "best": {
        "fc_bvae": {**_PAPER, **_BITS, "epochs": 220, "precision": "mixed_bfloat16"},
        "cnn_bvae": {**_PAPER, **_BITS, "epochs": 70, "precision": "mixed_bfloat16"},
        "fc_cvae": {**_PAPER, **_ANNEALED, "epochs": 60, "kl_epochs": 30},
        "cnn_cvae": {**_PAPER, **_ANNEALED, "epochs": 40, "kl_epochs": 20, "precision": "mixed_bfloat16"},
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. The defaults are the paper's; None takes the recipe's value.

    model           a name of `zoo.build`
    dataset         what `datasets.load` takes: a name, an .npz file, or a folder of images
    recipe          paper, or best: a row of RECIPES
    latent_dim      bits or categories; None: the paper's, 50 or 100
    estimator       the name of a class in `tf_isvae.estimators`
    learning_rate   of Adam, at the beginning
    schedule        of the learning rate: constant or cosine
    kl_start        the weight of the KL term at the beginning, see callbacks.KLAnnealing
    kl_epochs       epochs in which it falls to 1
    start_at_mean   whether the decoder begins at the mean image, see networks.start_at_mean
    seed            fixes initial weights, order of the data, binarisation and noise
    precision       float32 or mixed_bfloat16
    strategy        default, or mirrored: every visible GPU, or every logical CPU device where there is no GPU
    run_dir         what to write; None: runs/<model>_<dataset>, with a number where that is taken
    data_dir        where TFDS keeps its data sets; None: TFDS's own choice
    image_size      resize to (height, width); None: as they are
    channels        1: grey, 3: colour; None: as they are
    binarize        None, "static" or "dynamic"
    """

    model: str = "fc_bvae"
    dataset: str = "mnist"
    recipe: str = "paper"
    latent_dim: int | None = None
    estimator: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    kl_start: float | None = None
    kl_epochs: int | None = None
    start_at_mean: bool | None = None
    seed: int = 0
    precision: str | None = None
    strategy: str = "default"
    run_dir: str | None = None
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    binarize: str | None = None

    def __post_init__(self):
        zoo.check_name(self.model)
        self._check_one_of("recipe", tuple(RECIPES))
        for name, value in RECIPES[self.recipe][self.model].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("kl_epochs", 0)):
            object.__setattr__(self, name, checks.integer(name, getattr(self, name), minimum))
        for name in ("learning_rate", "kl_start"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name)))
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; it must be below 2^32, for NumPy's generator.")
        if not isinstance(self.start_at_mean, bool):
            raise ValueError(f"start_at_mean is {self.start_at_mean!r}; it must be True or False.")
        self._check_one_of("estimator", tuple(cls.__name__ for cls in estimators.Estimator.__subclasses__()))
        self._check_one_of("schedule", SCHEDULES)
        self._check_one_of("precision", PRECISIONS)
        self._check_one_of("strategy", STRATEGIES)

    def _check_one_of(self, name: str, accepted: tuple[str, ...]) -> None:
        if getattr(self, name) not in accepted:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(accepted)}.")


@contextlib.contextmanager
def _precision(policy: str):
    """Layers made inside compute in this precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _strategy(name: str) -> tf.distribute.Strategy:
    if name == "default":
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _load(config: Config, split: str, **where) -> tf.data.Dataset:
    return datasets.load(
        config.dataset,
        split,
        batch_size=config.batch_size,
        seed=config.seed if split == "train" else None,
        image_size=config.image_size,
        channels=config.channels,
        # The test images are drawn once, so that all epochs, also those of a resumed run, see the same.
        binarize="static" if config.binarize and split == "test" else config.binarize,
        data_dir=config.data_dir,
        **where,
    )


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "tensorflow-probability", "numpy")
    }


def _choose_run_dir(config: Config, resume: bool) -> Path:
    """The run directory: new or empty, or with resume=True that of the same run."""
    if resume:
        _check_same_run(config)
        return Path(config.run_dir)
    if config.run_dir is not None:
        run_dir = Path(config.run_dir)
    else:
        name = f"{config.model}_{Path(config.dataset).stem}"
        numbered = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
        run_dir = next(path for path in numbered if not path.exists())
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise FileExistsError(
            f"run_dir {run_dir} already holds another run or other files; choose a new directory, or resume that run."
        )
    return run_dir


def _begin_run_dir(run_dir: Path, config: Config) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(run_dir / "config.json", {**dataclasses.asdict(config), "versions": _versions()})
    except OSError as error:
        raise type(error)(f"run_dir {run_dir} cannot be written: {error.strerror}; choose another.") from None


def _check_same_run(config: Config) -> None:
    stored = dataclasses.asdict(stored_config(config.run_dir))
    differences = [
        f"{name} is {stored[name]!r} in the run and {value!r} now"
        for name, value in dataclasses.asdict(config).items()
        if name != "run_dir" and stored[name] != value
    ]
    if differences:
        raise ValueError(f"cannot resume {config.run_dir} with other settings: {'; '.join(differences)}.")
    if (Path(config.run_dir) / "metrics.json").exists():
        raise ValueError(f"the run in {config.run_dir} is finished; there is nothing to resume.")


class Interrupted(KeyboardInterrupt):
    """A run was stopped by SIGINT or SIGTERM, after a checkpoint was saved. `signal` is its number."""

    def __init__(self, signum: int, run_dir: Path):
        super().__init__(f"stopped by {signal.Signals(signum).name}; everything done so far is kept in {run_dir}")
        self.signal = signum


def stored_config(run_dir: str | None) -> Config:
    """The settings of the run in `run_dir`, from its config.json.

    Raises FileNotFoundError where there is none, ValueError where it is not one that this version can read.
    """
    if run_dir is None:
        raise ValueError("to resume, give run_dir: the directory of the run to go on with.")
    path = Path(run_dir) / "config.json"
    try:
        stored = json.loads(path.read_text())
        settings = {field.name: stored[field.name] for field in dataclasses.fields(Config)}
        if isinstance(settings["image_size"], list):  # JSON knows only lists
            settings["image_size"] = tuple(settings["image_size"])
        return Config(**{**settings, "run_dir": str(run_dir)})
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{run_dir} holds no run: {path} is missing.") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the config.json of a run ({type(error).__name__}: {error}).") from None


def train(config: Config, resume: bool = False) -> tuple[dict, Path]:
    """Runs a training, or goes on with one that was stopped; returns what metrics.json holds, and the run directory.

    Everything that can be refused is refused before the first file is written. Ctrl-C and SIGTERM stop the run after
    the current step (or the validation under way), with a checkpoint.

    Raises:
        ValueError, TypeError: bad settings, or resume=True with settings that contradict the run's.
        FileExistsError: the run directory holds another run. FileNotFoundError: there is nothing to resume.
        NonFiniteLoss: the loss became NaN or infinite; model.keras then holds the last good model.
        Interrupted: stopped by a signal; resume=True goes on from the checkpoint.
    """
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}; it must be a training.Config.")
    run_dir = _choose_run_dir(config, resume)
    checkpoint = newest_checkpoint(run_dir) if resume else None
    with _precision(config.precision):
        keras.utils.set_random_seed(config.seed)
        start = 0 if checkpoint is None else checkpoint["progress"]["step"]
        # All batches from here to the end of the run, so that the data is read once.
        train_set = _load(config, "train", epochs=config.epochs, start=start)
        steps_per_epoch = (int(train_set.cardinality()) + start) // config.epochs
        try:
            test_set = _load(config, "test")
        except datasets.NoSuchSplit:
            test_set = None
        with _strategy(config.strategy).scope():
            image_shape = tuple(train_set.element_spec.shape[1:])
            model = zoo.build(
                config.model,
                image_shape,
                config.latent_dim,
                estimator=getattr(estimators, config.estimator)(),
                seed=config.seed,
            )
            rate = config.learning_rate
            if config.schedule == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(rate, steps_per_epoch * config.epochs)
            model.compile(optimizer=keras.optimizers.Adam(rate))
            model.optimizer.build(model.trainable_variables)
        run = Run(model, run_dir, steps_per_epoch)
        if config.start_at_mean and checkpoint is None:
            networks.start_at_mean(model.decoder, next(iter(train_set)).numpy().mean(axis=0))
        if checkpoint is not None:
            run.restore(checkpoint)
        if not resume:
            _begin_run_dir(run_dir, config)
        try:
            run.fit(config, train_set, test_set)
        except NonFiniteLoss:
            run.save_model()
            raise
        return _report(config, run, _load(config, "train") if test_set is None else test_set), run_dir


def newest_checkpoint(run_dir: Path) -> dict | None:
    """What the newest whole checkpoint of a run holds: arrays by name, and "progress".

    A damaged one is passed over with a warning. None where there is none: the run then begins anew.
    """
    for path in sorted(run_dir.glob("checkpoints/*.npz"), reverse=True):
        try:
            with np.load(path, allow_pickle=False) as archive:  # reading an array checks its CRC-32
                arrays = {name: archive[name] for name in archive.files}
            return {**arrays, "progress": json.loads(str(arrays["progress"]))}
        except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs, NumPy and json
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"warning: checkpoint {path} is damaged ({reason}); trying the one before.", file=sys.stderr)
    return None


class Run(keras.callbacks.Callback):
    """Records a training in its run directory as it goes, and finds back to where it was.

    All noise and the order of the data depend on the seed and the number of the step only, so weights, optimizer
    state, the running means of the epoch and the history are all that a checkpoint has to hold.
    """

    def __init__(self, model: DiscreteVAE, run_dir: Path, steps_per_epoch: int):
        super().__init__()
        self.set_model(model)
        self.run_dir = run_dir
        self.steps_per_epoch = steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []  # training time at the end of each epoch
        self.seconds_before = 0.0  # training time of the run before it was resumed
        self.restored_means = None
        self.stop_signal = None

    @property
    def step(self) -> int:
        """How many steps have been taken since the run began."""
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))  # also where replicas mirror it

    def fit(self, config: Config, train_set: tf.data.Dataset, test_set: tf.data.Dataset | None) -> None:
        """Trains from the present step to the end; `train_set` holds all batches from there on."""
        self.began = self.saved = time.monotonic()
        self.save_seconds = 0.0
        callbacks = [
            StopOnNonFiniteLoss(),
            keras.callbacks.TensorBoard(self.run_dir / "tensorboard", write_graph=False),
        ]
        if config.kl_epochs:
            callbacks.append(KLAnnealing(config.kl_start, config.kl_epochs))

        def fit(data, epoch, until, steps):
            self.model.fit(
                data,
                initial_epoch=epoch,
                epochs=until,
                steps_per_epoch=steps,
                validation_data=test_set,
                callbacks=[*callbacks, self],
                verbose=1 if sys.stdout.isatty() else 2,
            )

        with self._signals():
            epoch, taken = divmod(self.step, self.steps_per_epoch)
            if taken:  # a run that was stopped inside an epoch first finishes that one
                rest = self.steps_per_epoch - taken
                fit(train_set.take(rest), epoch, epoch + 1, rest)
                train_set, epoch = train_set.skip(rest), epoch + 1
            if epoch < config.epochs:
                fit(train_set, epoch, config.epochs, self.steps_per_epoch)

    # --- as a Keras callback ------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch, logs=None):
        if self.restored_means is not None:
            for variable, value in zip(self._means(), self.restored_means, strict=True):
                variable.assign(value)
            self.restored_means = None

    def on_train_batch_end(self, batch, logs=None):
        # The last step of an epoch is left to on_epoch_end, when its row of the history is complete.
        if self.step % self.steps_per_epoch:
            self._save_if(self.stop_signal is not None or time.monotonic() - self.saved > SAVE_AFTER_SECONDS)

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self.seconds.append(self._elapsed())
        files.write_csv(self.run_dir / "history.csv", self.history)
        timing = [{"epoch": i, "seconds": round(seconds, 3)} for i, seconds in enumerate(self.seconds, start=1)]
        files.write_csv(self.run_dir / "timing.csv", timing)
        since = time.monotonic() - self.saved
        self._save_if(self.stop_signal is not None or since >= self.save_seconds / CHECKPOINT_SHARE)

    def _elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _save_if(self, due: bool) -> None:
        if due:
            began = time.monotonic()
            self.save()
            self.saved = time.monotonic()
            self.save_seconds = self.saved - began
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal, self.run_dir)

    @contextlib.contextmanager
    def _signals(self):
        """The first SIGINT or SIGTERM stops the run at the next step; a second one stops it at once."""

        def stop(signum, frame):
            self.stop_signal = signum
            for number, handler in previous.items():
                signal.signal(number, handler)

        previous = {}
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _means(self) -> list:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    def _state(self) -> dict[str, keras.Variable]:
        groups = {"model": self.model.weights, "optimizer": self.model.optimizer.variables, "mean": self._means()}
        return {f"{group}/{i}": variable for group, many in groups.items() for i, variable in enumerate(many)}

    def save(self) -> None:
        """Writes checkpoints/<step>.npz, whole or not at all, and keeps the last two."""
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in self._state().items()}
        progress = {"step": self.step, "history": self.history, "seconds": self.seconds, "elapsed": self._elapsed()}
        folder = self.run_dir / "checkpoints"
        folder.mkdir(exist_ok=True)
        with files.whole(folder / f"{self.step:012d}.npz") as path, open(path, "wb") as file:
            np.savez(file, progress=json.dumps(progress), **arrays)
        for old in sorted(folder.glob("*.npz"))[:-2]:
            old.unlink()

    def restore(self, checkpoint: dict) -> None:
        """Goes back to a checkpoint. Raises ValueError where it is not one of this model."""
        state = self._state()
        expected = {name: tuple(variable.shape) for name, variable in state.items()}
        found = {name: array.shape for name, array in checkpoint.items() if name != "progress"}
        if found != expected:
            raise ValueError(f"the checkpoint in {self.run_dir} is of another model; it cannot be resumed.")
        for name, variable in state.items():
            variable.assign(checkpoint[name])
        progress = checkpoint["progress"]
        self.history, self.seconds = progress["history"], progress["seconds"]
        self.seconds_before = progress["elapsed"]
        # Inside an epoch; Keras sets its running means to 0 when it begins.
        if self.step % self.steps_per_epoch:
            self.restored_means = [checkpoint[name] for name in state if name.startswith("mean/")]

    def save_model(self) -> None:
        """Writes model.keras, whole or not at all."""
        with files.whole(self.run_dir / "model.keras") as path:
            self.model.save(path)


def _report(config: Config, run: Run, shown: tf.data.Dataset) -> dict:
    """What a finished run leaves behind: model.keras, metrics.json and the figures."""
    run.save_model()
    model, last = run.model, run.history[-1]
    figures = run.run_dir / "figures"
    figures.mkdir(exist_ok=True)
    title = f"{config.model}, {config.dataset}"
    history = {name: [row[name] for row in run.history] for name in last}
    plotting.training_curves(history, figures / "training_curves.png", title=title)
    images = next(iter(shown)).numpy()[:20]
    plotting.reconstructions(
        images, model.reconstruct(images, seed=config.seed), figures / "reconstructions.png", title=title
    )
    plotting.image_grid(model.generate(100, seed=config.seed), figures / "prior_samples.png", title=title)
    metrics = {
        **{name: value for name, value in last.items() if name != "epoch"},
        "epochs": last["epoch"],
        "steps": run.step,
        "parameters": model.encoder.count_params() + model.decoder.count_params(),
        "seconds": round(run.seconds[-1], 3),
    }
    files.write_json(run.run_dir / "metrics.json", metrics)
    shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
    return metrics
