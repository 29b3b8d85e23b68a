"""Trains a model and writes a run directory: the model, its history, TensorBoard events, figures, final metrics.

    python scripts/train.py                                             FC BVAE on MNIST, the best recipe known
    python scripts/train.py --recipe paper                              the same with the paper's settings
    python scripts/train.py --model cnn_cvae --dataset fashion_mnist --epochs 30
    python scripts/train.py --dataset photos/ --image-size 32 --channels 3 --run-dir runs/photos
    python scripts/train.py --resume --run-dir runs/photos              goes on with a run that was stopped
    python scripts/train.py --strategy multi_worker --run-dir runs/big  on each worker: see docs/distributed.md

A recipe (tf_isvae.training.RECIPES) sets the estimator, the learning-rate schedule, the annealing of the KL weight, and
the defaults of the options below. The paper's: Adam 1e-3, batch 2048, 300 epochs, 50 bits or 100 categories.
"""

import argparse
import dataclasses

import command_line


def image_size(text: str) -> tuple[int, int]:
    """'32', or '32x48' for height x width."""
    sizes = [int(n) for n in text.split("x")]
    if len(sizes) > 2:
        raise ValueError(text)
    return sizes[0], sizes[-1]


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("--model", help="fc_bvae, fc_cvae, cnn_bvae or cnn_cvae")
    add("--dataset", help="mnist, fashion_mnist, digits, another TFDS name, an .npz file or a folder of images")
    add("--recipe", help="best (default) or paper: estimator, schedule and defaults of the options below")
    add("--estimator", help="a class of tf_isvae.estimators, such as ImportanceSampling or DisARM")
    add("--latent-dim", type=int, help="bits or categories")
    add("--epochs", type=int)
    add("--batch-size", type=int)
    add("--learning-rate", type=float)
    add("--seed", type=int, help="fixes initial weights, order of the data and noise")
    add("--precision", help="float32, mixed_bfloat16, or fastest: whichever this machine multiplies faster")
    add("--strategy", help="default; mirrored: every visible GPU; multi_worker: all workers of TF_CONFIG")
    add("--run-dir", help="what to write; default runs/<model>_<dataset>")
    add("--data-dir", help="where TFDS keeps its data sets; default TFDS_DATA_DIR, or ~/tensorflow_datasets")
    add("--image-size", type=image_size, help="resize to N or HxW")
    add("--channels", type=int, help="1: grey, 3: colour")
    add("--binarize", help="static or dynamic")
    add("--gradient-variance", action="store_true", help="record it after every epoch")
    add("--deterministic", action="store_true", help="only operations that give the same bits in every run")
    add("--resume", action="store_true", help="go on with the run in --run-dir, with its own settings")
    return parser


def main(arguments: argparse.Namespace) -> None:
    from tf_isvae import training

    settings = vars(arguments)
    resume = settings.pop("resume", False)
    if resume:
        config = dataclasses.replace(training.stored_config(settings.get("run_dir")), **settings)
    else:
        config = training.Config(**settings)
    metrics, run_dir = training.train(config, resume=resume)
    worker, workers = training.place(config)
    if worker:
        print(f"worker {worker} of {workers} is done; what it trained is written by worker 0, to {run_dir}")
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


if __name__ == "__main__":
    command_line.run(make_parser(), main)
