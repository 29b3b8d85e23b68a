"""Trains a model and writes a run directory: the model, its history, TensorBoard events, figures, final metrics.

    python scripts/train.py                                             FC BVAE on MNIST, the best recipe known
    python scripts/train.py --recipe paper                              the same with the paper's settings
    python scripts/train.py --recipe hash --latent-dim 32               codes for search
    python scripts/train.py --model cnn_cvae --dataset fashion_mnist --epochs 30
    python scripts/train.py --dataset photos/ --image-size 32 --channels 3 --validation-split 0.1 --run-dir runs/photos
    python scripts/train.py --resume --run-dir runs/photos              goes on with a run that was stopped
    python scripts/train.py --strategy multi_worker --run-dir runs/big  on each worker: see docs/distributed.md

A recipe (tf_isvae.training.RECIPES) sets the options that are not given, from --estimator to --precision: `best` is the
best known, `paper` the paper's own, and the codes of `hash` find more images of the same class (docs/guides/search.md).
"""

import argparse
import dataclasses
from collections.abc import Iterable

from tf_isvae import recipes, training
from tf_isvae.commands import command_line


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    for field in dataclasses.fields(training.Config):
        kind, default = field.metadata["kind"], _default(field)
        text = (
            field.metadata["help"]
            .replace("; None leaves", "; the default leaves")
            .removesuffix("; None is the paper's")
        )
        text += f"; default {default}" if default else ""
        form = {"action": argparse.BooleanOptionalAction} if kind.is_flag else {"metavar": kind.form}
        parser.add_argument(training.option(field.name), help=text, **form)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir, with its own settings")
    return parser


def _default(field: dataclasses.Field) -> str:
    """What holds if the option is not given, for each model and recipe; empty if the field's own text says it."""
    if field.default is not None:
        return _written(field, field.default)
    texts = [_of_recipe(field, "best", recipes.MODELS)]
    for recipe, models in training.RECIPES.items():
        text = _of_recipe(field, recipe, models)
        if text and text != _of_recipe(field, "best", models):
            texts.append(f"with --recipe {recipe} {text}")
    return "; ".join(filter(None, texts))


def _of_recipe(field: dataclasses.Field, recipe: str, models: Iterable[str]) -> str:
    """The setting of these models by a recipe: one text if all have it, or each with the models that have it."""
    values = {}  # as written -> the models that have it
    for model in models:
        row = {"latent_dim": recipes.MODELS[model].latent_dim, **training.RECIPES[recipe][model]}
        if row.get(field.name) is not None:
            values.setdefault(_written(field, row[field.name]), []).append(model)
    if list(values.values()) == [list(models)]:
        return next(iter(values))
    return ", ".join(f"{value} ({', '.join(having)})" for value, having in values.items())


def _written(field: dataclasses.Field, value) -> str:
    kind = field.metadata["kind"]
    return ("yes" if value else "no") if kind.is_flag else kind.write(value)


def announce(arguments: argparse.Namespace) -> None:
    """Says at once what was asked for; the numbers follow when the data has been loaded."""
    given = {field.name: field.default for field in dataclasses.fields(training.Config)} | vars(arguments)
    what = f"{given['model']} on {given['dataset']}, recipe {given['recipe']}"
    if "resume" in arguments:
        what = f"resuming {given['run_dir']}"
    print(f"{what}: starting TensorFlow", flush=True)


def prepare(arguments: argparse.Namespace):
    """The run, ready to train. It leaves no trace if it is refused."""
    given = training.read(vars(arguments))
    resume = given.pop("resume", False)
    if resume:
        config = dataclasses.replace(training.stored_config(given.get("run_dir")), **given)
    else:
        config = training.Config(**given)
    return training.prepare(config, resume)


def work(run) -> None:
    with run:
        metrics = run.train()
    config, run_dir, workers = run.config, run.directory.path, run.workers
    if not workers.is_chief:
        print(
            f"worker {workers.index} of {workers.count} is done; what it trained is written by worker 0, to {run_dir}"
        )
        return
    prefix = "val_" if "val_loss" in metrics else ""
    split = ("held-out" if config.validation_split else "test") if prefix else "train"
    print(f"\n{config.model} on {config.dataset} after {metrics['epochs']} epochs, {split} images, nats per image:")
    for text, name in (("-ELBO", "loss"), ("log-likelihood E_q[ln p(x|z)]", "log_likelihood"), ("KL(q || p)", "kl")):
        print(f"  {text:32}{metrics[prefix + name]:10.2f}")
    if (bits := metrics.get(f"{prefix}bits_per_dimension")) is not None:
        print(f"  {'-ELBO in bits per dimension':32}{bits:10.3f}")
    print("\nwritten:")
    for path in sorted(run_dir.glob("*")):
        for file in sorted(path.glob("*.png")) or [path]:
            print(f"  {file}{'/' if file.is_dir() else ''}")
    print("\nnext:")
    if prefix:  # without images that were held out there is nothing to evaluate on
        print(f"  {command_line.typed('evaluate', run_dir)}")
    print(f"  {command_line.typed('export', run_dir, '--litert', 'float32')}")
    print(f"  {command_line.typed_tensorboard(run_dir / 'tensorboard')}")
