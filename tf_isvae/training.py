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

Several workers (strategy "multi_worker") run the same command; only the chief, the first of them, writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import checks, datasets, estimators, files, networks, optimizers, plotting, zoo
from tf_isvae.callbacks import GradientVariance, KLAnnealing, NonFiniteLoss, StopOnNonFiniteLoss
from tf_isvae.model import DiscreteVAE

PRECISIONS = ("float32", "mixed_bfloat16")
STRATEGIES = ("default", "mirrored", "multi_worker")
SCHEDULES = ("constant", "cosine")
# A checkpoint is saved at the end of an epoch where that keeps all saving below this share of the training time,
CHECKPOINT_SHARE = 0.01
# and inside an epoch where, besides, the last one is older than this.
SAVE_AFTER_SECONDS = 300
# Several workers ask each other in every so many steps whether to stop or to save: one more small all-reduce.
AGREE_STEPS = 10


# What a recipe fixes, unless a setting of the run says otherwise. `kl_start` and `kl_epochs` are those of
# callbacks.KLAnnealing; the schedule "cosine" takes the learning rate to 0 at the end of the run; start_at_mean is
# networks.start_at_mean.
#
# The figures that chose them: test -ELBO in nats per image, grey MNIST, seed 0, and seconds on one core of an AMD EPYC
# with avx512_bf16, beside other jobs.
#   fc_bvae   paper 124.6 (300 epochs, 2,180 s); best passes 124.6 after 49 s and ends at 106.2 (2,164 s).
#             With Linearized() for DisARM(): 0.8 nats lower after 10 epochs, no lower after the same seconds.
#   cnn_bvae  paper 129.5 (300 epochs, 7,078 s); best below 115 after 67 epochs (1,965 s) and
#             112.4 after 160 (5,464 s), in mixed_bfloat16.
#   fc_cvae   paper 158.1 (300 epochs, 2,360 s); best 139.3 (249 s), all 100 codes used.
#             Without annealing 192.7 and 4 codes, from a weight of 100 151.5 and 45 (the prototype).
#   cnn_cvae  paper 205.9 after 100 epochs (one code); best 140.4 in mixed_bfloat16 (713 s), all 100 codes used.
# On the digits (FC BVAE, 60 epochs at batch 64, cosine): ImportanceSampling 374, DisARM 304, with start_at_mean 301,
# with a KL weight from 10 in 10 epochs besides 308.
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
_GAUSSIAN = {**_PAPER, "estimator": "Reparameterized"}
RECIPES = {
    # Section 6 of the paper, for all models; its estimator is not the one of a conventional VAE.
    "paper": {**dict.fromkeys(zoo.ARCHITECTURES, _PAPER), "fc_vae": _GAUSSIAN},
    "best": {
        "fc_vae": _GAUSSIAN,
        "fc_bvae": {**_PAPER, **_BITS, "epochs": 220, "precision": "fastest"},
        "cnn_bvae": {**_PAPER, **_BITS, "epochs": 160},
        "fc_cvae": {**_PAPER, **_ANNEALED, "epochs": 60, "kl_epochs": 30},
        "cnn_cvae": {**_PAPER, **_ANNEALED, "epochs": 40, "kl_epochs": 20},
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. None takes the recipe's value.

    model           a name of `zoo.build`
    dataset         what `datasets.load` takes: a name, an .npz file, or a folder of images
    recipe          best, or paper: a row of RECIPES
    latent_dim      bits or categories; None: the paper's, 50 or 100
    estimator       as `estimators.get` takes it, such as DisARM or ARMS:4
    learning_rate   of Adam, at the beginning
    schedule        of the learning rate: constant or cosine
    kl_start        the weight of the KL term at the beginning, see callbacks.KLAnnealing
    kl_epochs       epochs in which it falls to 1
    start_at_mean   whether the decoder begins at the mean image, see networks.start_at_mean
    seed            fixes initial weights, order of the data, binarisation and noise
    precision       float32 or mixed_bfloat16; "fastest" becomes mixed_bfloat16 where this machine has instructions for
                    it, and float32 elsewhere
    strategy        default; mirrored: every visible GPU, or every logical CPU device where there is no GPU;
                    multi_worker: those of all workers that TF_CONFIG names (docs/distributed.md)
    run_dir         what to write; None: runs/<model>_<dataset>, with a number where that is taken
    data_dir        where TFDS keeps its data sets; None: TFDS's own choice
    image_size      resize to (height, width); None: as they are
    channels        1: grey, 3: colour; None: as they are
    binarize        None, "static" or "dynamic"
    gradient_variance   whether the history records it after every epoch (callbacks.GradientVariance, 256 test images)
    deterministic   whether TensorFlow may only use operations that give the same bits in every run. Without it,
                    operations that add in the order in which threads finish may differ in the last bits, from where
                    two runs drift apart: on a GPU, the gradients of convolutions, and algorithms that cuDNN picks by
                    timing. Order of the data, noise and initial weights never differ. It holds for the whole process,
                    and for the same machine and versions; another number of threads or devices may add otherwise.
    """

    model: str = "fc_bvae"
    dataset: str = "mnist"
    recipe: str = "best"
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
    gradient_variance: bool = False
    deterministic: bool = False

    def __post_init__(self):
        zoo.check_name(self.model)
        self._check_one_of("recipe", tuple(RECIPES))
        for name, value in RECIPES[self.recipe][self.model].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.precision == "fastest":
            object.__setattr__(self, "precision", "mixed_bfloat16" if _multiplies_bfloat16() else "float32")
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("kl_epochs", 0)):
            object.__setattr__(self, name, checks.integer(name, getattr(self, name), minimum))
        for name in ("learning_rate", "kl_start"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name)))
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; it must be below 2^32, for NumPy's generator.")
        if not isinstance(self.start_at_mean, bool):
            raise ValueError(f"start_at_mean is {self.start_at_mean!r}; it must be True or False.")
        estimators.get(self.estimator)
        self._check_one_of("schedule", SCHEDULES)
        self._check_one_of("precision", PRECISIONS)
        self._check_one_of("strategy", STRATEGIES)
        for name in ("gradient_variance", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be True or False.")

    def _check_one_of(self, name: str, accepted: tuple[str, ...]) -> None:
        if getattr(self, name) not in accepted:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(accepted)}.")


def _multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16 products: a GPU, AVX512-BF16, AMX, or Arm's BF16."""
    if tf.config.list_physical_devices("GPU"):
        return True
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        return "bf16" in Path("/proc/cpuinfo").read_text()
    return False


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
    if name == "multi_worker":
        return _multi_worker()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def place(config: Config) -> tuple[int, int]:
    """Which worker this process is, and of how many. Worker 0 is the chief: it alone writes the run directory.

    Raises ValueError where the strategy is multi_worker and TF_CONFIG does not say so.
    """
    if config.strategy != "multi_worker":
        return 0, 1

    def wrong(what):
        return ValueError(
            f"strategy multi_worker: {what}. Set the environment variable TF_CONFIG on each worker, such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        )

    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        raise wrong("TF_CONFIG is not set")
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise wrong(f"TF_CONFIG is not JSON ({error})") from None
    cluster, task = (stored.get(key) if isinstance(stored, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not cluster or not set(cluster) <= {"chief", "worker"}:
        raise wrong(f'the "cluster" in TF_CONFIG is {cluster!r}; it must have lists "worker", or "chief" and "worker"')
    for job, addresses in cluster.items():
        if not isinstance(addresses, list) or not addresses:
            raise wrong(f'"{job}" in TF_CONFIG is {addresses!r}; it must be a list of addresses')
        for address in addresses:
            if not isinstance(address, str) or not address.rpartition(":")[0] or not address.split(":")[-1].isdigit():
                raise wrong(f"the address {address!r} in TF_CONFIG is not host:port")
    addresses = [address for job in sorted(cluster) for address in cluster[job]]
    if len(set(addresses)) < len(addresses) or len(cluster.get("chief", [])) > 1:
        raise wrong("TF_CONFIG names an address twice, or more than one chief")
    job, index = (task.get(key) if isinstance(task, dict) else None for key in ("type", "index"))
    if job not in cluster:
        raise wrong(f'the "type" of the "task" in TF_CONFIG is {job!r}; it must be one of {", ".join(cluster)}')
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(cluster[job]):
        raise wrong(f'the "index" of the "task" in TF_CONFIG is {index!r}; it must be 0 to {len(cluster[job]) - 1}')
    return addresses.index(cluster[job][index]), len(addresses)


@functools.cache  # TensorFlow can be told of its workers only once in a process
def _multi_worker() -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    addresses = [a for job, some in sorted(resolver.cluster_spec().as_dict().items()) for a in some]
    print(f"waiting until all {len(addresses)} workers have started: {', '.join(addresses)}", flush=True)
    try:
        # Python cannot handle Ctrl-C while TensorFlow waits: nothing is lost if it ends the process. For SIGTERM
        # TensorFlow leaves behind a handler that swallows it.
        with _handlers({signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}):
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"the workers that TF_CONFIG names do not come together: {reason}") from None


def _sum_over_workers(strategy: tf.distribute.Strategy, values) -> np.ndarray:
    """The sum of what each worker gives, float64; all workers must call it at the same point."""
    return _summing(strategy)(tf.constant(values, tf.float64)).numpy() / len(strategy.extended.worker_devices)


@functools.cache
def _summing(strategy: tf.distribute.Strategy):
    sum_of = tf.distribute.ReduceOp.SUM
    return tf.function(lambda values: strategy.reduce(sum_of, strategy.run(lambda: values), axis=None))


def _check_workers_agree(strategy: tf.distribute.Strategy, config: Config, step: int) -> None:
    """Raises ValueError where the workers were given different settings, or read different checkpoints."""
    worker, workers = place(config)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "run_dir"}
    ours = np.array([zlib.crc32(repr(settings).encode()), step], np.float64)
    same = _sum_over_workers(strategy, ours) == workers * ours
    if not same[0]:
        raise ValueError("the workers were started with different settings; start all with the same command.")
    if not same[1]:
        raise ValueError(
            f"worker {worker} would resume at step {step}, and others elsewhere: run_dir must be the same directory on "
            "a file system that all workers share."
        )


@contextlib.contextmanager
def _handlers(handlers: dict) -> Iterator[dict]:
    """Handles these signals so, where Python allows it (in the main thread); gives the handlers before."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    if run_dir.exists() and not (run_dir.is_dir() and all(map(files.is_leftover, run_dir.iterdir()))):
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
    """A run was stopped by SIGINT or SIGTERM, after a checkpoint was saved if possible. `signal` is its number."""

    def __init__(self, signum: int, run_dir: Path, saved: bool):
        what = "everything done so far is kept" if saved else "what was done up to the last good checkpoint is kept"
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; {what} in {run_dir}: --resume --run-dir {run_dir} goes on"
        )
        self.signal = signum


class WorkerLost(RuntimeError):
    """Another worker of the run does not answer any more."""


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
        WorkerLost: another worker ended, or cannot be reached; start all again with resume=True.
        OSError: the trained model cannot be written; resume=True tries again.
    """
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}; it must be a training.Config.")
    worker, workers = shard = place(config)
    run_dir = _choose_run_dir(config, resume)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = _strategy(config.strategy)  # before any other use of TensorFlow
    checkpoint = newest_checkpoint(run_dir) if resume else None
    start = 0 if checkpoint is None else checkpoint["progress"]["step"]
    if workers > 1:
        _check_workers_agree(strategy, config, start)
    with _precision(config.precision), _lost_workers(workers, run_dir):
        keras.utils.set_random_seed(config.seed)
        # All batches from here to the end of the run, so that the data is read once.
        train_set = _load(config, "train", epochs=config.epochs, start=start, shard=shard)
        steps_per_epoch = (int(train_set.cardinality()) + start) // config.epochs
        try:
            test_set = _load(config, "test", shard=shard)
        except datasets.NoSuchSplit:
            test_set = None
        with strategy.scope():
            image_shape = tuple(train_set.element_spec.shape[1:])
            model = zoo.build(
                config.model,
                image_shape,
                config.latent_dim,
                estimator=estimators.get(config.estimator),
                seed=config.seed,
            )
            rate = config.learning_rate
            if config.schedule == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(rate, steps_per_epoch * config.epochs)
            model.compile(optimizer=optimizers.Adam(rate))
            model.optimizer.build(model.trainable_variables)
        run = Run(model, run_dir, steps_per_epoch, worker, workers)
        if config.start_at_mean and checkpoint is None:
            images = next(iter(train_set)).numpy()
            mean = images.mean(axis=0)
            if workers > 1:
                sums = _sum_over_workers(strategy, np.append(images.sum(axis=0, dtype=np.float64), len(images)))
                mean = (sums[:-1] / sums[-1]).reshape(mean.shape)
            networks.start_at_mean(model.decoder, mean)
        if checkpoint is not None:
            run.restore(checkpoint)
        if run.chief:
            if resume:
                _remove_leftovers(run_dir)
            else:
                _begin_run_dir(run_dir, config)
        try:
            run.fit(config, train_set, test_set)
        except NonFiniteLoss:
            if run.chief:
                run.save_model()
            raise
    metrics = run.metrics()
    if run.chief:
        try:
            _report(config, run, metrics, _load(config, "train") if test_set is None else _load(config, "test"))
        except OSError as error:
            raise OSError(
                f"the trained model cannot be written to {run_dir} ({error.strerror or error}); make room there, then "
                f"--resume --run-dir {run_dir} goes on from the last checkpoint"
            ) from None
    return metrics, run_dir


def _remove_leftovers(run_dir: Path) -> None:
    """Removes what a process was writing when it was killed."""
    for path in run_dir.rglob(".*"):
        if files.is_leftover(path):
            path.unlink()


@contextlib.contextmanager
def _lost_workers(workers: int, run_dir: Path) -> Iterator[None]:
    """With several workers, TensorFlow's error for one that ended (found within 10 seconds or so) in one line."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if workers == 1:
            raise
        lost = {f"{job} {i}" for job, i in re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message)}
        raise WorkerLost(
            f"{' and '.join(sorted(lost)) or 'another worker'} ended or cannot be reached; start all {workers} workers "
            f"again with --resume --run-dir {run_dir}"
        ) from None


def newest_checkpoint(run_dir: Path) -> dict | None:
    """What the newest whole checkpoint of a run holds: arrays by name, and "progress".

    A damaged one is passed over with a warning. None where there is none: the run then begins anew.
    """
    for path in sorted(run_dir.glob("checkpoints/[0-9]*.npz"), reverse=True):
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

    def __init__(self, model: DiscreteVAE, run_dir: Path, steps_per_epoch: int, worker: int, workers: int):
        super().__init__()
        self.set_model(model)
        self.strategy = model.distribute_strategy
        self.workers = workers
        self.chief = worker == 0  # whether this process writes
        self.run_dir = run_dir
        self.steps_per_epoch = steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []  # training time at the end of each epoch
        self.learning_rates: list[float] = []  # and the learning rate
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
        callbacks = [StopOnNonFiniteLoss()]
        if config.kl_epochs:
            callbacks.append(KLAnnealing(config.kl_start, config.kl_epochs))
        if config.gradient_variance:
            shown = train_set if test_set is None else test_set
            callbacks.append(GradientVariance(next(iter(shown.unbatch().batch(256))).numpy()))
        test_steps = None
        if test_set is not None and self.workers > 1:
            test_steps = int(test_set.cardinality())  # which what is dealt out does not know any more
            test_set = self._deal_out(test_set.repeat())

        def fit(data, epoch, until, steps):
            self.model.fit(
                self._deal_out(data),
                initial_epoch=epoch,
                epochs=until,
                steps_per_epoch=steps,
                validation_data=test_set,
                validation_steps=test_steps,
                callbacks=[*callbacks, self],
                verbose=0 if not self.chief else 1 if sys.stdout.isatty() else 2,
            )

        with self._signals(), self._tensorboard():
            epoch, taken = divmod(self.step, self.steps_per_epoch)
            if taken:  # a run that was stopped inside an epoch first finishes that one
                rest = self.steps_per_epoch - taken
                fit(train_set.take(rest), epoch, epoch + 1, rest)
                train_set, epoch = train_set.skip(rest), epoch + 1
            if epoch < config.epochs:
                fit(train_set, epoch, config.epochs, self.steps_per_epoch)

    def _deal_out(self, batches: tf.data.Dataset):
        """This worker's part of each batch, in equal parts for its replicas."""
        replicas = self.strategy.num_replicas_in_sync // self.workers
        if self.workers == 1:
            return batches  # Keras deals them out itself

        def split(images):
            count = tf.shape(images, tf.int64)[0]
            parts = tf.data.Dataset.range(replicas)
            return parts.map(lambda i: images[count * i // replicas : count * (i + 1) // replicas])

        parts = batches.flat_map(split).prefetch(2)
        return self.strategy.distribute_datasets_from_function(lambda context: parts)

    # --- as a Keras callback ------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch, logs=None):
        if self.restored_means is not None:
            self._set_means(self.restored_means)
            self.restored_means = None

    def on_train_batch_end(self, batch, logs=None):
        # The last step of an epoch is left to on_epoch_end, when its row of the history is complete.
        if self.step % self.steps_per_epoch and (self.workers == 1 or self.step % AGREE_STEPS == 0):
            self._save_if(time.monotonic() - self.saved > max(SAVE_AFTER_SECONDS, self.save_seconds / CHECKPOINT_SHARE))

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self.seconds.append(self._elapsed())
        self.learning_rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self._write("history.csv", self.write_history)
        self._write("tensorboard", lambda: self._show(epoch))
        self._save_if(time.monotonic() - self.saved >= self.save_seconds / CHECKPOINT_SHARE)

    def _elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def write_history(self) -> None:
        """Writes history.csv and timing.csv."""
        files.write_csv(self.run_dir / "history.csv", self.history)
        timing = [{"epoch": i, "seconds": round(seconds, 3)} for i, seconds in enumerate(self.seconds, start=1)]
        files.write_csv(self.run_dir / "timing.csv", timing)

    def _write(self, what: str, write) -> bool:
        """Whether write() succeeds, on the chief; where it does not, the run goes on, with a warning of one line."""
        try:
            if self.chief:
                write()
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            kept = sorted(int(path.stem) for path in self.run_dir.glob("checkpoints/[0-9]*.npz"))
            last = f"the last good checkpoint is that of step {kept[-1]}" if kept else "there is no checkpoint yet"
            print(
                f"\nwarning: step {self.step}: {what} in {self.run_dir} cannot be written ({reason}); the run goes on "
                f"and tries again, {last}: make room.",
                file=sys.stderr,
            )
            return False
        return True

    def _save_if(self, due: bool) -> None:
        """Saves where it is due, and stops where a signal came: to any of the workers, which agree on it here."""
        wishes = [self.stop_signal == signal.SIGINT, self.stop_signal == signal.SIGTERM, due and self.chief]
        interrupted, terminated, due = _sum_over_workers(self.strategy, wishes) if self.workers > 1 else wishes
        saved = True
        if due or interrupted or terminated:
            began = time.monotonic()
            means = self._means()  # from all workers
            saved = self._write("a checkpoint", lambda: self.save(means))
            self.saved = time.monotonic()
            self.save_seconds = self.saved - began
        if interrupted or terminated:
            raise Interrupted(signal.SIGTERM if terminated else signal.SIGINT, self.run_dir, saved)

    @contextlib.contextmanager
    def _signals(self):
        """The first SIGINT or SIGTERM stops the run at the next step; a second one stops it at once."""

        def stop(signum, frame):
            self.stop_signal = signum
            for number, handler in previous.items():
                signal.signal(number, handler)

        with _handlers({signal.SIGINT: stop, signal.SIGTERM: stop}) as previous:
            yield

    # --- TensorBoard --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tensorboard(self):
        """Writes events while the run is inside; first anew those of the epochs that a resumed run has already.

        The run that was killed may have written more than its last checkpoint holds, or not all of it.
        """
        self.writers = {}
        if self.chief:
            shutil.rmtree(self.run_dir / "tensorboard", ignore_errors=True)
            for epoch in range(len(self.history)):
                self._write("tensorboard", lambda epoch=epoch: self._show(epoch))
        try:
            yield
        finally:
            for writer in self.writers.values():
                writer.close()

    def _show(self, epoch: int) -> None:
        """Writes the events of an epoch, counted from 0 as Keras does."""
        row = {name: value for name, value in self.history[epoch].items() if name != "epoch"}
        row["learning_rate"] = self.learning_rates[epoch]
        for name, value in row.items():
            part = "validation" if name.startswith("val_") else "train"
            if part not in self.writers:
                self.writers[part] = tf.summary.create_file_writer(str(self.run_dir / "tensorboard" / part))
            with self.writers[part].as_default():
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value, step=epoch)
        for writer in self.writers.values():
            writer.flush()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _means(self) -> np.ndarray:
        """The running means of the epoch, as each replica holds its own: (replicas, variables) float32."""
        return self._gather_means().numpy()

    @functools.cached_property
    def _gather_means(self):
        variables = [variable for metric in self.model.metrics for variable in metric.variables]

        def own():
            return tf.stack([tf.convert_to_tensor(variable) for variable in variables])[None]

        return tf.function(lambda: self.strategy.gather(self.strategy.run(own), axis=0))

    def _set_means(self, means: np.ndarray) -> None:
        variables = [variable for metric in self.model.metrics for variable in metric.variables]

        def assign():
            own = tf.constant(means)[tf.distribute.get_replica_context().replica_id_in_sync_group]
            for i, variable in enumerate(variables):
                variable.assign(own[i])

        tf.function(lambda: self.strategy.run(assign))()

    def _state(self) -> dict[str, keras.Variable]:
        groups = {"model": self.model.weights, "optimizer": self.model.optimizer.variables}
        return {f"{group}/{i}": variable for group, many in groups.items() for i, variable in enumerate(many)}

    def save(self, means: np.ndarray) -> None:
        """Writes checkpoints/<step>.npz, whole or not at all, and keeps the last two."""
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in self._state().items()}
        progress = {
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "learning_rates": self.learning_rates,
            "elapsed": self._elapsed(),
        }
        folder = self.run_dir / "checkpoints"
        folder.mkdir(exist_ok=True)
        with files.atomic_write(folder / f"{self.step:012d}.npz") as path, open(path, "wb") as file:
            np.savez(file, progress=json.dumps(progress), means=means, **arrays)
        for old in sorted(folder.glob("[0-9]*.npz"))[:-2]:
            old.unlink()

    def restore(self, checkpoint: dict) -> None:
        """Goes back to a checkpoint. Raises ValueError where it is not one of this model."""
        state = self._state()
        expected = {name: tuple(variable.shape) for name, variable in state.items()}
        found = {name: array.shape for name, array in checkpoint.items() if name not in ("progress", "means")}
        if found != expected:
            raise ValueError(f"the checkpoint in {self.run_dir} is of another model; it cannot be resumed.")
        replicas = len(checkpoint["means"])
        if replicas != self.strategy.num_replicas_in_sync:
            raise ValueError(
                f"the run in {self.run_dir} has {replicas} replicas (devices of all workers) and there are "
                f"{self.strategy.num_replicas_in_sync} now; resume it with as many."
            )
        for name, variable in state.items():
            variable.assign(checkpoint[name])
        progress = checkpoint["progress"]
        self.history, self.seconds = progress["history"], progress["seconds"]
        self.learning_rates = progress["learning_rates"]
        self.seconds_before = progress["elapsed"]
        # Inside an epoch; Keras sets its running means to 0 when it begins.
        if self.step % self.steps_per_epoch:
            self.restored_means = checkpoint["means"]

    def metrics(self) -> dict:
        """What metrics.json holds."""
        last = self.history[-1]
        return {
            **{name: value for name, value in last.items() if name != "epoch"},
            "epochs": last["epoch"],
            "steps": self.step,
            "parameters": self.model.encoder.count_params() + self.model.decoder.count_params(),
            "seconds": round(self.seconds[-1], 3),
        }

    def save_model(self) -> None:
        """Writes model.keras, whole or not at all."""
        with files.atomic_write(self.run_dir / "model.keras") as path:
            self.model.save(path)


def _report(config: Config, run: Run, metrics: dict, shown: tf.data.Dataset) -> None:
    """What a finished run leaves behind: model.keras, metrics.json, the figures, and the history."""
    run.save_model()
    run.write_history()
    model = run.model
    figures = run.run_dir / "figures"
    figures.mkdir(exist_ok=True)
    title = f"{config.model}, {config.dataset}"
    history = {name: [row[name] for row in run.history] for name in run.history[-1]}
    plotting.training_curves(history, figures / "training_curves.png", title=title)
    images = next(iter(shown)).numpy()[:20]
    plotting.reconstructions(
        images, model.reconstruct(images, seed=config.seed), figures / "reconstructions.png", title=title
    )
    plotting.image_grid(model.generate(100, seed=config.seed), figures / "prior_samples.png", title=title)
    files.write_json(run.run_dir / "metrics.json", metrics)
    shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
