"""Codes read as clusters."""

from __future__ import annotations

import numpy as np


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
        "classes_found": len(np.unique(table.argmax(axis=0))),
        "clusters": table.shape[1],
    }
