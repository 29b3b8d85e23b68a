"""Evaluates a trained model on the test images of a data set, or those that its run held out, and prints the figures.

    python scripts/evaluate.py runs/fc_bvae_mnist
    python scripts/evaluate.py runs/fc_bvae_mnist --to runs/fc_bvae_mnist/evaluation.json    for the card of an export
    python scripts/evaluate.py fc_bvae_mnist                 a trained model of the zoo, on the test images of its data
    python scripts/evaluate.py model.keras --dataset fashion_mnist
    python scripts/evaluate.py fc_cvae_mnist --clusters --picture templates.png

-ELBO, ln p(x) (exact if the codes can be enumerated, otherwise the bound of 100 samples), use of the codes, gradient
variance; and if the data has labels, how well categories match them, or how well bits find images of the same label,
and how many samples of the prior look like one class. tf_isvae.evaluation.evaluate says what each figure is.

--clusters measures categories as clusters instead, beside k-means on pixels (and, with --beside, on the means of
Gaussian VAEs), of as many clusters, five starts: ACC (Hungarian matching), NMI, ARI, purity.
"""

import argparse
import sys
from pathlib import Path

from tf_isvae.commands import command_line

# What is printed of each figure of evaluation.evaluate; the file of --to has their names.
WORDS = {
    "test_images": "images",
    "test_neg_elbo": "-ELBO, nats an image",
    "test_bits_per_dimension": "-ELBO, bits a value",
    "test_ln_p": "ln p(x), nats an image",
    "test_ln_p_kind": "  which is",
    "first_1000_neg_elbo": "-ELBO, first 1,000 images",
    "first_1000_ln_p": "ln p(x), first 1,000 images",
    "gradient_variance": "gradient variance, nats² a parameter",
    "active_units": "units in use",
    "codes_used": "different codes",
    "perplexity": "perplexity of the categories",
    "detail_kept": "detail that is kept",
    "sure_bits": "bits that are sure, a share",
    "unsure_bits": "bits that are not, a share",
    "eta_variance_sure": "gradient variance of a sure bit",
    "eta_variance_unsure": "gradient variance of an unsure bit",
    "cluster_accuracy": "purity of the categories",
    "cluster_matched_accuracy": "accuracy, one category a class",
    "cluster_nmi": "mutual information, normalised",
    "cluster_ari": "Rand index, adjusted",
    "cluster_classes_found": "classes that a category finds",
    "cluster_clusters": "categories in use",
    "classes": "classes",
    "retrieval_map_100": "mAP of the 100 nearest",
    "samples_like_one_class": "samples like one class, a share",
    "test_like_one_class": "test images like one class, a share",
}


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("source", help="the directory of a run, a model of the zoo (fc_bvae_mnist), or a .keras file")
    add("--dataset", help="as scripts/train.py takes; default that of the run")
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--to", help="a JSON file to write the figures to as well")
    add("--clusters", action="store_true", default=False, help="categories as clusters, beside k-means")
    add("--beside", nargs="+", metavar="MODEL", help="with --clusters: trained models with Gaussian latents")
    add("--picture", help="with --clusters: a PNG of the ten largest, and the test images nearest to each")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The model, the images to evaluate it on, the file to write to or None, and what --clusters needs or None."""
    from tf_isvae import evaluation, plotting, training, zoo

    command_line.exact_float32()

    to = getattr(arguments, "to", None)
    if to and not Path(to).resolve().parent.is_dir():
        raise FileNotFoundError(f"--to is {to}; it must lie in a folder that exists: make it, or choose another.")
    beside, picture = getattr(arguments, "beside", ()), getattr(arguments, "picture", None)
    if (beside or picture) and not arguments.clusters:
        raise ValueError("--beside and --picture are for --clusters; add that, or leave them out.")
    if picture:
        plotting.check_path(picture)
    trained = training.read_trained(arguments.source)
    config = trained.config or {}
    dataset = getattr(arguments, "dataset", config.get("dataset"))
    if dataset is None:
        raise ValueError("a .keras file does not say on which data to evaluate it: name a data set with --dataset.")
    data_dir = getattr(arguments, "data_dir", config.get("data_dir"))
    held_out = {}
    if dataset == config.get("dataset"):  # no image of another one was trained on
        held_out = {"validation_split": config.get("validation_split"), "validation_seed": config.get("seed", 0)}
    data = evaluation.data_for(trained.model, dataset, data_dir, config.get("binarize"), **held_out)
    if not arguments.clusters:
        return trained.model, data, to, None
    # These refuse what cannot be compared.
    gaussians = {name: zoo.load(name) for name in beside}
    figures = evaluation.compare_clusterings(trained.model, **data, gaussians=gaussians)
    return trained.model, data, to, (figures, picture)


def work(prepared: tuple) -> None:
    from tf_isvae import evaluation, files

    model, data, to, clusters = prepared
    if clusters is not None:
        show_clusters(model, data["test"][0], to, *clusters)
        return
    figures = evaluation.evaluate(model, **data, progress=_show_next)
    _show_next("")
    for name, value in figures.items():
        print(f"{WORDS[name]:38}{value:>22.6g}" if isinstance(value, float) else f"{WORDS[name]:38}{value:>22}")
    if to:
        files.write_json(to, figures)


def _show_next(what: str) -> None:
    """What is measured now, in a line of a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r{what:79}" + ("" if what else "\r"), end="", file=sys.stderr, flush=True)


def show_clusters(model, images, to: str | None, figures: dict, picture: str | None) -> None:
    import numpy as np

    from tf_isvae import evaluation, files, plotting

    print("| clusters | how many | ACC | NMI | ARI | purity |\n|---|---|---|---|---|---|")
    for name, found in figures.items():
        values = [found[figure] for figure in ("matched_accuracy", "nmi", "ari", "accuracy")]
        print(f"| {name} | {found['clusters']:g} | {' | '.join(f'{value:.3f}' for value in values)} |")
    if to:
        files.write_json(to, figures)
    if picture:
        rows = {}
        for template in evaluation.templates(model, images, neighbours=min(9, len(images))):
            label = f"{', '.join(map(str, template.code))}: {template.share:.1%}"
            rows[label] = np.concatenate([template.image[None], images[template.nearest]])
        plotting.image_rows(rows, picture, "left: what the category stands for; then the nearest test images")
