"""Codes read as clusters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tf_isvae import checks
from tf_isvae.chunks import parts_of
from tf_isvae.model import DiscreteVAE, check_model


def clustering(codes, labels) -> dict[str, float]:
    """How well codes, read as clusters, match labels.

    Args:
        codes: int (n,) or (n, units); equal rows are one cluster.
        labels: int (n,).

    Returns:
        A dict of
        - accuracy: the share of images whose label is the commonest of their cluster (purity), 0 to 1.
        - matched_accuracy: the same if each label may be given to one cluster only (Hungarian matching).
        - nmi: normalised mutual information, 0 to 1.
        - ari: adjusted Rand index, 1 for the same clusters, about 0 for clusters by chance.
        - classes_found: how many labels are the commonest of some cluster.
        - clusters: how many clusters there are.

    Raises:
        ValueError: the shapes do not fit together, or there are no codes.

    Example:
        >>> found = evaluation.clustering(codes=[5, 5, 5, 3, 3, 9], labels=[0, 0, 0, 1, 1, 1])
        >>> found["accuracy"], found["classes_found"], found["clusters"]
        (1.0, 2, 3)
        >>> round(found["matched_accuracy"], 3)  # cluster 9 has no label left
        0.833
    """
    import scipy.optimize
    from sklearn import metrics

    codes, labels = np.asarray(codes), np.asarray(labels)
    if labels.ndim != 1 or codes.shape[:1] != labels.shape or not len(labels):
        raise ValueError(
            f"codes and labels have shapes {codes.shape} and {labels.shape}; "
            "they must be (n,) or (n, units), and (n,): one label for each code, n at least 1."
        )
    clusters = np.unique(codes.reshape(len(labels), -1), axis=0, return_inverse=True)[1].ravel()
    table = metrics.cluster.contingency_matrix(labels, clusters)
    rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
    return {
        "accuracy": float(table.max(axis=0).sum() / table.sum()),
        "matched_accuracy": float(table[rows, columns].sum() / table.sum()),
        "nmi": float(metrics.normalized_mutual_info_score(labels, clusters)),
        "ari": float(metrics.adjusted_rand_score(labels, clusters)),
        "classes_found": len(np.unique(table.argmax(axis=0))),
        "clusters": table.shape[1],
    }


def compare_clusterings(
    model: DiscreteVAE,
    test: tuple[np.ndarray, np.ndarray],
    train: tuple[np.ndarray, np.ndarray | None],
    gaussians: dict[str, DiscreteVAE] | None = None,
    seeds: int = 5,
) -> dict[str, dict[str, float]]:
    """`clustering` of a model's categories beside k-means, all on the same test images.

    Args:
        model: a DiscreteVAE whose codes are clusters.
        test: images (n, H, W, C) in [0, 1], and their labels, int (n,).
        train: the same of training images, on which k-means is fitted; their labels count for nothing.
        gaussians: name -> a DiscreteVAE with a GaussianLatent, on whose means k-means is run as well.
        seeds: how many starts of k-means the figures are averaged over. It makes as many clusters as the model uses.

    Returns:
        Name -> figures: "categories", "k-means on pixels", and "k-means on the means of <name>".

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(8, 8, 1), latent_dim=5)
        >>> data = evaluation.data_for(model, "digits")
        >>> found = evaluation.compare_clusterings(model, **data, seeds=1)
        >>> list(found), found["k-means on pixels"]["ari"] <= 1
        (['categories', 'k-means on pixels'], True)
    """
    from sklearn.cluster import KMeans

    check_model(model)
    seeds = checks.integer("seeds", seeds)
    (images, labels), (train_images, _) = test, train
    if labels is None:
        raise ValueError("test has no labels; clusters can be compared with labels only.")
    figures = {"categories": clustering(_clusters(model, images), labels)}
    clusters = min(figures["categories"]["clusters"], len(train_images))
    spaces = {"k-means on pixels": lambda images: images.reshape(len(images), -1)}
    for name, gaussian in (gaussians or {}).items():
        if gaussian.latent.code_values is not None:
            raise ValueError(f"the codes of {name} are no real numbers; it must have a GaussianLatent, as fc_vae has.")
        spaces[f"k-means on the means of {name}"] = gaussian.encode
    for name, embed in spaces.items():
        fitted, tested = embed(train_images), embed(images)
        each = [
            clustering(KMeans(clusters, n_init=1, random_state=seed).fit(fitted).predict(tested), labels)
            for seed in range(seeds)
        ]
        figures[name] = {figure: float(np.mean([one[figure] for one in each])) for figure in each[0]}
    return figures


class Template(NamedTuple):
    """What stands for one cluster."""

    code: tuple[int, ...]
    """Of the categories."""
    share: float
    """Of the images that are in the cluster."""
    image: np.ndarray
    """(H, W, C): the mean of what its images' codes are decoded to; of one category alone, what it stands for."""
    nearest: np.ndarray
    """Positions of the images nearest to it, by their pixels."""


def templates(model: DiscreteVAE, images, count: int = 10, neighbours: int = 9) -> list[Template]:
    """The largest clusters of images, largest first.

    Args:
        model: a DiscreteVAE whose codes are clusters.
        images: (n, H, W, C) in [0, 1].
        count: how many clusters at most.
        neighbours: how many images nearest to each, at most n.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(8, 8, 1), latent_dim=5)
        >>> found = evaluation.templates(model, np.random.default_rng(0).random((20, 8, 8, 1)), count=2)
        >>> found[0].image.shape, len(found[0].nearest)
        ((8, 8, 1), 9)
    """
    check_model(model)
    count, neighbours = checks.integer("count", count), checks.integer("neighbours", neighbours)
    images = checks.images("images", images, model.image_shape)
    if neighbours > len(images):
        raise ValueError(f"neighbours is {neighbours}; it must be at most {len(images)}, the number of images.")
    clusters, decoded = _clusters(model, images), model.decode(*parts_of(model.encode(images)))
    codes, numbers, sizes = np.unique(clusters, axis=0, return_inverse=True, return_counts=True)
    found = []
    for number in np.argsort(-sizes, kind="stable")[:count]:
        image = decoded[numbers.ravel() == number].mean(axis=0)
        distances = np.square(images - image).sum(axis=(1, 2, 3))
        code, share = tuple(codes[number].tolist()), float(sizes[number] / len(images))
        found.append(Template(code, share, image, np.argsort(distances, kind="stable")[:neighbours]))
    return found


def _clusters(model: DiscreteVAE, images) -> np.ndarray:
    clusters = model.latent.clusters(parts_of(model.encode(images))[0])
    if clusters is None:
        raise ValueError("the codes of the model are no clusters; it must have a CategoricalLatent of few categories.")
    return clusters
