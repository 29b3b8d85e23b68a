"""Trains a model and writes a run directory: the model, its history, TensorBoard events, figures, final metrics.

    python scripts/train.py                                             FC BVAE on MNIST, the best recipe known
    python scripts/train.py --recipe paper                              the same with the paper's settings
    python scripts/train.py --model cnn_cvae --dataset fashion_mnist --epochs 30
    python scripts/train.py --dataset photos/ --image-size 32 --channels 3 --run-dir runs/photos
    python scripts/train.py --resume --run-dir runs/photos              goes on with a run that was stopped
    python scripts/train.py --strategy multi_worker --run-dir runs/big  on each worker: see docs/distributed.md

A recipe (tf_isvae.training.RECIPES) sets the options that are not given, from --estimator to --precision. The paper's:
Adam 1e-3, batch 2048, 300 epochs, 50 bits or 100 categories.
"""

import argparse
import dataclasses

from tf_isvae.commands import command_line


def make_parser() -> command_line.Parser:
    with command_line.quiet():
        from tf_isvae import training

    parser = command_line.Parser(__doc__)
    for field in dataclasses.fields(training.Config):
        action = argparse.BooleanOptionalAction if field.metadata["kind"].is_flag else "store"
        parser.add_argument(training.option(field.name), help=field.metadata["help"], action=action)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir, with its own settings")
    return parser


def prepare(arguments: argparse.Namespace):
    """The run, ready to train. It leaves no trace if it is refused."""
    from tf_isvae import training

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
    split = "test" if "val_loss" in metrics else "train"
    prefix = "val_" if split == "test" else ""
    print(f"\n{config.model} on {config.dataset} after {metrics['epochs']} epochs, {split} images, nats per image:")
    for text, name in (("-ELBO", "loss"), ("log-likelihood E_q[ln p(x|z)]", "log_likelihood"), ("KL(q || p)", "kl")):
        print(f"  {text:32}{metrics[prefix + name]:10.2f}")
    print("\nwritten:")
    for path in sorted(run_dir.glob("*")):
        for file in sorted(path.glob("*.png")) or [path]:
            print(f"  {file}{'/' if file.is_dir() else ''}")
