"""Compares gradient estimators on the field's protocol, and writes one table, one CSV each and a figure.

    python scripts/compare_estimators.py                                          every estimator, 50,000 steps
    python scripts/compare_estimators.py --estimators Linearized+DisARM ARMS:3 --steps 1000000
    python scripts/compare_estimators.py --categorical 24x4 --estimators LeaveOneOut:4 ReinMax --steps 96000 \\
        --evaluate-every 8000

The protocol (Dong et al. 2020, Titsias & Shi 2022): dynamically binarised MNIST, the first 50,000 training images;
784-200-200-200 bits and the mirror image, LeakyReLU 0.3, fixed uniform prior, batch 100, Adam 1e-3. An estimator is
named as `tf_isvae.estimators.get` takes it: by its class, with its number of samples or pairs behind a colon;
Linearized+DisARM:1 is Linearized(DisARM(1)). A run that was stopped goes on where it was when the same command is given
again.

With --categorical, the protocol of Liu et al. 2023: many Categorical variables, grey MNIST, all 60,000 training images,
784-512-256 and the mirror image, ReLU, batch 100, Adam 1e-3; 96,000 steps are their 160 epochs.
"""

import argparse
import contextlib
import time
from pathlib import Path

import command_line

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
    parser.add_argument("--estimators", nargs="+", default=DEFAULT, metavar="NAME[:COUNT]")
    parser.add_argument("--categorical", default=None, metavar="VARIABLESxCATEGORIES", help="such as 24x4")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--evaluate-every", type=int, default=5_000, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", default=None, help="where TFDS keeps its data sets")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/estimators"))
    return parser


def variant(arguments: argparse.Namespace) -> str:
    """What the names of the files of this protocol end in, beside those of the others in the same folder."""
    precision = "" if arguments.precision == "float32" else f"_{arguments.precision}"
    seed = f"_seed{arguments.seed}" if arguments.seed else ""
    return (f"_{arguments.categorical}" if arguments.categorical else "") + precision + seed


def make_latent(text: str | None):
    from tf_isvae import BernoulliLatent, CategoricalLatent

    if text is None:
        return BernoulliLatent(200)
    sizes = text.split("x")
    if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        raise ValueError(f"--categorical {text}: give VARIABLESxCATEGORIES, such as 24x4.")
    return CategoricalLatent(categories=int(sizes[1]), variables=int(sizes[0]))


def build(estimator, latent, seed: int, steps_per_call: int = STEPS_PER_CALL):
    import keras

    from tf_isvae import CategoricalLatent, DiscreteVAE, optimizers

    categorical = isinstance(latent, CategoricalLatent)
    widths = (512, 256) if categorical else (200, 200)

    def hidden(widths):
        for width in widths:
            yield keras.layers.Dense(width)
            yield keras.layers.LeakyReLU(negative_slope=0.0 if categorical else 0.3)

    keras.utils.set_random_seed(seed)
    encoder = [keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden(widths)]
    encoder.append(keras.layers.Dense(latent.encoder_units))
    decoder = [keras.Input((latent.units,)), *hidden(reversed(widths)), keras.layers.Dense(784)]
    decoder.append(keras.layers.Reshape((28, 28, 1)))
    model = DiscreteVAE(keras.Sequential(encoder), latent, keras.Sequential(decoder), estimator=estimator, seed=seed)
    model.compile(optimizer=optimizers.Adam(1e-3), steps_per_execution=steps_per_call)
    return model


def largest_call(evaluate_every: int) -> int:
    """Steps a call: a divisor of those between two evaluations, at most STEPS_PER_CALL, and CALLS of them if it can."""
    most = max(1, min(STEPS_PER_CALL, evaluate_every // CALLS))
    return next(steps for steps in range(most, 0, -1) if evaluate_every % steps == 0)


def paths(text: str, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The model and the CSV of an estimator's run."""
    name = text.replace(":", "-") + variant(arguments)
    return arguments.run_dir / f"{name}.keras", arguments.run_dir / f"{name}.csv"


def check_reachable(text: str, arguments: argparse.Namespace) -> None:
    """Raises ValueError where a stored run cannot come to --steps by evaluations every --evaluate-every steps."""
    from tf_isvae import files

    csv_path = paths(text, arguments)[1]
    step = int(files.read_csv(csv_path)[-1]["step"]) if csv_path.exists() else 0
    left = max(0, arguments.steps - step)
    if left % arguments.evaluate_every:
        raise ValueError(
            f"{csv_path} is at step {step}; the {left} steps to --steps {arguments.steps} must be a multiple of "
            f"--evaluate-every {arguments.evaluate_every}: give that of the first run, or another --run-dir."
        )


def run(text: str, arguments: argparse.Namespace) -> list[dict]:
    """Trains with one estimator, or goes on; returns the rows of its CSV."""
    import keras
    import numpy as np

    from tf_isvae import datasets, estimators, evaluation, files

    estimator = estimators.get(text)
    model_path, csv_path = paths(text, arguments)
    steps_per_call = largest_call(arguments.evaluate_every)
    model, rows = build(estimator, make_latent(arguments.categorical), arguments.seed, steps_per_call), []
    if model_path.exists() and csv_path.exists():
        stored = keras.models.load_model(model_path)
        rows = files.read_csv(csv_path)
        # The CSV is written last; a kill between the two leaves them at different steps.
        if rows and rows[-1]["step"] == int(stored.optimizer.iterations):
            model = stored
            model.steps_per_execution = steps_per_call
        else:
            rows = []
    step = int(model.optimizer.iterations)
    if step >= arguments.steps:
        return rows

    def load(split, **options):
        return datasets.load("mnist", split, seed=arguments.seed, data_dir=arguments.data_dir, **options)

    if arguments.categorical:
        train_split, train_images, dynamic, static = "train", 60_000, None, None
    else:
        train_split, train_images, dynamic, static = "train[:50000]", 50_000, "dynamic", "static"
    epochs = -(-arguments.steps * BATCH // train_images)
    train = load(train_split, batch_size=BATCH, binarize=dynamic, epochs=epochs, start=step)
    train_again = load(train_split, batch_size=1000, binarize=static)
    test_images = np.concatenate([batch.numpy() for batch in load("test", batch_size=1000, binarize=static)])
    samples = estimator.decoder_evaluations(model.latent)

    class Evaluate(keras.callbacks.Callback):
        seconds = rows[-1]["seconds"] if rows else 0.0

        def on_epoch_begin(self, epoch, logs=None):
            self.times = [time.perf_counter()]

        def on_train_batch_end(self, batch, logs=None):
            self.times.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            # The fastest tenth of the calls counts: what else the machine does at the time should not.
            milliseconds = 1e3 * np.quantile(np.diff(self.times), 0.1) / steps_per_call
            self.seconds += arguments.evaluate_every * milliseconds / 1e3
            step = int(model.optimizer.iterations)
            last = step >= arguments.steps
            row = {
                "step": step,
                "seconds": round(self.seconds, 2),
                "ms_per_step": milliseconds,
                "train_elbo": -model.evaluate(train_again, verbose=0, return_dict=True)["loss"],
                "test_bound": model.log_likelihood(test_images, samples, seed=0).mean(),
                # A tenth of the run's time otherwise.
                "test_bound_100": model.log_likelihood(test_images, 100, seed=0).mean() if last else float("nan"),
                "gradient_variance": evaluation.gradient_variance(model, test_images[:BATCH], draws=100),
            }
            rows.append(row)
            with files.atomic_write(model_path) as path:
                model.save(path)
            files.write_csv(csv_path, rows)
            print(f"{text:22} step {step:8}  train ELBO {row['train_elbo']:9.3f}  {self.seconds:8.1f} s", flush=True)

    model.fit(
        train,
        epochs=(arguments.steps - step) // arguments.evaluate_every,
        steps_per_epoch=arguments.evaluate_every,
        callbacks=[Evaluate()],
        verbose=0,
    )
    return rows


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


def main(arguments: argparse.Namespace) -> None:
    import keras
    import tensorflow as tf

    from tf_isvae import checks, estimators, files

    # These products are small: to run several operations at a time is faster than to split each over the cores.
    # TensorFlow refuses this if it has started already, for another program in this process: its threads stay.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.config.set_dtype_policy(arguments.precision)
    checks.integer("--seed", arguments.seed, 0)
    if arguments.evaluate_every < 1 or arguments.steps < 1 or arguments.steps % arguments.evaluate_every:
        raise ValueError(
            f"--steps {arguments.steps} and --evaluate-every {arguments.evaluate_every}: give positive numbers, "
            "the first a multiple of the second."
        )
    latent = make_latent(arguments.categorical)
    for text in arguments.estimators:  # a wrong name is refused before hours of the right ones
        estimators.get(text).check(latent.prior())
        check_reachable(text, arguments)
    try:
        arguments.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"--run-dir {arguments.run_dir} cannot be written: {error.strerror}; choose another."
        ) from None
    comparison = arguments.run_dir / f"comparison{variant(arguments)}"
    results = {}
    for text in arguments.estimators:
        results[text] = run(text, arguments)
        draw(results, comparison.with_suffix(".png"))
        with files.atomic_write(comparison.with_suffix(".md")) as path:
            path.write_text(table(results, latent) + "\n")
    print(f"\n{table(results, latent)}\n\nwritten: {comparison}.md, {comparison}.png and a CSV each")


if __name__ == "__main__":
    command_line.run(make_parser, main)
