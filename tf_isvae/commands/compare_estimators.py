"""Compares gradient estimators on the field's protocol, and writes one table, a figure, and a history.csv each.

    python scripts/compare_estimators.py                                          every estimator, 50,000 steps
    python scripts/compare_estimators.py --estimators Linearized+DisARM ARMS:3 --steps 1000000
    python scripts/compare_estimators.py --categorical 24x4 --estimators LeaveOneOut:4 ReinMax --steps 96000 \\
        --evaluate-every 8000

The protocol (Dong et al. 2020, Titsias & Shi 2022): dynamically binarised MNIST, the first 50,000 training images;
784-200-200-200 bits and the mirror image, LeakyReLU 0.3, fixed uniform prior, batch 100, Adam 1e-3. An estimator is
named as `tf_isvae.estimators.get` takes it: by its class, with its number of samples or pairs behind a colon;
Linearized+DisARM:1 is Linearized(DisARM(1)). The same command again goes on with a run that was stopped.

With --categorical, the protocol of Liu et al. 2023: many Categorical variables, grey MNIST, all 60,000 training images,
784-512-256 and the mirror image, ReLU, batch 100, Adam 1e-3; 96,000 steps are their 160 epochs. Their own settings,
with a decoder that begins at the mean image where they have PyTorch's initial weights:

    python scripts/compare_estimators.py --categorical 24x4 --estimators ReinMax:1:1.5 --optimizer RAdam \\
        --learning-rate 5e-4 --start-at-mean --steps 96000 --evaluate-every 8000
"""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

from tf_isvae import recipes
from tf_isvae.commands import command_line

DEFAULT = [
    *("DisARM:1", "Linearized+DisARM:1", "LeaveOneOut:2", "ImportanceSampling:2", "ARMS:3", "ARMS:4"),
    *("Linearized+ARMS:3", "LeaveOneOut:4", "StraightThrough:1", "ReinMax:1"),
]
BATCH = 100
# At most so many steps between two visits to Python, each of which costs as much as a few steps.
STEPS_PER_CALL = 500
# At least so many calls between two evaluations, of which the fastest are timed.
CALLS = 10


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    names = f"of {', '.join(recipes.ESTIMATORS)}; default {' '.join(DEFAULT)}"
    add("--estimators", nargs="+", default=DEFAULT, metavar="NAME[:COUNT]", help=names)
    latent = "many categorical variables in place of bits, such as 24x4"
    add("--categorical", default=None, metavar="VARIABLESxCATEGORIES", help=latent)
    add("--optimizer", choices=("Adam", "RAdam"), default="Adam", help="default Adam")
    add("--learning-rate", type=float, default=1e-3, metavar="RATE", help="default 0.001")
    add("--start-at-mean", action="store_true", default=False, help="begin with a decoder that gives the mean image")
    add("--precision", choices=recipes.PRECISIONS, default="float32", help="default float32")
    add("--steps", type=int, default=50_000, metavar="N", help="of training; default 50000")
    add("--evaluate-every", type=int, default=5_000, metavar="N", help="steps; default 5000")
    add("--seed", type=int, default=0, metavar="N", help="default 0")
    add(
        "--data-dir",
        default=None,
        help="where TFDS keeps its data sets; default TFDS_DATA_DIR, or ~/tensorflow_datasets",
    )
    add("--run-dir", type=Path, default=Path("runs/estimators"), help="what to write; default runs/estimators")
    return parser


class Protocol(NamedTuple):
    """What all estimators of one comparison share."""

    model: str  # of the zoo: its kind of latent
    latent_dim: int | tuple[int, int]
    widths: tuple[int, ...]  # of the encoder's hidden layers; the decoder is its mirror image
    slope: float  # of LeakyReLU
    split: str
    train_images: int
    binarize: str | None


def protocol(categorical: str | None) -> Protocol:
    """That of bits, or that of so many categorical variables. Raises ValueError for another text than 24x4."""
    from tf_isvae import checks

    if categorical is None:
        return Protocol("fc_bvae", 200, (200, 200), 0.3, "train[:50000]", 50_000, "dynamic")
    size = checks.integer_or_pair("--categorical", categorical)
    if not isinstance(size, tuple):
        raise ValueError(f"--categorical is {categorical}; it must be VARIABLESxCATEGORIES, such as 24x4.")
    return Protocol("fc_cvae", size, (512, 256), 0.0, "train", 60_000, None)


def variant(arguments: argparse.Namespace) -> str:
    """What the names of this comparison end in, beside those of the others in the same folder."""
    precision = "" if arguments.precision == "float32" else f"_{arguments.precision}"
    seed = f"_seed{arguments.seed}" if arguments.seed else ""
    rate = "" if arguments.optimizer == "Adam" else f"_{arguments.optimizer}"
    rate += "" if arguments.learning_rate == 1e-3 else f"_{arguments.learning_rate:g}"
    start = "_mean" if arguments.start_at_mean else ""
    return (f"_{arguments.categorical}" if arguments.categorical else "") + rate + start + precision + seed


def comparison(arguments: argparse.Namespace, ending: str) -> Path:
    """The file of this comparison that ends so: ".md", the table, or ".png", the figure."""
    # Not Path.with_suffix, which takes the end of a learning rate for an ending.
    return arguments.run_dir / f"comparison{variant(arguments)}{ending}"


def make_latent(shared: Protocol):
    from tf_isvae import zoo

    return zoo.MODELS[shared.model].latent(shared.latent_dim)


def build(estimator, shared: Protocol, arguments: argparse.Namespace, steps_per_call: int = STEPS_PER_CALL):
    import keras

    from tf_isvae import optimizers, speed, training
    from tf_isvae.model import DiscreteVAE

    latent = make_latent(shared)

    def hidden(widths):
        for width in widths:
            yield keras.layers.Dense(width)
            yield keras.layers.LeakyReLU(negative_slope=shared.slope)

    keras.utils.set_random_seed(arguments.seed)
    with training.layers_in(arguments.precision):
        encoder = [keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden(shared.widths)]
        encoder.append(keras.layers.Dense(latent.encoder_units))
        decoder = [keras.Input((latent.units,)), *hidden(reversed(shared.widths)), keras.layers.Dense(784)]
        decoder.append(keras.layers.Reshape((28, 28, 1)))
        networks = keras.Sequential(encoder), latent, speed.SideBySide(decoder)
        model = DiscreteVAE(*networks, estimator=estimator, seed=arguments.seed)
        rate = arguments.learning_rate
        rate = optimizers.Rectified(rate) if arguments.optimizer == "RAdam" else rate
        model.compile(optimizer=optimizers.Adam(rate), steps_per_execution=steps_per_call)
        model.optimizer.build(model.trainable_variables)
    return model


def steps_per_call(evaluate_every: int, step: int = 0) -> int:
    """How many steps a call takes: at most STEPS_PER_CALL, with CALLS calls or more between two evaluations if it can.

    It divides both the steps between two evaluations and those that have been taken.
    """
    most = max(1, min(STEPS_PER_CALL, evaluate_every // CALLS))
    common = math.gcd(evaluate_every, step)
    return next(steps for steps in range(most, 0, -1) if common % steps == 0)


def run(text: str, shared: Protocol, arguments: argparse.Namespace) -> list[dict]:
    """Trains with one estimator, or goes on with what an earlier call began; returns the rows of its history."""
    from tf_isvae import datasets, estimators, networks
    from tf_isvae.training import Recorder, RunDirectory, checkpoints, for_strategy

    path = arguments.run_dir / (text.replace(":", "-") + variant(arguments))
    with RunDirectory(path, how_to_resume="the same command").claim(new=False) as directory:
        checkpoint = checkpoints.newest(path)
        step = 0 if checkpoint is None else checkpoint.progress["step"]
        if step >= arguments.steps:
            return checkpoint.progress["history"]
        calls = steps_per_call(arguments.evaluate_every, step)
        model = build(estimators.get(text), shared, arguments, calls)
        identity = datasets.fingerprint("mnist", shared.split, data_dir=arguments.data_dir)
        workers = for_strategy("default")
        recorder = Recorder(model, directory, workers, arguments.evaluate_every, {shared.split: identity})
        if checkpoint is not None:
            recorder.restore(checkpoint)
        train_set = datasets.load(
            "mnist",
            shared.split,
            batch_size=BATCH,
            seed=arguments.seed,
            binarize=shared.binarize,
            epochs=-(-arguments.steps * BATCH // shared.train_images),
            start=step,
            data_dir=arguments.data_dir,
        )
        if arguments.start_at_mean and checkpoint is None:
            networks.start_at_mean(model.decoder, next(iter(train_set)).numpy().mean(axis=0))
        directory.begin({"estimator": text, **shared._asdict(), "precision": arguments.precision})
        epochs = arguments.steps // arguments.evaluate_every
        recorder.fit(train_set, None, epochs, [evaluator(text, recorder, shared, arguments)], verbose=0)
        recorder.save()  # from which a later call with more steps goes on
        return recorder.history


def evaluator(text: str, recorder, shared: Protocol, arguments: argparse.Namespace):
    """The Keras callback that adds the columns of the table to each row of the history."""
    import keras
    import numpy as np

    from tf_isvae import datasets, evaluation

    model = recorder.model
    static = {"binarize": "static" if shared.binarize else None, "data_dir": arguments.data_dir}
    static |= {"batch_size": 1000, "seed": arguments.seed}
    train_again = datasets.load("mnist", shared.split, **static)
    test_images = np.concatenate([batch.numpy() for batch in datasets.load("mnist", "test", **static)])
    samples = model.estimator.decoder_evaluations(model.latent)

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.times = [time.perf_counter()]

        def on_train_batch_end(self, batch, logs=None):
            self.times.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            before = recorder.history[-1] if recorder.history else {"step": 0, "seconds": 0.0}
            step = recorder.step
            # The fastest tenth of the calls counts: what else the machine does at the time should not.
            milliseconds = 1e3 * float(np.quantile(np.diff(self.times), 0.1)) / model.steps_per_execution
            seconds = before["seconds"] + (step - before["step"]) * milliseconds / 1e3
            last = step >= arguments.steps
            logs["step"] = step
            logs["seconds"] = round(seconds, 2)
            logs["ms_per_step"] = milliseconds
            logs["train_elbo"] = -model.evaluate(train_again, verbose=0, return_dict=True)["loss"]
            logs["test_bound"] = model.log_likelihood(test_images, samples, seed=0).mean()
            # A tenth of the run's time otherwise.
            logs["test_bound_100"] = model.log_likelihood(test_images, 100, seed=0).mean() if last else math.nan
            logs["gradient_variance"] = evaluation.gradient_variance(model, test_images[:BATCH], draws=100)
            print(f"{text:22} step {step:8}  train ELBO {logs['train_elbo']:9.3f}  {seconds:8.1f} s", flush=True)

    return Evaluate()


def table(results: dict[str, list[dict]], latent) -> str:
    from tf_isvae import estimators

    lines = [
        "| estimator | decoder evaluations | steps | train ELBO | K-sample test bound | 100-sample test bound "
        "| gradient variance | ms per step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for text, rows in results.items():
        row, evaluations = rows[-1], estimators.get(text).decoder_evaluations(latent)
        lines.append(
            f"| {text} | {evaluations} | {row['step']:.0f} | {row['train_elbo']:.2f} "
            f"| {row['test_bound']:.2f} | {row['test_bound_100']:.2f} | {row['gradient_variance']:.2e} "
            f"| {row['ms_per_step']:.2f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """The training ELBO of each run, nats per image, against steps and against seconds."""
    from matplotlib.figure import Figure

    from tf_isvae import plotting

    figure = Figure(figsize=(9, 4), dpi=160, layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for i, (label, rows) in enumerate(results.items()):
            # Colours of names rather than of an order, and shapes beside them: ten lines may lie close together.
            axes.plot(
                [row[column] for row in rows],
                [row["train_elbo"] for row in rows],
                label=label,
                color=f"C{i % 10}",
                marker="osD^v<>PX*"[i % 10],
                markersize=5,
            )
        axes.set_xlabel(column if column == "seconds" else "steps")
        axes.set_ylabel("training ELBO, nats per image")
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    plotting.save(figure, path)


def prepare(arguments: argparse.Namespace) -> tuple[argparse.Namespace, Protocol]:
    from tf_isvae import checks, estimators, speed

    checks.integer("--seed", arguments.seed, 0)
    checks.positive("--learning-rate", arguments.learning_rate)
    for name in ("steps", "evaluate_every"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(arguments, name))
    if arguments.steps % arguments.evaluate_every:
        raise ValueError(
            f"--steps is {arguments.steps}; it must be a multiple of --evaluate-every, {arguments.evaluate_every}."
        )
    shared = protocol(arguments.categorical)
    speed.one_thread_an_operation()  # if TensorFlow has started, for another program in this process, steps take longer
    latent = make_latent(shared)
    for text in arguments.estimators:  # a wrong name is refused before hours of the right ones
        estimators.get(text).check(latent.prior())
    try:
        arguments.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"--run-dir is {arguments.run_dir}; it must be writable ({error.strerror}): choose another."
        ) from None
    return arguments, shared


def work(prepared: tuple[argparse.Namespace, Protocol]) -> None:
    from tf_isvae import files

    arguments, shared = prepared
    results = {}
    for text in arguments.estimators:
        results[text] = run(text, shared, arguments)
        draw(results, comparison(arguments, ".png"))
        with files.atomic_write(comparison(arguments, ".md")) as path:
            path.write_text(table(results, make_latent(shared)) + "\n")
    shown = table(results, make_latent(shared))
    print(f"\n{shown}\n\nwritten: {comparison(arguments, '')}.md, .png and a folder with history.csv each")
