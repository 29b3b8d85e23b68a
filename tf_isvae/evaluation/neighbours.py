"""Nearest neighbours: of bits by Hamming distance, of images by their pixels."""

from __future__ import annotations

import numpy as np

from tf_isvae import checks

NEIGHBOURS = 10


def retrieval(codes, labels, query_codes, query_labels, top: int = 100) -> float:
    """Mean average precision of Hamming-distance retrieval: the share of same-label images among the `top` nearest.

    Ties in distance are kept in the order of the gallery.

    Args:
        codes: (n, bits) in {0, 1}, the gallery.
        labels: (n,).
        query_codes: (m, bits) in {0, 1}, the queries.
        query_labels: (m,).
        top: how many of the nearest count.

    Returns:
        The mean over the queries, 0 to 1.

    Raises:
        ValueError: the shapes do not fit together, values are no bits, or `top` is not a positive integer.

    Example:
        >>> codes = [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
        >>> evaluation.retrieval(codes, ["a", "b", "a", "b"], [[1, 1, 1]], ["b"], top=1)
        1.0
    """
    top = checks.integer("retrieval: top", top)
    codes, labels = check_bits("codes and labels", codes, labels)
    query_codes, query_labels = check_bits("query_codes and query_labels", query_codes, query_labels)
    if query_codes.shape[1] != codes.shape[1]:
        raise ValueError(f"query_codes have shape {query_codes.shape}; they must have {codes.shape[1]} bits, as codes.")
    precisions = []
    for begin in range(0, len(query_codes), 256):
        query = query_codes[begin : begin + 256]
        # |a - b|^2 of bits is their Hamming distance.
        distance = query.sum(1)[:, None] + codes.sum(1)[None] - 2 * query @ codes.T
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :top]
        relevant = labels[nearest] == query_labels[begin : begin + 256, None]
        precision = np.cumsum(relevant, axis=1) / np.arange(1, nearest.shape[1] + 1)
        precisions.append((precision * relevant).sum(1) / np.maximum(1, relevant.sum(1)))
    return float(np.concatenate(precisions).mean())


def share_like_one_class(images, train_images, train_labels) -> float:
    """The share of images that look like one class: at least 9 of the 10 nearest training images have one label.

    Args:
        images: (m, H, W, C).
        train_images: (n, H, W, C), n at least 10; near means a small Euclidean distance over all pixels.
        train_labels: int (n,).

    Returns:
        The share, 0 to 1.

    Example:
        >>> train = np.repeat([0.0, 1.0], 20).reshape(40, 1, 1, 1)
        >>> evaluation.share_like_one_class(np.array([0.1, 0.9]).reshape(2, 1, 1, 1), train, np.repeat([0, 1], 20))
        1.0
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute")
    nearest.fit(train_images.reshape(len(train_images), -1))
    numbers = np.unique(train_labels, return_inverse=True)[1]
    labels = numbers[nearest.kneighbors(images.reshape(len(images), -1), return_distance=False)]
    commonest = np.array([np.bincount(row).max() for row in labels])
    return float((commonest >= NEIGHBOURS - 1).mean())


def check_bits(names: str, codes, labels) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float32 (n, bits), and labels (n,). Raises ValueError if they have other shapes, or are no bits."""
    codes, labels = np.asarray(codes), np.asarray(labels)
    if codes.ndim != 2 or labels.shape != codes.shape[:1] or not codes.size:
        raise ValueError(
            f"{names} have shapes {codes.shape} and {labels.shape}; they must be (n, bits) and (n,), n at least 1."
        )
    if not np.isin(codes, (0, 1)).all():
        raise ValueError(f"{names}: codes have values from {codes.min()} to {codes.max()}; bits must be 0 and 1.")
    return codes.astype(np.float32), labels
