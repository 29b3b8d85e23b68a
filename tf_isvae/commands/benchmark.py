"""Speed of training and of exported models, as fractions of this machine's own speed measured in the same run.

    python scripts/benchmark.py
    python scripts/benchmark.py --models fc_bvae --batch-size 256
    python scripts/benchmark.py --export                               SavedModel and LiteRT instead of training

For each model and precision: images per second of `model.fit` (the paper's estimator, images of MNIST's shape, through
the input pipeline), and the share of the machine's matrix-product rate in that precision that the model's own
multiplications reach.

With --export, images per second of the SavedModel's `encode` beside the bare products with the weights (the same
matrix products and convolutions without bias, relu and codes), beside `model.predict` (which also decodes), and as a
share of the machine's matrix-product rate; then the time LiteRT takes to encode one image, and the sizes of the files.
"""

import argparse
import functools
import math
import tempfile
import time
from pathlib import Path

from tf_isvae import recipes
from tf_isvae.commands import command_line

IMAGES = 60_000
PRECISIONS = {"float32": "float32", "mixed_bfloat16": "bfloat16"}


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    models = ["fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae"]
    names = f"of {', '.join(recipes.MODELS)}; default {' '.join(models)}"
    parser.add_argument("--models", nargs="+", default=models, metavar="NAME", help=names)
    parser.add_argument("--batch-size", type=int, default=2048, metavar="N", help="images in a step; default 2048")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps of one timed epoch; default 30")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="of which the fastest counts; default 5")
    parser.add_argument("--export", action="store_true", default=False, help="exported models instead of training")
    return parser


def images_per_second(model, arguments: argparse.Namespace) -> float:
    """Of `model.fit`, in the fastest of --epochs epochs of --steps steps."""
    import keras
    import numpy as np

    from tf_isvae import datasets

    class Clock(keras.callbacks.Callback):
        best = math.inf

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            if epoch:  # the first one traces and warms up
                self.best = min(self.best, time.perf_counter() - self.began)

    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    epochs = arguments.epochs + 1
    per_epoch = math.ceil(len(images) / arguments.batch_size)
    data = datasets.load(
        images, batch_size=arguments.batch_size, seed=0, epochs=math.ceil(epochs * arguments.steps / per_epoch)
    )
    # Full batches only, so that a step always is the same amount of work.
    data = data.filter(lambda batch: len(batch) == arguments.batch_size).repeat()
    clock = Clock()
    model.fit(data, epochs=epochs, steps_per_epoch=arguments.steps, callbacks=[clock], verbose=0)
    return arguments.steps * arguments.batch_size / clock.best


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


def benchmark_training(arguments: argparse.Namespace) -> None:
    import keras

    from tf_isvae import estimators, optimizers, speed, zoo

    print("| model | precision | images/s | ms/step | GFLOP/s | matrix products | fraction | to float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        float32_speed = None
        for precision, dtype in PRECISIONS.items():
            keras.config.set_dtype_policy(precision)
            model = zoo.build(name, estimator=estimators.ImportanceSampling())
            model.compile(optimizer=optimizers.Adam(1e-3))
            before = speed.matmul_rate(dtype)
            images = images_per_second(model, arguments)
            rate = max(before, speed.matmul_rate(dtype))
            reached = 2 * speed.training_multiplications(model) * images
            milliseconds = 1e3 * arguments.batch_size / images
            float32_speed = float32_speed or images
            print(
                f"| {name} | {precision} | {images:.0f} | {milliseconds:.1f} | {reached / 1e9:.0f} "
                f"| {rate / 1e9:.0f} | {reached / rate:.2f} | {images / float32_speed:.2f} |",
                flush=True,
            )


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
    from tf_isvae import checks

    for name in arguments.models:
        recipes.check_name(name)
    for name in ("batch_size", "steps", "epochs"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(arguments, name))
    if arguments.batch_size > IMAGES:
        raise ValueError(
            f"--batch-size is {arguments.batch_size}; it must be at most {IMAGES}, the images of an epoch."
        )
    return arguments


def work(arguments: argparse.Namespace) -> None:
    (benchmark_export if arguments.export else benchmark_training)(arguments)
