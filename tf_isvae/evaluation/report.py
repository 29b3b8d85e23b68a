"""All figures of a trained model on a data set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np

from tf_isvae import checks, datasets
from tf_isvae.chunks import parts_of
from tf_isvae.evaluation.clusters import clustering
from tf_isvae.evaluation.codes import code_statistics
from tf_isvae.evaluation.gradients import gradient_variance, variance_by_certainty
from tf_isvae.evaluation.neighbours import NEIGHBOURS, retrieval, share_like_one_class
from tf_isvae.model import DiscreteVAE, check_model

SAMPLES = 100  # of the bound of ln p(x)
DRAWS = 30  # of the gradient, for its variance
FEW = 1000  # images, for what need not be measured on all
MANY = 10 * FEW  # training images among which neighbours are looked for
FOR_CERTAINTY = 200  # images


def evaluate(
    model: DiscreteVAE,
    test: tuple[np.ndarray, np.ndarray | None],
    train: tuple[np.ndarray, np.ndarray | None],
    progress: Callable[[str], None] | None = None,
) -> dict[str, int | float | str]:
    """All figures of a model on the test images of a data set; the same ones in every call.

    Args:
        model: a DiscreteVAE.
        test: images (n, H, W, C) in [0, 1], and their labels, int (n,), or None.
        train: the same of training images; used only if both have labels.
        progress: called with what is measured next, before each part that may take long.

    Returns:
        A dict of figures, nats per image unless said otherwise. Those whose names begin with first_1000_ are of the
        first 1,000 test images alone, for whoever repeats them.
        - test_images: how many there are.
        - test_neg_elbo, first_1000_neg_elbo: -ELBO, with the model's estimator.
        - test_bits_per_dimension: the same in bits a value of an 8-bit image, if the likelihood is a density of such
          (`bits_per_dimension` of the likelihood).
        - test_ln_p, first_1000_ln_p: ln p(x); test_ln_p_kind says if it is exact or the bound of 100 samples.
        - gradient_variance: of the model's estimator, nats squared per encoder parameter, first 1,000 images.
        - active_units, codes_used, perplexity (the mean over the variables): as in `code_statistics`.
        - detail_kept: `detail` of the reconstructions as a share of that of the images, first 1,000 images;
          left out if these have no detail, each being of one level.
        - cluster_...: `clustering` of categories, if the data has labels; classes: how many labels there are.
        - sure_bits, unsure_bits, eta_variance_...: `variance_by_certainty` of bits, first 200 images.
        - retrieval_map_100: `retrieval` of bits, the first 1,000 images among the training images.
        - samples_like_one_class, test_like_one_class: `share_like_one_class` of 1,000 samples of the prior and of the
          first 1,000 test images, if the data has labels, and there are at least 10 training images.

    Raises:
        TypeError, ValueError: the model or the images are not as described.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> figures = evaluation.evaluate(model, **evaluation.data_for(model, "digits"))
        >>> figures["test_images"], figures["test_ln_p_kind"], figures["classes"]
        (360, 'exact', 10)
    """
    check_model(model)
    next_is = progress or (lambda what: None)
    images, labels = test
    next_is(f"codes of {len(images):,} images")
    few, latent, codes = images[:FEW], model.latent, parts_of(model.encode(images))[0]
    statistics = code_statistics(model, images)
    next_is(f"ln p(x) of {len(images):,} images")
    log_likelihood = model.log_likelihood(images, SAMPLES, seed=0)
    next_is(f"-ELBO of {len(images):,} images, gradient of {len(few):,}")
    bits, clusters = latent.bits(codes), latent.clusters(codes)
    figures = {
        "test_images": len(images),
        "test_neg_elbo": float(-model.elbo(images, seed=0).mean()),
        "test_ln_p": float(log_likelihood.mean()),
        "test_ln_p_kind": "exact" if latent.enumerable else f"bound of {SAMPLES} samples",
        "first_1000_neg_elbo": float(-model.elbo(few, seed=0).mean()),
        "first_1000_ln_p": float(log_likelihood[:FEW].mean()),
        "gradient_variance": gradient_variance(model, few, DRAWS),
        "active_units": statistics["active_units"],
        "codes_used": statistics["codes_used"],
    }
    if shown := detail(few):
        figures["detail_kept"] = detail(model.reconstruct(few, seed=0)) / shown
    bits_a_value = model.likelihood.bits_per_dimension(-figures["test_neg_elbo"], math.prod(model.image_shape))
    if bits_a_value is not None:
        figures["test_bits_per_dimension"] = bits_a_value
    figures |= {name: float(np.mean(value)) for name, value in statistics.items() if name == "perplexity"}
    if bits is not None:
        figures |= variance_by_certainty(model, images[:FOR_CERTAINTY])
    if labels is None:
        return figures
    if clusters is not None:
        figures |= {f"cluster_{name}": value for name, value in clustering(clusters, labels).items()}
        figures["classes"] = len(np.unique(labels))
    train_images, train_labels = train
    if train_labels is None:
        return figures
    next_is(f"neighbours among {len(train_images):,} training images")
    if bits is not None:
        train_bits = latent.bits(parts_of(model.encode(train_images))[0])
        figures["retrieval_map_100"] = retrieval(train_bits, train_labels, bits[:FEW], labels[:FEW], top=100)
    if len(train_images) < NEIGHBOURS:
        return figures
    for name, shown in (("samples", model.generate(FEW, seed=0)), ("test", few)):
        figures[f"{name}_like_one_class"] = share_like_one_class(shown, train_images, train_labels)
    return figures


def data_for(
    model: DiscreteVAE,
    dataset: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    binarize: str | None = None,
    validation_split: float | None = None,
    validation_seed: int = 0,
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """What `evaluate` takes beside the model: all test images of a data set, and 10,000 training images.

    Args:
        model: a DiscreteVAE.
        dataset: as `datasets.load` takes it; it must have a test split, or validation_split must be given.
        data_dir: where TFDS keeps its data sets; default as in `datasets.load`.
        binarize: "static" or "dynamic" if the model was trained so; both draw the pixels once.
        validation_split: the share of the training images that the training left out, if it did: they take the place
            of the test images if there are none, and do not count among the training images.
        validation_seed: which images these are, as in `datasets.load`: the seed of the run.

    Returns:
        `test` and `train`, each (images, labels) as `images_for` returns them.

    Raises:
        NoSuchSplit: there are neither test images nor any that were held out.
        ValueError, FileNotFoundError, ConnectionError: as `datasets.load`.

    Example:
        >>> data = evaluation.data_for(zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3), "digits")
        >>> {name: images.shape for name, (images, labels) in data.items()}
        {'test': (360, 4, 4, 1), 'train': (1437, 4, 4, 1)}
    """
    held_out = {"validation_split": validation_split, "validation_seed": validation_seed}
    try:
        test = images_for(model, dataset, "test", data_dir, binarize)
    except datasets.NoSuchSplit as error:
        if validation_split is None:
            raise datasets.NoSuchSplit(
                f"{error} Train with validation_split (--validation-split), which holds some images out, or name a "
                "data set that has test images."
            ) from None
        test = images_for(model, dataset, "validation", data_dir, binarize, **held_out)
    return {"test": test, "train": images_for(model, dataset, "train", data_dir, binarize, count=MANY, **held_out)}


def images_for(
    model: DiscreteVAE,
    dataset: str | os.PathLike,
    split: str,
    data_dir: str | os.PathLike | None = None,
    binarize: str | None = None,
    count: int | None = None,
    *,
    validation_split: float | None = None,
    validation_seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The images of a split in the size and with the channels that the model takes, and their labels.

    Args:
        model: a DiscreteVAE.
        dataset: as `datasets.load` takes it.
        split: "train", "test" or another that the data set has.
        data_dir: where TFDS keeps its data sets; default as in `datasets.load`.
        binarize: "static" or "dynamic" if the model was trained so; both draw the pixels once.
        count: how many images, in an order drawn with seed 0; default all, in their own order.
        validation_split, validation_seed: as `datasets.load` takes them.

    Returns:
        Images, float32 (n, H, W, C) in [0, 1], and labels, int32 (n,), or None if the data set has none.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `datasets.load`.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(16, 16, 3), latent_dim=3)
        >>> images, labels = evaluation.images_for(model, "digits", "test", count=50)
        >>> images.shape, labels.shape
        ((50, 16, 16, 3), (50,))
    """
    check_model(model)
    height, width, channels = model.image_shape
    settings = {
        "batch_size": FEW if count is None else checks.integer("images_for: count", count),
        "seed": None if count is None else 0,
        "image_size": (height, width),
        "channels": channels,
        "binarize": "static" if binarize else None,
        "data_dir": data_dir,
        "validation_split": validation_split,
        "validation_seed": validation_seed,
    }
    batches = -1 if count is None else 1
    try:
        data = datasets.load(dataset, split, labels=True, **settings)
    except datasets.NoLabels:
        return np.concatenate(list(datasets.load(dataset, split, **settings).take(batches))), None
    images, labels = zip(*data.take(batches).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def detail(images: np.ndarray) -> float:
    """The mean squared difference of neighbouring pixels, down and across, of images (n, H, W, C).

    Example:
        >>> evaluation.detail(np.array([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1))  # one edge, across
        1.0
    """
    return float(np.square(np.diff(images, axis=1)).mean() + np.square(np.diff(images, axis=2)).mean())
