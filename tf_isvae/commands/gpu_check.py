"""Trains the models on every GPU, alone and mirrored, beside the CPU, and prints a table to paste into an issue.

    python scripts/gpu_check.py
    python scripts/gpu_check.py --models fc_bvae cnn_bvae --steps 20

Without a GPU it does the same with logical devices of the CPU. docs/distributed.md says what is compared, and how the
bounds come about. Exit status 1 if something is out of its bounds.
"""

import argparse
import functools
import math
import time
from typing import NamedTuple

from tf_isvae import recipes
from tf_isvae.commands import command_line

SEEDS = 5  # trainings on the CPU, each with another order of the images
# Student's t with SEEDS - 1 degrees of freedom: beyond it in 1 of 10,000 comparisons if all is right.
STUDENT = 15.54
# How often the size of its random walk an error may be; see docs/distributed.md.
ALLOWANCE = 4.0
# So many hidden units may change sides by chance if fewer than one is expected to.
FLIPS = 4
LOGICAL_DEVICES = 2


class Arithmetic(NamedTuple):
    """What matrix products are computed in."""

    name: str
    policy: str  # of Keras
    dtype: str  # of the operands
    tensor_float_32: bool
    roundoff: float  # of one operand, relative


ARITHMETICS = (
    Arithmetic("float32", "float32", "float32", False, 2**-24),
    Arithmetic("float32, TF32", "float32", "float32", True, 2**-11),
    Arithmetic("mixed_bfloat16", "mixed_bfloat16", "bfloat16", False, 2**-8),
)


class Place(NamedTuple):
    """The devices of one row."""

    name: str
    devices: tuple[str, ...]


class Bounds(NamedTuple):
    """Of relative errors, root mean squares: what rounding explains."""

    eta: float
    loss: float
    gradient: float


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    models = ["fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae"]
    add("--models", nargs="+", default=models, metavar="NAME", help=f"default {' '.join(models)}")
    add("--steps", type=int, default=100, metavar="N", help="of each training; default 100")
    add("--batch-size", type=int, default=256, metavar="N", help="images in such a step; default 256")
    add("--timed-steps", type=int, default=None, metavar="N", help="default 100 on GPUs, 5 on a CPU")
    add("--timed-batch-size", type=int, default=2048, metavar="N", help="images in a timed step; default 2048")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The arguments, the places and the arithmetics, and a line for each arithmetic that is left out."""
    import tensorflow as tf

    from tf_isvae import checks

    for name in arguments.models:
        recipes.check_name(name)
    gpus = tf.config.list_physical_devices("GPU")
    if arguments.timed_steps is None:
        arguments.timed_steps = 100 if gpus else 5
    for name in ("steps", "batch_size", "timed_steps", "timed_batch_size"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(arguments, name))
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus:
            (cpu,) = tf.config.list_physical_devices("CPU")
            parts = [tf.config.LogicalDeviceConfiguration()] * LOGICAL_DEVICES
            tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError:
        pass  # TensorFlow has started, for another program in this process: the devices stay as they are
    devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
    names = tuple(device.name.removeprefix("/device:") for device in devices)
    places = [Place(name, (name,)) for name in names] + [Place(f"mirrored over {len(names)}", names)]
    arithmetics, left_out = [], []
    for arithmetic in ARITHMETICS:
        reason = _missing(arithmetic, gpus)
        (left_out if reason else arithmetics).append(
            f"{arithmetic.name} is left out: {reason}" if reason else arithmetic
        )
    return arguments, places, arithmetics, left_out


def _missing(arithmetic: Arithmetic, gpus: list) -> str | None:
    """Why the devices do not compute so."""
    import tensorflow as tf

    from tf_isvae import precision

    if arithmetic.tensor_float_32 or (gpus and arithmetic.dtype == "bfloat16"):
        if not gpus:
            return "a CPU has no TF32."
        for gpu in gpus:
            capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
            if capability < (8, 0):  # Ampere, the first to have either
                return f"{gpu.name} has compute capability {capability[0]}.{capability[1]}, and it takes 8.0."
    elif arithmetic.dtype == "bfloat16" and not precision.multiplies_bfloat16():
        return "this processor has no instructions for it (or ONEDNN_MAX_CPU_ISA keeps it from them)."
    return None


def bounds(model, arithmetic: Arithmetic, batch_size: int) -> Bounds:
    """What rounding explains of the difference between two devices, one of which computes in float32.

    docs/distributed.md derives them.
    """
    encoder, decoder = _weighted(model.encoder), _weighted(model.decoder)
    layers = [*encoder, *decoder]
    grids = [math.prod(layer.output.shape[1:-1]) for layer in layers]
    # The terms of the longest sum of a forward pass, and of a gradient with respect to weights.
    inputs = max(math.prod(layer.kernel.shape[:-1]) for layer in layers)
    rows = batch_size * max(grids)

    def walk(stages, longest):
        return math.sqrt(stages * (arithmetic.roundoff**2 + 2 * longest * 2**-48))

    hidden = [layer for layer in layers if layer is not encoder[-1] and layer is not decoder[-1]]
    fewest = batch_size * min(math.prod(layer.output.shape[1:]) for layer in hidden)
    kinks = 2 * (len(hidden) * walk(len(layers), inputs) / math.pi + FLIPS / fewest)
    gradient = math.sqrt((ALLOWANCE * walk(2 * len(layers), max(inputs, rows))) ** 2 + kinks)
    return Bounds(ALLOWANCE * walk(len(encoder), inputs), ALLOWANCE * walk(len(layers), inputs), gradient)


def _weighted(network) -> list:
    return [layer for layer in network.layers if hasattr(layer, "kernel")]


def terms(model, images, z, weights, global_batch: int):
    """eta (n, units), codes, -ELBO (n,) and the gradient of the mean loss over the global batch, at samples z.

    Args:
        z: (2, n, units), samples of q(z|x), which devices that round a probability otherwise would draw otherwise.
        weights: (2, n), nats, of the scores; likewise, since the difference of two ln p(x|z) loses digits.
    """
    import tensorflow as tf

    from tf_isvae import posteriors

    with tf.GradientTape() as tape:
        eta = tf.cast(model.encoder(images, training=True), tf.float32)
        q = posteriors.of(model.latent.posterior(eta))
        log_p = tf.reduce_mean(model.log_likelihood_of(images, training=True)(z), axis=0)
        negative_elbo = model.prior.kl(q) - log_p
        loss = tf.reduce_sum(negative_elbo - q.score_surrogate(z, weights)) / global_batch
    gradient = tape.gradient(loss, model.trainable_variables)
    gradient = tf.concat([tf.reshape(tf.cast(part, tf.float32), [-1]) for part in gradient], 0)
    gradient = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradient)
    return eta, model.latent.codes(eta), negative_elbo, gradient


def terms_at(strategy, model, images, z, weights) -> list:
    """`terms` of the whole batch, each replica with its part of it."""
    import numpy as np
    import tensorflow as tf

    replicas, n = strategy.num_replicas_in_sync, len(images)

    def part(array, axis):
        shares = np.array_split(array, replicas, axis)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(shares[context.replica_id_in_sync_group])
        )

    parts = part(images, 0), part(z, 1), part(weights, 1)
    call = tf.function(lambda *parts: strategy.run(lambda *mine: terms(model, *mine, n), args=parts))
    eta, codes, negative_elbo, gradient = (strategy.experimental_local_results(value) for value in call(*parts))
    # The sum of the gradients is that of every replica; the last one shows what it got from the others.
    return [np.concatenate([p.numpy() for p in some]) for some in (eta, codes, negative_elbo)] + [gradient[-1].numpy()]


class Check:
    """One model, with the CPU's figures that the devices' are held against."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        import numpy as np

        from tf_isvae import datasets

        self.name, self.arguments = name, arguments
        self.digits = np.concatenate([b.numpy() for b in datasets.load("digits", image_size=28, batch_size=500)])
        self.images = self.digits[: arguments.batch_size]
        self.reference = self.build(Place("CPU:0", ("CPU:0",)), ARITHMETICS[0])
        self.initial = self.reference[1].get_weights()
        self.fresh = [variable.numpy() for variable in self.reference[1].optimizer.variables]
        self.losses = [self.train(*self.reference, seed) for seed in range(SEEDS)]

    def build(self, place: Place, arithmetic: Arithmetic) -> tuple:
        """The strategy and the model, with the same initial weights everywhere."""
        import tensorflow as tf

        from tf_isvae import optimizers, precision, zoo

        tf.config.experimental.enable_tensor_float_32_execution(arithmetic.tensor_float_32)
        strategy = tf.distribute.MirroredStrategy(place.devices)
        with strategy.scope(), precision.layers_in(arithmetic.policy):
            model = zoo.build(self.name, seed=0)
            model.compile(optimizer=optimizers.Adam(1e-3))
            model.optimizer.build(model.trainable_variables)
        if hasattr(self, "initial"):
            model.set_weights(self.initial)
        return strategy, model

    def train(self, strategy, model, seed: int = 0) -> float:
        """-ELBO of the digits, nats per image, after the training, from the initial weights."""
        from tf_isvae import datasets

        steps, batch_size = self.arguments.steps, self.arguments.batch_size
        model.set_weights(self.initial)
        for variable, value in zip(model.optimizer.variables, self.fresh, strict=True):
            variable.assign(value)
        per_epoch = math.ceil(len(self.digits) / batch_size)
        data = datasets.load(self.digits, batch_size=batch_size, seed=seed, epochs=math.ceil(steps / per_epoch))
        model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0)
        return model.evaluate(self.digits, batch_size=256, verbose=0, return_dict=True)["loss"]

    def compare(self, place: Place, arithmetic: Arithmetic) -> tuple[list[str], list[str]]:
        """The cells of a row, and what is out of its bounds."""
        import numpy as np
        import tensorflow as tf

        from tf_isvae import speed

        strategy, model = self.build(place, arithmetic)
        trained = self.train(strategy, model)
        here, there = self.reference[1], self.reference[0]
        here.set_weights(model.get_weights())
        q = here.latent.posterior(tf.constant(here.encoder(self.images)))
        z = q.sample(2, seed=(0, 1)).numpy()
        log_p = here.log_likelihood_of(tf.constant(self.images))(tf.constant(z)).numpy()
        weights = log_p - log_p[::-1]
        expected, given = (terms_at(*pair, self.images, z, weights) for pair in ((there, here), (strategy, model)))
        limits = bounds(model, arithmetic, len(self.images))
        cells, wrong = [], []
        for what, limit, a, b in zip(
            Bounds._fields, limits, (expected[0], *expected[2:]), (given[0], *given[2:]), strict=True
        ):
            error = float(
                np.sqrt(np.mean(np.square(b - a, dtype=np.float64)) / np.mean(np.square(a, dtype=np.float64)))
            )
            cells.append(f"{error:.0e} of {limit:.0e}")
            if not error <= limit:
                wrong.append(f"{what} {error:.1e}, bound {limit:.1e}")
        cells.insert(1, f"{np.mean(expected[1] != given[1]):.1e}")
        if (here.latent.codes(given[0]).numpy() != given[1]).any():
            wrong.append("the codes are not those of the eta that they were made from")
        mean, spread = float(np.mean(self.losses)), float(np.std(self.losses, ddof=1))
        limit = STUDENT * spread * math.sqrt(1 + 1 / SEEDS)
        cells.append(f"{trained:.1f}: {trained - mean:+.1f} of {limit:.1f}")
        if not abs(trained - mean) <= limit:
            wrong.append(f"-ELBO after training {trained:.1f}, on the CPU {mean:.1f}, bound {limit:.1f}")
        plain, compiled, rate = self.time(model, place, arithmetic)
        share = 2 * speed.training_multiplications(model) * plain / rate
        speeds = f"{plain:,.0f}", f"{compiled:,.0f}" if compiled else "", f"{rate / 1e9:,.0f}", f"{share:.2f}"
        return [*cells, *speeds], wrong

    def time(self, model, place: Place, arithmetic: Arithmetic) -> tuple[float, float | None, float]:
        """Images a second, also with XLA if it is one device, and the devices' multiply-adds a second, times 2."""
        import tensorflow as tf

        from tf_isvae import optimizers, precision, zoo

        compiled, on_gpus = None, "GPU" in place.devices[0]
        plain = self.images_per_second(model)
        rate = products_per_second(place.devices[0], arithmetic)
        # The logical devices of a CPU share its processors.
        rate *= len(place.devices) if on_gpus else 1
        with tf.device(place.devices[0]):
            if len(place.devices) == 1:
                with precision.layers_in(arithmetic.policy):
                    model = zoo.build(self.name, seed=0)
                model.compile(optimizer=optimizers.Adam(1e-3), jit_compile=True)
                compiled = self.images_per_second(model)
        return plain, compiled, rate

    def images_per_second(self, model) -> float:
        """Through `fit` with the paper's estimator, in the faster of two epochs."""
        import keras
        import numpy as np

        from tf_isvae import datasets, estimators

        class Clock(keras.callbacks.Callback):
            best = math.inf

            def on_epoch_begin(self, epoch, logs=None):
                self.began = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                if epoch:  # the first one traces and warms up
                    self.best = min(self.best, time.perf_counter() - self.began)

        steps, batch_size = self.arguments.timed_steps, self.arguments.timed_batch_size
        images = np.random.default_rng(0).integers(0, 256, (4 * batch_size, 28, 28, 1), np.uint8)
        model.estimator = estimators.ImportanceSampling()
        model.make_train_function(force=True)
        clock = Clock()
        data = datasets.load(images, batch_size=batch_size, seed=0, epochs=math.ceil(3 * steps / 4))
        model.fit(data, epochs=3, steps_per_epoch=steps, callbacks=[clock], verbose=0)
        return steps * batch_size / clock.best


COLUMNS = (
    *("model", "arithmetic", "where", "eta", "codes that differ", "-ELBO", "gradient", "-ELBO after training"),
    *("images/s", "with XLA", "matrix products, GFLOP/s", "share"),
)


@functools.cache
def products_per_second(device: str, arithmetic: Arithmetic) -> float:
    """Multiply-adds a second, times 2, of large matrix products: once for all models. TF32 is as `build` has set it."""
    import tensorflow as tf

    from tf_isvae import speed

    with tf.device(device):
        return speed.matmul_rate(arithmetic.dtype, 8192 if "GPU" in device else 1024)


def pipeline_rate(batch_size: int, **settings) -> float:
    """Images a second that `datasets` gives in a second, without a model: of 60,000, 28x28x1, that lie in memory."""
    import numpy as np

    from tf_isvae import datasets

    images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    batches = iter(datasets.load(images, batch_size=batch_size, seed=0, epochs=1_000, **settings))
    next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + 1:
        count += len(next(batches))
    return count / (time.perf_counter() - began)


def header() -> list[str]:
    """What must stand above the table for somebody else to read it."""
    import platform

    import keras
    import tensorflow as tf

    import tf_isvae

    lines = [
        f"tf_isvae {tf_isvae.__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    ]
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        lines.append(f"{gpu.name}: {details.get('device_name')}, capability {details.get('compute_capability')}")
    if not gpus:
        lines.append(f"no GPU: {len(tf.config.list_logical_devices('CPU'))} logical devices of the CPU in its place")
    return lines


def work(prepared: tuple) -> None:
    arguments, places, arithmetics, left_out = prepared
    print(*header(), *left_out, sep="\n")
    print(f"`datasets` alone: {pipeline_rate(arguments.timed_batch_size):,.0f} images/s\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    failed = []
    for name in arguments.models:
        with command_line.quiet():
            check = Check(name, arguments)
        for arithmetic in arithmetics:
            for place in places:
                with command_line.quiet():
                    cells, wrong = check.compare(place, arithmetic)
                print(f"| {' | '.join((name, arithmetic.name, place.name, *cells))} |", flush=True)
                failed += [f"{name}, {arithmetic.name}, {place.name}: {what}" for what in wrong]
    print()
    if failed:
        print(*failed, sep="\n")
        raise FloatingPointError(f"{len(failed)} figures are out of their bounds, and are listed above")
    print("every figure lies within its bound")
