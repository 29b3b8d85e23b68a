"""How well categories match labels, beside k-means: models trained from several seeds, on the same test images.

    python scripts/compare_clusters.py fc_cvae --sizes 10 100 --epochs 20
    python scripts/compare_clusters.py fc_hvae --sizes 10 --dataset fashion_mnist --seeds 3

Each figure is the mean over the seeds, and their standard deviation. k-means makes as many clusters as the model uses,
of the pixels and of the means of an fc_vae that is trained for as many epochs; it is fitted to 10,000 training images,
and starts from the same seed. Images are made grey and 28x28. The same command again goes on with a run that was
stopped, and trains what is missing.
"""

import argparse
from pathlib import Path

import tf_isvae_command  # noqa: F401  (the package then waits)
from tf_isvae import recipes
from tf_isvae.commands import command_line

GAUSSIAN = "fc_vae"
SHAPE = (28, 28, 1)
FIGURES = {"ACC": "matched_accuracy", "NMI": "nmi", "ARI": "ari", "purity": "accuracy"}


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("model", help=f"one of {', '.join(recipes.MODELS)}, whose codes are clusters")
    add("--sizes", nargs="+", metavar="SIZE", default=["10", "100"], help="as --latent-dim of train.py; default 10 100")
    add("--dataset", default="mnist", help="as scripts/train.py takes, with labels; default mnist")
    add("--seeds", type=int, default=5, metavar="N", help="default 5")
    add("--epochs", metavar="N", help="of each training; default the recipe's")
    add("--batch-size", metavar="N", help="of each training; default the recipe's")
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--run-dir", type=Path, help="what to write; default runs/clusters_<dataset>")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The settings of each run by its size (None: the Gaussian VAE) and seed, the images, and the directory."""
    import numpy as np

    from tf_isvae import checks, evaluation, training, zoo
    from tf_isvae.training.config import check_same

    command_line.exact_float32()
    given = vars(arguments)
    run_dir = given.pop("run_dir", Path("runs") / f"clusters_{Path(arguments.dataset).name}")
    model, sizes, seeds = given.pop("model"), given.pop("sizes"), checks.integer("--seeds", given.pop("seeds"))
    given = {**training.read(given), "image_size": SHAPE[:2], "channels": SHAPE[2]}
    configs = {}
    for size in (*sizes, None):
        name = GAUSSIAN if size is None else model
        latent_dim = training.read({"latent_dim": size})["latent_dim"] if size else None
        for seed in range(seeds):
            directory = run_dir / f"{name}_{size or 'means'}_{seed}"
            config = training.Config(model=name, latent_dim=latent_dim, seed=seed, run_dir=str(directory), **given)
            latent = zoo.MODELS[name].latent(config.latent_dim)
            if size and latent.clusters(np.zeros((1, latent.code_units), latent.code_dtype)) is None:
                raise ValueError(f"the codes of {name} are no clusters; it must have categories, as fc_cvae has.")
            configs[size, seed] = check_same(config) if (directory / "config.json").exists() else config
    data = evaluation.data_for(zoo.build(GAUSSIAN, image_shape=SHAPE), config.dataset, config.data_dir)
    if data["test"][1] is None:
        raise ValueError(f"{config.dataset} has no labels; it must have some, to say what is found.")
    return configs, data, run_dir


def work(prepared: tuple) -> None:
    from sklearn.cluster import KMeans

    from tf_isvae import evaluation, files, training
    from tf_isvae.chunks import parts_of

    configs, data, run_dir = prepared
    (images, labels), (train, _) = data["test"], data["train"]
    models = {key: training.finish(config, run_dir).model for key, config in configs.items()}
    found = {}
    for (size, seed), model in models.items():
        if size is None:
            continue
        clusters = model.latent.clusters(parts_of(model.encode(images))[0])
        figures = evaluation.clustering(clusters, labels)
        name = f"{configs[size, seed].model}, {size}"
        found.setdefault(name, []).append(figures)
        means = models[None, seed].encode
        spaces = {"pixels": lambda images: images.reshape(len(images), -1), f"means of {GAUSSIAN}": means}
        for space, embed in spaces.items():
            engine = KMeans(figures["clusters"], n_init=1, random_state=seed).fit(embed(train))
            beside = evaluation.clustering(engine.predict(embed(images)), labels)
            found.setdefault(f"k-means on {space}, beside {name}", []).append(beside)
    text = table(found)
    print(f"\n{text}")
    with files.atomic_write(run_dir / "clusters.md") as path:
        path.write_text(text + "\n")


def table(found: dict[str, list[dict]]) -> str:
    """Mean ± standard deviation over the seeds of each figure."""
    import numpy as np

    lines = [f"| clusters | in use | {' | '.join(FIGURES)} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for name, seeds in found.items():
        values = [[one[figure] for one in seeds] for figure in FIGURES.values()]
        cells = [f"{np.mean(each):.3f} ± {np.std(each, ddof=len(each) > 1):.3f}" for each in values]
        lines.append(f"| {name} | {np.mean([one['clusters'] for one in seeds]):.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(make_parser, prepare, work)
