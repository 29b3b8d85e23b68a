"""Gives a trained model a prior that learns, trains both together, and prints what that is worth.

    python scripts/learn_prior.py cnn_bvae_mnist                                              the prior alone
    python scripts/learn_prior.py fc_cvae_mnist --prior factorized --epochs 10
    python scripts/learn_prior.py fc_bvae_mnist --joint-epochs 40 --learning-rate 5e-4 --drop-pixels 0.2

The prior is fitted to all but the last sixth of the training images, 10,000 of MNIST (tf_isvae.fit_prior), so that
settings can be compared on those; then encoder, decoder and prior train together on all of them (DiscreteVAE.fit, Adam,
a cosine to 0). With --drop-pixels, the encoder sees a share of the pixels as 0 while it trains, and the others larger:
one that has learned its training images by heart encodes others badly.

With --held-out, that last sixth is trained on nowhere, and the figures are theirs: for tuning, no test
image is looked at. (A model that comes with the package has seen them in its own training.)

-ELBO in nats per image; seconds of the processor; like one class: of 1,000 samples of the prior, as in
tf_isvae.evaluation.share_like_one_class.
"""

import argparse
import time
from pathlib import Path

import tf_isvae_command  # noqa: F401  (the package then waits)
from tf_isvae import recipes
from tf_isvae.commands import command_line

LEARNED = [name for name in recipes.PRIORS if name != "uniform"]


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a trained model, a .keras file or a run directory")
    add("--prior", choices=LEARNED, default="autoregressive", help="default autoregressive")
    add("--epochs", type=int, default=40, help="passes over the codes that the prior is fitted to; default 40")
    add("--joint-epochs", type=int, default=0, help="then passes in which all train together; default 0")
    add("--learning-rate", type=float, default=3e-4, help="of these, at the beginning; default 3e-4")
    add(
        "--drop-pixels",
        type=float,
        default=0.0,
        help="the share of pixels hidden from the encoder; default 0",
    )
    add("--batch-size", type=int, default=256, help="default 256")
    add("--refine", type=int, default=0, help="also -ELBO after so many gradient steps on each image's own q")
    add("--first", type=int, default=1000, help="of so many images; default 1000")
    add("--held-out", action="store_true", default=False, help="figures of the last sixth of the training images")
    add("--dataset", default="mnist", help="as scripts/train.py takes; default mnist")
    add("--data-dir", default=None, help="where TFDS keeps its data sets")
    add("--to", help="a folder for the .keras file and its card; matrices are rounded to bfloat16")
    add("--figure", help="a PNG: samples of the prior before and after")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The model; the images to fit the prior to, and all to train on; those of the figures; images with labels."""
    from tf_isvae import checks, evaluation, priors, zoo
    from tf_isvae.export import card

    command_line.exact_float32()
    checks.integer("--epochs", arguments.epochs)
    for name in ("joint_epochs", "refine"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(arguments, name), 0)
    checks.integer("--first", arguments.first)
    checks.integer("--batch-size", arguments.batch_size)
    checks.positive("--learning-rate", arguments.learning_rate)
    if not 0 <= arguments.drop_pixels < 1:
        raise ValueError(f"--drop-pixels is {arguments.drop_pixels}; it must be a share of at least 0 and below 1.")
    if hasattr(arguments, "to"):
        card.check_folder(Path(arguments.to))
    model = zoo.load(arguments.model)
    priors.get(arguments.prior).build_for(model.latent)  # refuses a latent that it does not take

    def images(split):
        return evaluation.images_for(model, arguments.dataset, split, arguments.data_dir)[0]

    train = images("train")
    rest = len(train) - len(train) // 6
    shown = train[rest:] if arguments.held_out else images("test")
    near = evaluation.images_for(model, arguments.dataset, "train", arguments.data_dir, count=10_000)
    return model, (train[:rest], train[:rest] if arguments.held_out else train), shown, near, arguments


def work(prepared: tuple) -> None:
    import keras

    from tf_isvae import fit_prior

    before, (for_prior, for_all), shown, near, arguments = prepared
    keras.utils.set_random_seed(0)
    model = before.with_prior(arguments.prior)
    plain = before.generate(1000, seed=0)
    begin = time.process_time()
    fit_prior(model, for_prior, epochs=arguments.epochs, batch_size=arguments.batch_size, verbose=2)
    if arguments.joint_epochs:
        train_together(model, for_all, arguments)
    report(model, plain, shown, near, time.process_time() - begin, arguments)


def report(model, before, shown, near, seconds: float, arguments: argparse.Namespace) -> None:
    """Prints the figures, and writes what is asked for. `before`: samples of the model as it was."""
    from tf_isvae import evaluation, plotting, precision

    if hasattr(arguments, "to"):
        precision.round_matrices(model)
    figures = {}

    def show(name: str, value: float) -> None:
        figures[name] = value
        print(f"{name:28}{value:>14.6g}", flush=True)

    show("parameters of the prior", model.prior.count_params())
    show("seconds", round(seconds))
    show("-ELBO", -model.elbo(shown, seed=0).mean())
    after = model.generate(1000, seed=0)
    for name, samples in (("before", before), ("after", after)):
        if near[1] is not None:
            show(f"like one class, {name}", evaluation.share_like_one_class(samples, *near))
    if arguments.refine:
        first = shown[: arguments.first]
        show(f"-ELBO of the first {len(first)}", -model.elbo(first, seed=0).mean())
        show("the same, refined", -model.elbo(first, seed=0, refine=arguments.refine).mean())
    if hasattr(arguments, "figure"):
        plotting.image_rows({"before": before[:20], "after": after[:20]}, arguments.figure)
    if hasattr(arguments, "to"):
        write(model, shown, figures, arguments)


def train_together(model, images, arguments):
    """Trains the networks of the model and its prior."""
    import keras
    import tensorflow as tf

    from tf_isvae import DiscreteVAE, optimizers

    encoder = model.encoder
    if arguments.drop_pixels:
        hidden = keras.layers.Dropout(arguments.drop_pixels, seed=1)
        encoder = keras.Sequential([keras.Input(model.image_shape), hidden, encoder])
    parts = {"estimator": model.estimator, "likelihood": model.likelihood, "prior": model.prior, "seed": 0}
    trainer = DiscreteVAE(encoder, model.latent, model.decoder, **parts)
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=0).batch(arguments.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, len(data) * arguments.joint_epochs)
    trainer.compile(optimizer=optimizers.Adam(rate))
    trainer.fit(data.prefetch(2), epochs=arguments.joint_epochs, verbose=2)


def write(model, images, figures: dict, arguments: argparse.Namespace) -> None:
    """The .keras file and its card, in the folder --to."""
    import shlex
    import sys
    import tempfile

    from tf_isvae import keras_files
    from tf_isvae.export import card, picture, signatures

    folder = Path(arguments.to)
    folder.mkdir(parents=True, exist_ok=True)
    keras_files.write(model, folder / f"{folder.resolve().name}.keras")
    ln_p = model.log_likelihood(images, 100, seed=0)
    metrics = {
        "test_neg_elbo": float(figures["-ELBO"]),
        "test_ln_p": float(ln_p.mean()),
        "test_ln_p_kind": "exact" if model.latent.enumerable else "bound of 100 samples",
        "first_1000_neg_elbo": float(-model.elbo(images[:1000], seed=0).mean()),
        "first_1000_ln_p": float(ln_p[:1000].mean()),
    }
    if "like one class, after" in figures:
        metrics["samples_like_one_class"] = float(figures["like one class, after"])
    with tempfile.TemporaryDirectory() as nothing:
        graphs = signatures.signatures(model)
        description = card.describe(model, graphs, Path(nothing), None, metrics)
    command = shlex.join(["python", "scripts/learn_prior.py", *sys.argv[1:]])
    description["training"] = {"command": command, "config": {"dataset": arguments.dataset, "binarize": None}}
    card.write(folder, 1, description, picture.draw(model, graphs, images))


if __name__ == "__main__":
    command_line.run(make_parser, prepare, work)
