"""Chooses the size of the latent: trains one model of each size, and shows what each makes of its bits.

    python scripts/choose_size.py
    python scripts/choose_size.py --model fc_bvae --dataset fashion_mnist --sizes 8 16 32 50 64 128 --epochs 10
    python scripts/choose_size.py --model fc_cvae --sizes 10 30 100 300
    python scripts/choose_size.py --dataset photos/ --image-size 32

All are trained alike (recipe, epochs, seed), and measured on training images that are held out. A code of c bits holds
at most c bits of information, whatever the images are; the KL says how many of them an image takes. Chosen is the
smallest size whose KL takes at most 80 % of them (docs/guides/size.md says where that was checked). Longer trainings
use more bits. The same command again goes on with a run that was stopped, and trains the sizes that are missing.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from tf_isvae import recipes
from tf_isvae.commands import command_line

FULL = 0.8
RULE = f"the smallest size whose KL takes at most {FULL:.0%} of the bits that there are"


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("--model", default="fc_bvae", help=f"one of {', '.join(recipes.MODELS)}, with codes; default fc_bvae")
    add("--dataset", default="mnist", help="as scripts/train.py takes; default mnist")
    add("--sizes", nargs="+", metavar="SIZE", help="as --latent-dim of scripts/train.py; default 8 16 32 50 64 128")
    add("--epochs", default="20", metavar="N", help="of each training; default 20")
    add("--validation-split", default="0.1", metavar="SHARE", help="of the training images to measure on; default 0.1")
    add("--image-size", metavar="N or HxW", help="resize the images")
    add("--channels", metavar="N", help="make the images grey (1) or colour (3)")
    add("--seed", default="0", metavar="N", help="default 0")
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--run-dir", type=Path, help="what to write; default runs/sizes_<model>_<dataset>")
    return parser


class Size(NamedTuple):
    """What one size was found to be worth: nats per image, except the last four."""

    size: str
    neg_elbo: float
    neg_log_likelihood: float
    kl: float
    kl_bits: float
    bound: float
    """log2 of the number of codes."""
    mean_entropy: float
    """Bits, of the mean posterior."""
    active_units: int


def choose(sizes: list[Size]) -> Size:
    """The one that RULE names: of the smallest bound; if none has room to spare, the largest.

    Example:
        >>> from tf_isvae.commands.choose_size import Size, choose
        >>> small, large = (Size(str(c), 100, 80, 20, 28.0, c, c, c) for c in (32, 64))
        >>> choose([large, small]).size
        '64'
    """
    sizes = sorted(sizes, key=lambda size: size.bound)
    return next((size for size in sizes if size.kl_bits <= FULL * size.bound), sizes[-1])


def prepare(arguments: argparse.Namespace) -> tuple:
    """The settings of each run, the images to measure on, and the directory to write."""
    import numpy as np

    from tf_isvae import datasets, training, zoo
    from tf_isvae.training.config import check_same

    given = vars(arguments)
    dataset = Path(arguments.dataset).name.removesuffix(".npz")
    run_dir = given.pop("run_dir", Path("runs") / f"sizes_{arguments.model}_{dataset}")
    sizes = given.pop("sizes", ["8", "16", "32", "50", "64", "128"])
    given = training.read(given)
    configs = {}
    for size in sizes:
        config = training.Config(**given, **training.read({"latent_dim": size}), run_dir=str(run_dir / size))
        latent = zoo.MODELS[config.model].latent(config.latent_dim)
        if latent.num_codes is None:
            raise ValueError(
                f"--model is {config.model}, whose codes are real numbers without a bound, or have such beside them; "
                "choose another."
            )
        if size in configs:
            raise ValueError(f"--sizes has {size} twice; it must have each once.")
        if (run_dir / size / "config.json").exists():
            config = check_same(config)  # a run of other settings is refused before the others are trained
        configs[size] = config
    how = {name: getattr(config, name) for name in ("image_size", "channels", "data_dir", "validation_split")}
    held_out = datasets.load(config.dataset, "validation", batch_size=1000, validation_seed=config.seed, **how)
    return configs, np.concatenate(list(held_out)), run_dir


def work(prepared: tuple) -> None:
    from tf_isvae import files, training

    configs, held_out, run_dir = prepared
    found = []
    for size, config in configs.items():
        found.append(measure(size, training.finish(config, run_dir), held_out))
        draw(found, run_dir / "sizes.png")
        with files.atomic_write(run_dir / "sizes.md") as path:
            path.write_text(table(found) + "\n")
    print(f"\n{table(found)}\n\nchosen: {choose(found).size}, {RULE}")
    if choose(found).kl_bits > FULL * choose(found).bound:
        print("None has room to spare: try larger ones.")
    print(f"written: {run_dir}/sizes.md, {run_dir}/sizes.png and a run of each size")


def measure(size: str, trained, held_out) -> Size:
    """The figures of one trained model: those of its run, and how the images held out use its codes."""
    import math

    from tf_isvae import evaluation

    latent, metrics = trained.model.latent, trained.metrics
    found = evaluation.code_statistics(trained.model, held_out)
    return Size(
        size,
        metrics["val_loss"],
        -metrics["val_log_likelihood"],
        metrics["val_kl"],
        metrics["val_kl"] / math.log(2),
        math.log2(latent.num_codes),
        found["mean_entropy"],
        found["active_units"],
    )


def table(found: list[Size]) -> str:
    lines = [
        "| size | -ELBO | -E_q[ln p(x given z)] | KL | KL, bits | bound, bits | entropy of the mean posterior, bits "
        "| units in use |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        figures = [f"{value:.2f}" for value in row[1:4]] + [f"{value:.1f}" for value in row[4:7]]
        lines.append(f"| {' | '.join([row.size, *figures, str(row.active_units)])} |")
    return "\n".join(lines)


def draw(found: list[Size], path: Path) -> None:
    """-ELBO, its two parts, and what the bits are used for, against the size."""
    from matplotlib.figure import Figure

    from tf_isvae import plotting

    places, names = range(len(found)), [row.size for row in found]
    chosen = names.index(choose(found).size)
    panels = {
        "negative ELBO": ("nats per image", {"neg_elbo": ""}),
        "-E[ln p(x|z)]": ("nats per image", {"neg_log_likelihood": ""}),
        "KL divergence": ("nats per image", {"kl": ""}),
        "bits": ("bits", {"bound": "bound", "mean_entropy": "of the mean posterior", "kl_bits": "KL"}),
        "units in use": ("units", {"active_units": ""}),
    }
    figure = Figure(figsize=(13, 3.2), dpi=120, layout="constrained")
    for axes, (title, (unit, lines)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for (column, label), marker in zip(lines.items(), "so^", strict=False):
            axes.plot(places, [getattr(row, column) for row in found], marker=marker, markersize=4, label=label)
        axes.axvline(chosen, color="0.7", linestyle=":", zorder=0)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel(unit)
        axes.set_xlabel("size (dotted: chosen)")
        axes.set_xticks(places, names)
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    plotting.save(figure, path)
