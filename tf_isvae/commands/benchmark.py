"""Speed of training, encoding and of exported models, as fractions of this machine's own speed in the same run.

    python scripts/benchmark.py
    python scripts/benchmark.py --models fc_bvae
    python scripts/benchmark.py --export                               SavedModel and LiteRT instead of training

Each row is measured in a process of its own, which has done nothing before. For each model: images a second of
`model.fit`, through the input pipeline, on 8-bit images of MNIST's shape, and the share of the machine's rate of matrix
products, in the same precision, that the model's own multiplications reach; at batch 256 with the estimator of the
recipe `best`, at batch 2048 with the paper's. Then a step of the field's protocol (784-200-200-200 bits and the mirror
image, dynamically binarised, DisARM, batch 100); the codes of 1,000,000 images in an .npy file of 784 MB, which is
written into the folder for temporary files; and the help text of `train`, beside a Python that does nothing.

With --export, images per second of the SavedModel's `encode` beside the bare products with the weights (the same
matrix products and convolutions without bias, relu and codes), beside `model.predict` (which also decodes), and as a
share of the machine's matrix-product rate; then the time LiteRT takes to encode one image, and the sizes of the files.
"""

import argparse
import concurrent.futures
import functools
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tf_isvae import recipes
from tf_isvae.commands import command_line

# Timed epochs have about so many images each. They go on for so many seconds, and the fastest counts.
EPOCH = 10_240
SECONDS = 6.0
TO_ENCODE = 1_000_000
HELP_RUNS = 10
PROTOCOL = "protocol"  # in place of a model's name
DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16"}  # of matrix products, by precision


class Training(NamedTuple):
    """A row of the table: a training."""

    model: str
    batch_size: int
    estimator: str
    precision: str = "float32"

    def __str__(self):
        return f"{self.model}, batch {self.batch_size}, {self.estimator}, {self.precision}"


class Speed(NamedTuple):
    """What a row's own process found."""

    images: float  # a second
    multiplications: int  # of an image


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    models = ["fc_bvae", "cnn_bvae"]
    names = f"of {', '.join(recipes.MODELS)}; default {' '.join(models)}"
    parser.add_argument("--models", nargs="+", default=models, metavar="NAME", help=names)
    parser.add_argument("--export", action="store_true", default=False, help="exported models instead of training")
    return parser


# --- A process of its own for each figure.


def apart(function: Callable, *arguments):
    """What the function returns in a new process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as processes:
        return processes.submit(_quietly, function, *arguments).result()


def _quietly(function: Callable, *arguments):
    with command_line.quiet():
        import tf_isvae

        tf_isvae.import_all()
    import keras

    keras.config.disable_interactive_logging()  # no progress bar within a line
    return function(*arguments)


def matmul_rates(precisions: tuple[str, ...]) -> dict[str, float]:
    """Precision -> multiply-adds of matrix products per second, times 2."""
    from tf_isvae import speed

    return {precision: speed.matmul_rate(DTYPES[precision]) for precision in precisions}


def training_speed(row: Training, seconds: float) -> Speed:
    """Of `model.fit`, in the fastest of the epochs that begin within so many seconds."""
    import keras
    import numpy as np

    from tf_isvae import datasets, speed

    class Clock(keras.callbacks.Callback):
        best, end = math.inf, math.inf

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            now = time.perf_counter()
            if epoch == 0:  # it traces and warms up
                self.end = now + seconds
            else:
                self.best = min(self.best, now - self.began)
                self.model.stop_training = now > self.end

    if row.model == PROTOCOL and not speed.one_thread_an_operation():  # as in compare_estimators
        print("TensorFlow has started already: the field's protocol has its threads as they are.", file=sys.stderr)
    images = np.random.default_rng(0).integers(0, 256, (EPOCH // row.batch_size * row.batch_size, 28, 28, 1), np.uint8)
    binarize = "dynamic" if row.model == PROTOCOL else None
    data = datasets.load(images, batch_size=row.batch_size, seed=0, binarize=binarize)
    steps = int(data.cardinality())
    model = _protocol(row, steps) if row.model == PROTOCOL else _of_the_zoo(row)
    clock = Clock()
    model.fit(data.repeat(), epochs=10_000, steps_per_epoch=steps, callbacks=[clock], verbose=0)
    evaluations = model.estimator.decoder_evaluations(model.latent)
    return Speed(len(images) / clock.best, speed.training_multiplications(model, evaluations))


def _of_the_zoo(row: Training):
    from tf_isvae import optimizers, zoo
    from tf_isvae.precision import layers_in

    with layers_in(row.precision):
        model = zoo.build(row.model, estimator=row.estimator, seed=0)
    model.compile(optimizer=optimizers.Adam(1e-3))
    return model


def _protocol(row: Training, steps: int):
    """The networks of compare_estimators, trained as there: with many steps between two visits to Python."""
    import keras

    from tf_isvae import optimizers, speed
    from tf_isvae.latents import BernoulliLatent
    from tf_isvae.model import DiscreteVAE

    def hidden():
        for _ in range(2):
            yield keras.layers.Dense(200)
            yield keras.layers.LeakyReLU(negative_slope=0.3)

    shape = (28, 28, 1)
    encoder = [keras.Input(shape), keras.layers.Flatten(), *hidden(), keras.layers.Dense(200)]
    decoder = [keras.Input((200,)), *hidden(), keras.layers.Dense(784), keras.layers.Reshape(shape)]
    networks = keras.Sequential(encoder), BernoulliLatent(200), speed.SideBySide(decoder)
    model = DiscreteVAE(*networks, estimator=row.estimator, seed=0)
    model.compile(optimizer=optimizers.Adam(1e-3), steps_per_execution=steps)
    return model


def encoding_speed(model_name: str, file: Path) -> Speed:
    """Of `model.encode` on an .npy file that is mapped into memory."""
    import numpy as np

    from tf_isvae import datasets, speed, zoo

    model = zoo.build(model_name)
    images = np.load(file, mmap_mode="r")
    model.encode(datasets.load(np.asarray(images[:2048]), batch_size=1024))  # traces
    began = time.perf_counter()
    model.encode(datasets.load(images, batch_size=1024))
    return Speed(len(images) / (time.perf_counter() - began), sum(speed.multiplications(model.encoder)))


def write_images(file: Path, count: int) -> None:
    """An .npy file of 8-bit images of MNIST's shape: noise, a part of which is repeated."""
    import numpy as np

    images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, 28, 28, 1))
    part = np.random.default_rng(0).integers(0, 256, (min(count, 10_000), 28, 28, 1), np.uint8)
    for begin in range(0, count, len(part)):
        images[begin : begin + len(part)] = part[: count - begin]
    images.flush()


def seconds_of_help(runs: int) -> tuple[float, float]:
    """The shortest times of a help text, and of a Python that does nothing, which take turns."""
    show = "import sys, tf_isvae_command; sys.argv = ['tf_isvae', 'train', '--help']; tf_isvae_command.main()"
    programs = {"help": show, "nothing": "pass"}

    def call(program):
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)

    best = dict.fromkeys(programs, math.inf)
    for _ in range(runs):
        for name, program in programs.items():
            began = time.perf_counter()
            call(program)
            best[name] = min(best[name], time.perf_counter() - began)
    return best["help"], best["nothing"]


def bare_products(encoder):
    """A compiled function from images to the encoder's matrix products and convolutions alone."""
    import keras
    import tensorflow as tf

    def products(images):
        x = images
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.Dense):
                x = tf.matmul(x, layer.kernel)
            elif isinstance(layer, keras.layers.Conv2D):
                x = tf.nn.conv2d(x, layer.kernel, layer.strides, "SAME")
            elif isinstance(layer, keras.layers.Flatten):
                x = tf.reshape(x, (len(images), -1))
        return x

    return tf.function(products)


def best_seconds(calls: dict, seconds: float = 1.0) -> dict[str, float]:
    """The shortest time of each call by name; they take turns, so that all see the same machine."""
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    until = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < until:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def rows_of(models: list[str]) -> list[Training]:
    """The trainings of these models, and that of the protocol."""
    rows = []
    for name in models:
        settings = recipes.MODELS[name]
        best, paper = (
            settings.recipes[recipe].get("estimator", settings.estimator(settings.latent_dim))
            for recipe in ("best", "paper")
        )
        if best == "DisARM":  # the others have the batch of the paper's recipe
            rows.append(Training(name, 256, best))
        rows += [Training(name, 2048, paper, precision) for precision in recipes.PRECISIONS]
    return [*rows, Training(PROTOCOL, 100, "DisARM")]


def benchmark_training(arguments: argparse.Namespace) -> bool:
    """Prints the table; returns whether every row could be measured."""
    from tf_isvae.precision import multiplies_bfloat16

    precisions = recipes.PRECISIONS if multiplies_bfloat16() else ("float32",)
    trainings = rows_of(arguments.models)
    encoded = [name for name in arguments.models if name.startswith("fc_")][:1]
    steps = 3 + len(trainings) + len(encoded)
    found: dict = {}
    began, number = time.perf_counter(), 0

    def measure(what: str, function: Callable, *given, show: Callable[..., str] = str):
        """The function's result; None, and a line that says why, if it fails."""
        nonlocal number
        number += 1
        print(f"[{number}/{steps}] {what} ... ", end="", flush=True)
        try:
            result = function(*given)
        except Exception as error:
            print(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            return None
        print(f"{show(result)} ({time.perf_counter() - began:.0f} s so far)", flush=True)
        return result

    def of_rates(rates):
        return ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {DTYPES[name]}" for name, rate in rates.items())

    def of_speed(speed):
        return f"{speed.images:,.0f} images/s"

    rates = [measure("matrix products", apart, matmul_rates, precisions, show=of_rates)]
    for row in trainings:
        if row.precision in precisions:
            found[row] = measure(f"training {row}", apart, training_speed, row, SECONDS, show=of_speed)
        else:
            number += 1
            why = "not measured: no instructions for bfloat16, which TensorFlow then imitates"
            print(f"[{number}/{steps}] training {row} ... {why}", flush=True)
    for name in encoded:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "images.npy")
            what = f"{name}, codes of {TO_ENCODE:,} images from a file"
            write_images(file, TO_ENCODE)
            found[what] = measure(what, apart, encoding_speed, name, file, show=of_speed)
    seconds = measure("help of train, and a Python that does nothing", seconds_of_help, HELP_RUNS, show=_of_help)
    rates.append(measure("matrix products again", apart, matmul_rates, precisions, show=of_rates))

    best = {name: max(rate[name] for rate in rates if rate) for name in precisions if any(rates)}
    print("", *table(found, best), sep="\n")
    if seconds:
        print(f"\nThe help of `train` takes {_of_help(seconds)}.")
    return all([*found.values(), *rates, seconds])


def _of_help(seconds: tuple[float, float]) -> str:
    shown, nothing = seconds
    return f"{1e3 * shown:.0f} ms, {shown / nothing:.1f} times those of `python -c pass`"


def table(found: dict, rates: dict[str, float]) -> list[str]:
    """Lines of Markdown: rows that were measured, beside the rate of matrix products of their precision."""
    lines = [
        "| what | images/s | ms a step | GFLOP/s | matrix products | share | to float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, speed in found.items():
        if speed is None:
            lines.append(f"| {row} | failed | | | | | |")
            continue
        precision, step, ratio = "float32", "", ""
        if isinstance(row, Training):
            precision, step = row.precision, f"{1e3 * row.batch_size / speed.images:.2f}"
            other = found.get(row._replace(precision="float32"))
            ratio = f"{speed.images / other.images:.2f}" if other and precision != "float32" else ""
        reached, rate = 2 * speed.multiplications * speed.images, rates.get(precision, math.nan)
        lines.append(
            f"| {row} | {speed.images:,.0f} | {step} | {reached / 1e9:.0f} | {rate / 1e9:.0f} "
            f"| {reached / rate:.2f} | {ratio} |"
        )
    return lines


def benchmark_export(arguments: argparse.Namespace) -> None:
    import numpy as np

    images = np.random.default_rng(0).random((2048, 28, 28, 1), np.float32)
    saved_rows, litert_rows = [], []
    with tempfile.TemporaryDirectory() as folder, command_line.quiet():
        for name in arguments.models:
            saved, litert = benchmark_formats(name, images, Path(folder))
            saved_rows += saved
            litert_rows += litert
    print("| model | batch | images/s | to bare products | to model.predict | of the matrix-product rate |")
    print("|---|---|---|---|---|---|", *saved_rows, "", sep="\n")
    print("| model | kind | MB | ms, median | ms, 99th percentile |")
    print("|---|---|---|---|---|", *litert_rows, sep="\n")


def benchmark_formats(name: str, images, folder: Path) -> tuple[list[str], list[str]]:
    """The rows of one model in the two tables: of its SavedModel's speed, and of its files."""
    import numpy as np
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from tf_isvae import export, speed, zoo

    model = zoo.build(name)
    version = export.saved_model(model, folder / name)
    encode = tf.saved_model.load(str(version)).signatures["encode"]
    bare = bare_products(model.encoder)
    saved_rows = []
    for size in (1, 64, 2048):
        batch = tf.constant(images[:size])
        calls = {
            "encode": functools.partial(encode, images=batch),
            "bare": functools.partial(bare, batch),
            "predict": functools.partial(model.predict, batch, batch_size=size, verbose=0),
        }
        rates = {key: size / seconds for key, seconds in best_seconds(calls).items()}
        share = 2 * sum(speed.multiplications(model.encoder)) * rates["encode"] / speed.matmul_rate("float32")
        saved_rows.append(
            f"| {name} | {size} | {rates['encode']:.0f} | {rates['encode'] / rates['bare']:.2f} "
            f"| {rates['encode'] / rates['predict']:.1f} | {share:.2f} |"
        )
    size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
    litert_rows = [f"| {name} | SavedModel | {size / 1e6:.2f} | | |"]
    for kind, calibration in ((None, None), ("float16", None), ("int8", images[:200])):
        file = export.litert(model, folder / "model.tflite", kind, calibration)
        runner = Interpreter(str(file), num_threads=1).get_signature_runner("encode")
        seconds = []
        for i in range(2200):
            began = time.perf_counter()
            runner(images=images[i % 2048][None])
            seconds.append(time.perf_counter() - began)
        median, late = 1e3 * np.percentile(seconds[200:], (50, 99))
        megabytes = file.stat().st_size / 1e6
        litert_rows.append(f"| {name} | LiteRT {kind or 'float32'} | {megabytes:.2f} | {median:.3f} | {late:.3f} |")
    return saved_rows, litert_rows


def prepare(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments. Raises ValueError if one of them is not accepted."""
    for name in arguments.models:
        recipes.check_name(name)
    return arguments


def work(arguments: argparse.Namespace) -> None:
    if arguments.export:
        benchmark_export(arguments)
    elif not benchmark_training(arguments):
        raise OSError("not every row could be measured; the lines above say why")
