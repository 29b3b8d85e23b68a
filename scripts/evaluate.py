"""Evaluates a trained model on the test images of a data set, and prints the figures.

    python scripts/evaluate.py runs/fc_bvae_mnist
    python scripts/evaluate.py runs/fc_bvae_mnist --to runs/fc_bvae_mnist/evaluation.json    for the card of an export
    python scripts/evaluate.py model.keras --dataset fashion_mnist

-ELBO, ln p(x) (exact where the codes can be enumerated, otherwise the bound of 100 samples), use of the codes,
gradient variance; and where the data has labels, how well categories match them, or how well bits find images of the
same label, and how many samples of the prior look like one class.
"""

import argparse
from pathlib import Path

import command_line

SAMPLES = 100
FEW = 1000  # images for what need not be measured on all
DRAWS = 30  # of the gradient, for its variance
NEIGHBOURS = 10


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("source", help="the directory of a run, or a .keras file")
    add("--dataset", help="as scripts/train.py takes; default that of the run")
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--to", help="a JSON file to write the figures to as well")
    return parser


def load(model, dataset: str, split: str, data_dir: str | None, binarize: str | None, count: int | None = None):
    """The images of a split, or `count` shuffled ones, in the shape that the model takes; and their labels or None."""
    import numpy as np

    from tf_isvae import datasets

    height, width, channels = model.image_shape
    settings = {
        "batch_size": count or FEW,
        "seed": None if count is None else 0,
        "image_size": (height, width),
        "channels": channels,
        "binarize": "static" if binarize else None,
        "data_dir": data_dir,
    }
    try:
        data = datasets.load(dataset, split, labels=True, **settings)
    except ValueError:
        # Without labels, or wrong altogether, which then shows again.
        images = list(datasets.load(dataset, split, **settings).take(-1 if count is None else 1))
        return np.concatenate(images), None
    images, labels = zip(*data.take(-1 if count is None else 1).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def evaluate(model, dataset: str, data_dir: str | None = None, binarize: str | None = None) -> dict:
    """The figures by name; `first_1000_` is of the first 1,000 test images alone, seed 0, for whoever repeats them."""
    import numpy as np

    from tf_isvae import evaluation

    images, labels = load(model, dataset, "test", data_dir, binarize)
    train_images, train_labels = load(model, dataset, "train", data_dir, binarize, count=10 * FEW)
    few, latent = images[:FEW], model.latent
    enumerable = latent.enumerable
    log_likelihood = model.log_likelihood(images, SAMPLES, seed=0)
    statistics = evaluation.code_statistics(model, images)
    figures = {
        "test_images": len(images),
        "test_neg_elbo": float(-model.elbo(images, seed=0).mean()),
        "test_ln_p": float(log_likelihood.mean()),
        "test_ln_p_kind": "exact" if enumerable else f"bound of {SAMPLES} samples",
        "first_1000_neg_elbo": float(-model.elbo(few, seed=0).mean()),
        "first_1000_ln_p": float(log_likelihood[:FEW].mean()),
        "gradient_variance": evaluation.gradient_variance(model, few, DRAWS),
        "active_units": statistics["active_units"],
        "codes_used": statistics["codes_used"],
        "detail_kept": _detail(model.reconstruct(few, seed=0)) / _detail(few),
    }
    categorical = "perplexity" in statistics
    bits = latent.code_values is not None and not categorical
    if categorical:
        figures["perplexity"] = float(statistics["perplexity"].mean())
    if bits:
        figures |= certainty(model, few)
    if labels is not None:
        if categorical and enumerable:
            clusters = evaluation.clustering(model.encode(images), labels)
            figures |= {f"cluster_{name}": value for name, value in clusters.items()}
            figures["classes"] = len(np.unique(labels))
        elif bits:
            codes = model.encode(train_images), train_labels, model.encode(few), labels[:FEW]
            figures["retrieval_map_100"] = evaluation.retrieval(*codes)
        shown = {"samples": model.generate(FEW, seed=0), "test": few}
        for name, share in one_class(train_images, train_labels, shown).items():
            figures[f"{name}_like_one_class"] = share
    return figures


def certainty(model, images, draws: int = 100) -> dict[str, float]:
    """How sure the bits of these images are, and the variance of the paper's gradient by eta (eq. 20) among sure and
    unsure ones, nats squared: the variance over `draws`, averaged over bits with q below 0.01 or above 0.99, and with q
    from 0.25 to 0.75; left out where there are none.
    """
    import numpy as np
    import tensorflow as tf

    from tf_isvae import estimators

    images = tf.constant(images[:200])
    eta = tf.cast(model.encoder(images, training=False), tf.float32)
    estimator = estimators.ImportanceSampling()

    @tf.function
    def gradient(draw):
        with tf.GradientTape() as tape:
            tape.watch(eta)
            posterior = model.latent.posterior(eta)
            surrogate = estimator(posterior, model.log_likelihood_of(images), tf.stack([0, draw])).surrogate
        return tape.gradient(surrogate, eta)

    variance = np.var([gradient(tf.constant(draw)).numpy() for draw in range(draws)], axis=0, ddof=1, dtype=np.float64)
    q = model.latent.posterior(eta).mean().numpy()
    sure, unsure = (q < 0.01) | (q > 0.99), (q > 0.25) & (q < 0.75)
    figures = {"sure_bits": float(sure.mean()), "unsure_bits": float(unsure.mean())}
    for name, chosen in (("sure", sure), ("unsure", unsure)):
        if chosen.any():
            figures[f"eta_variance_{name}"] = float(variance[chosen].mean())
    return figures


def one_class(train_images, train_labels, sets: dict) -> dict[str, float]:
    """The share of each set's images of whose 10 nearest training images (in pixels) at least 9 have one label."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute")
    nearest.fit(train_images.reshape(len(train_images), -1))
    shares = {}
    for name, images in sets.items():
        labels = train_labels[nearest.kneighbors(images.reshape(len(images), -1), return_distance=False)]
        commonest = np.array([np.bincount(row).max() for row in labels])
        shares[name] = float((commonest >= NEIGHBOURS - 1).mean())
    return shares


def _detail(images) -> float:
    """The mean squared difference of neighbouring pixels."""
    import numpy as np

    return float(np.square(np.diff(images, axis=1)).mean() + np.square(np.diff(images, axis=2)).mean())


def main(arguments: argparse.Namespace) -> None:
    from tf_isvae import export, files

    if hasattr(arguments, "to") and not Path(arguments.to).resolve().parent.is_dir():
        raise FileNotFoundError(f"--to {arguments.to} is in no folder that exists; make it first, or choose another.")
    source = export.load(arguments.source)
    config = source.config or {}
    dataset = getattr(arguments, "dataset", config.get("dataset"))
    if dataset is None:
        raise ValueError("a .keras file does not say on which data to evaluate it: name a data set with --dataset.")
    data_dir = getattr(arguments, "data_dir", config.get("data_dir"))
    figures = evaluate(source.model, dataset, data_dir, config.get("binarize"))
    for name, value in figures.items():
        print(f"{name:28}{value:>22.6g}" if isinstance(value, float) else f"{name:28}{value:>22}")
    if hasattr(arguments, "to"):
        files.write_json(arguments.to, figures)


if __name__ == "__main__":
    command_line.run(make_parser(), main)
