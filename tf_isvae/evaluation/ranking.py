"""How well codes rank a gallery of images by class, whatever the order of ties; and a baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tf_isvae import checks
from tf_isvae.evaluation.neighbours import check_bits

_CHUNK = 100  # queries whose distances to all of the gallery are held at a time


def ranking(codes, labels, queries, query_labels, top: int = 100) -> dict[str, float]:
    """Mean average precision over the whole ranking, and precision among the first, of retrieval by code.

    Of images at the same distance, every order is as good as another: the figures are the means over all of them
    (McSherry & Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", ECIR 2008).

    Args:
        codes: (n, bits) in {0, 1}, the gallery.
        labels: (n,).
        queries: (m, bits) in [0, 1]: bits, or q(z = 1|x). The distance is sum_b |query_b - code_b|: of bits the
            Hamming distance, of q its mean.
        query_labels: (m,).
        top: how many of the nearest count for the precision; all of them if the gallery has fewer.

    Returns:
        A dict of the means over the queries, 0 to 1.
        - map: the average precision over all of the gallery; 0 if no image has the label of the query.
        - precision: the share of images of the query's label among the `top` nearest.

    Raises:
        ValueError: the shapes do not fit together, values are out of range, or `top` is not a positive integer.

    Example:
        >>> codes, labels = [[0, 0], [0, 0], [1, 1]], ["a", "b", "b"]
        >>> evaluation.ranking(codes, labels, [[0, 0]], ["a"], top=1)  # first or second, as likely
        {'map': 0.75, 'precision': 0.5}
    """
    top = checks.integer("ranking: top", top)
    codes, labels = check_bits("codes and labels", codes, labels)
    queries, query_labels = np.asarray(queries, np.float32), np.asarray(query_labels)
    if queries.ndim != 2 or queries.shape[1] != codes.shape[1] or query_labels.shape != queries.shape[:1]:
        raise ValueError(
            f"queries and query_labels have shapes {queries.shape} and {query_labels.shape}; they must be "
            f"(m, {codes.shape[1]}) and (m,)."
        )
    if not len(queries):
        raise ValueError("queries are none; there must be at least one.")
    checks.unit_interval("queries", queries)
    top, figures = min(top, len(codes)), []
    for begin in range(0, len(queries), _CHUNK):
        query = queries[begin : begin + _CHUNK]
        distances = query.sum(1)[:, None] + codes.sum(1)[None] - 2 * query @ codes.T
        relevant = labels[None] == query_labels[begin : begin + _CHUNK, None]
        figures += map(_with_ties, distances, relevant, [top] * len(query))
    average_precision, precision = np.mean(figures, axis=0)
    return {"map": float(average_precision), "precision": float(precision)}


def _with_ties(distances: np.ndarray, relevant: np.ndarray, top: int) -> tuple[float, float]:
    """Average precision, and precision among the first, of one query: the means over all orders of ties."""
    from scipy.special import digamma

    order = np.argsort(distances)
    begin = np.flatnonzero(np.diff(distances[order], prepend=-np.inf))
    size = np.diff(begin, append=len(order))
    hits = np.add.reduceat(relevant[order].astype(np.float64), begin)
    before = np.cumsum(hits) - hits
    # In a group of n images, h of them relevant, the k-th is relevant with probability h / n, and then has in the mean
    # (k - 1)(h - 1) / (n - 1) relevant ones of its group before it. Its precision is the number of relevant images up
    # to it, divided by its place begin + k: sums over k of 1 / (begin + k) and (k - 1) / (begin + k).
    harmonic = digamma(begin + size + 1) - digamma(begin + 1)
    others = np.where(size > 1, (hits - 1) / np.maximum(size - 1, 1), 0)
    terms = hits / size * ((1 + before) * harmonic + others * (size - (begin + 1) * harmonic))
    taken = np.clip(top - begin, 0, size)
    return terms.sum() / max(relevant.sum(), 1), (hits / size * taken).sum() / top


def iterative_quantization(images, bits: int, rotations: int = 50, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """ITQ, the baseline for codes learnt without labels: principal components, rotated so that signs lose little.

    Gong & Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011.

    Args:
        images: (n, H, W, C), those to learn from.
        bits: at most as many as an image has values.
        rotations: how often codes and rotation are fitted to each other.
        seed: of the first rotation.

    Returns:
        A function from images to their bits, int32 (n, bits).

    Raises:
        ValueError: there are no images, or the number of bits is not as described.

    Example:
        >>> images = np.random.default_rng(0).random((100, 4, 4, 1))
        >>> evaluation.iterative_quantization(images, bits=8)(images).shape
        (100, 8)
    """
    images = checks.images("images", images)
    rows = images.reshape(len(images), -1).astype(np.float64)
    bits = checks.integer("bits", bits, 1, rows.shape[1] + 1)
    mean = rows.mean(axis=0)
    components = np.linalg.eigh((rows - mean).T @ (rows - mean))[1][:, : -bits - 1 : -1]
    projected = (rows - mean) @ components
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0]
    for _ in range(checks.integer("rotations", rotations, 0)):
        left, _, right = np.linalg.svd(np.sign(projected @ rotation).T @ projected)
        rotation = (left @ right).T
    return lambda images: ((images.reshape(len(images), -1) - mean) @ components @ rotation > 0).astype(np.int32)
