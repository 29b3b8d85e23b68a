"""Retrieval figures over whole rankings, and ITQ."""

import itertools

import numpy as np
import pytest
from helpers import one_line
from sklearn.metrics import average_precision_score

from tf_isvae import evaluation, zoo


def by_enumeration(distances, relevant, top):
    """The means over all orders of the images that do not contradict the distances."""
    values = []
    for order in itertools.permutations(range(len(distances))):
        if (np.diff(distances[list(order)]) >= 0).all():
            hits = relevant[list(order)]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            values.append(((precision * hits).sum() / max(1, hits.sum()), hits[:top].mean()))
    return np.mean(values, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_ties_count_as_the_mean_over_their_orders(seed):
    rng = np.random.default_rng(seed)
    codes, labels = rng.integers(0, 2, (7, 3)), rng.integers(0, 2, 7)
    query, label = rng.integers(0, 2, 3), 1
    found = evaluation.ranking(codes, labels, [query], [label], top=3)
    expected = by_enumeration(np.abs(codes - query).sum(1), (labels == label).astype(float), 3)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)


def test_without_ties_it_is_the_average_precision_of_scikit_learn():
    rng = np.random.default_rng(0)
    codes, labels = rng.integers(0, 2, (300, 40)), rng.integers(0, 3, 300)
    queries, query_labels = rng.random((5, 40)), np.array([0, 1, 2, 0, 1])
    distances = np.abs(queries[:, None] - codes[None]).sum(-1)
    found = evaluation.ranking(codes, labels, queries, query_labels, top=20)
    relevant = labels[None] == query_labels[:, None]
    expected = np.mean([average_precision_score(r, -d) for r, d in zip(relevant, distances, strict=True)])
    assert abs(found["map"] - expected) < 1e-6
    nearest = np.argsort(distances, axis=1)[:, :20]
    assert abs(found["precision"] - np.take_along_axis(relevant, nearest, 1).mean()) < 1e-12


def test_a_label_that_the_gallery_lacks_and_a_small_gallery():
    assert evaluation.ranking([[0], [1]], [1, 1], [[0]], [2]) == {"map": 0.0, "precision": 0.0}
    assert evaluation.ranking([[0], [1]], [1, 1], [[0]], [1], top=100) == {"map": 1.0, "precision": 1.0}


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"top": 0}, ["top is 0"]),
        ({"labels": [1]}, ["(2, 2)", "(1,)"]),
        ({"queries": [[0, 1, 1]]}, ["(1, 3)", "(m, 2)"]),
        ({"queries": [[0, 2]]}, ["queries", "[0, 1]"]),
        ({"query_labels": [1, 1]}, ["(1, 2)", "(2,)"]),
        ({"queries": np.empty((0, 2)), "query_labels": []}, ["queries are none"]),
        ({"codes": [[0, 2], [1, 1]]}, ["bits must be 0 and 1"]),
    ],
)
def test_bad_rankings(change, parts):
    given = {"codes": [[0, 1], [1, 1]], "labels": [1, 2], "queries": [[0, 1]], "query_labels": [1], **change}
    with pytest.raises(ValueError) as error:
        evaluation.ranking(**given)
    one_line(error, *parts)


def test_itq():
    """Each rotation lowers the loss ||sign(V R) - V R||, and the bits are balanced on symmetric data."""
    rng = np.random.default_rng(0)
    half = rng.random((500, 4, 4, 1)) * rng.random((4, 4, 1))
    images = np.concatenate([half, 1 - half])
    mean = images.reshape(1000, 16).mean(0)
    projected = (images.reshape(1000, 16) - mean) @ np.linalg.svd(images.reshape(1000, 16) - mean)[2][:6].T

    def loss(rotations):
        bits = evaluation.iterative_quantization(images, 6, rotations)(images)
        # The best rotation for these bits, found independently (Procrustes).
        left, _, right = np.linalg.svd(projected.T @ (2.0 * bits - 1))
        return np.linalg.norm(2.0 * bits - 1 - projected @ left @ right)

    assert loss(50) < loss(0)
    bits = evaluation.iterative_quantization(images, 6)(images)
    assert bits.shape == (1000, 6) and np.abs(bits.mean(0) - 0.5).max() < 0.01
    with pytest.raises(ValueError, match="bits is 17"):
        evaluation.iterative_quantization(images, 17)


@pytest.mark.all
def test_the_script(script, tmp_path):
    model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=12)
    model.save(tmp_path / "model.keras")
    arguments = ["compare_retrieval.py", "model.keras", "--itq", 6, "--dataset", "digits"]
    status, output, errors = script(*arguments, "--to", "table.md")
    assert (status, errors) == (0, "")
    table = (tmp_path / "table.md").read_text()
    assert table in output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[:2] for row in rows[2:]] == [["model.keras", "12"], ["ITQ", "6"]]
    assert len({len(row) for row in rows}) == 1 and all(0 < float(row[2]) <= 1 for row in rows[2:])
    for wrong, parts in (
        (["--dataset", "digits"], ["nothing to measure"]),
        (["fc_cvae_mnist", "--dataset", "digits"], ["fc_cvae_mnist are no bits"]),
        (["--itq", "0", "--dataset", "digits"], ["--itq is 0"]),
        (["--itq", "3", "--dataset", "digits", "--to", "no/table.md"], ["--to is no/table.md"]),
    ):
        status, output, errors = script("compare_retrieval.py", *wrong)
        assert (status, output) == (2, "")
        one_line(errors, *parts)
