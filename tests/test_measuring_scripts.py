"""The commands benchmark and compare_estimators: what they count, and what they refuse."""

import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.image import imread

from tf_isvae import datasets, networks, speed, zoo
from tf_isvae.commands import benchmark, compare_estimators
from tf_isvae.precision import multiplies_bfloat16


def test_multiplications_of_a_training_step():
    """By hand: forward, by weights, by inputs; neither images nor sampled codes need the last."""
    dense = 784 * 1024 + 1024 * 50
    assert speed.training_multiplications(zoo.build("fc_bvae")) == 3 * 2 * dense - 784 * 1024 - 50 * 1024
    first = 14 * 14 * 32 * 9
    convolutions = first + 49 * 64 * 32 * 9 + 16 * 64 * 64 * 9 + 4 * 128 * 64 * 9
    # 50 bits, rounded up to 13 channels of 2x2; a transposed convolution multiplies at every input pixel.
    transposed = 4 * 13 * 64 * 9 + 16 * 64 * 64 * 9 + 49 * 64 * 32 * 9 + 196 * 32 * 9
    forward = convolutions + 512 * 50 + 50 * 52 + transposed
    cnn = zoo.build("cnn_bvae")
    assert speed.training_multiplications(cnn) == 3 * forward - first - 50 * 52
    decoder = 3 * (50 * 52 + transposed) - 50 * 52
    assert speed.training_multiplications(cnn, 2) - speed.training_multiplications(cnn) == decoder


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_side_by_side_is_the_same_network(rows, tmp_path):
    """Outputs and gradients are those of keras.Sequential of the same layers, also of odd batches; it can be saved."""
    layers = [keras.Input((3,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(4)]
    halves, whole = speed.SideBySide(layers), keras.Sequential(layers)
    x = tf.constant(np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32))

    def outputs_and_gradients(network):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(network(x)))
        return [network(x), *tape.gradient(loss, [x, *network.trainable_variables])]

    for found, expected in zip(*map(outputs_and_gradients, (halves, whole)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert halves.output_shape == (None, 4) and speed.multiplications(halves) == speed.multiplications(whole)
    halves.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert isinstance(loaded, speed.SideBySide)
    np.testing.assert_array_equal(loaded(x), halves(x))


def test_rows_of_the_benchmark():
    rows = [tuple(row) for row in benchmark.rows_of(["fc_bvae", "fc_cvae"])]
    assert rows == [
        ("fc_bvae", 256, "DisARM", "float32"),
        *(("fc_bvae", 2048, "ImportanceSampling", precision) for precision in ("float32", "mixed_bfloat16")),
        *(("fc_cvae", 2048, "ImportanceSampling", precision) for precision in ("float32", "mixed_bfloat16")),
        ("protocol", 100, "DisARM", "float32"),
    ]


def test_the_table_of_the_benchmark():
    """By hand: 1,000 images a second of 3 million multiply-adds are 6 GFLOP/s; a step of 250 images takes 0.25 s."""
    row = benchmark.Training("fc_bvae", 250, "DisARM")
    faster = row._replace(precision="mixed_bfloat16")
    found = {row: benchmark.Speed(1000, 3_000_000), faster: benchmark.Speed(1500, 3_000_000), "codes": None}
    lines = benchmark.table(found, {"float32": 12e9, "mixed_bfloat16": 36e9})
    assert lines[2:] == [
        "| fc_bvae, batch 250, DisARM, float32 | 1,000 | 250.00 | 6 | 12 | 0.50 |  |",
        "| fc_bvae, batch 250, DisARM, mixed_bfloat16 | 1,500 | 166.67 | 9 | 36 | 0.25 | 1.50 |",
        "| codes | failed | | | | | |",
    ]


def _process_and_modules():
    return os.getpid(), "tf_isvae.model" in sys.modules


@pytest.mark.all
def test_a_row_has_a_process_of_its_own():
    process, has_imported = benchmark.apart(_process_and_modules)
    assert has_imported and process != os.getpid()


@pytest.mark.all
def test_rows_are_measured(tmp_path):
    """Each kind once, as short as can be: speeds above 0, of as many multiplications as were counted by hand."""
    dense = 784 * 1024 + 1024 * 50
    fc = benchmark.training_speed(benchmark.Training("fc_bvae", 2048, "ImportanceSampling"), seconds=0)
    assert fc.images > 0 and fc.multiplications == 3 * 2 * dense - 784 * 1024 - 50 * 1024
    layers = 784 * 200 + 2 * 200 * 200
    protocol = benchmark.training_speed(benchmark.Training(benchmark.PROTOCOL, 100, "DisARM"), seconds=0)
    assert protocol.images > 0 and protocol.multiplications == 3 * layers - 784 * 200 + 2 * (3 * layers - 200 * 200)
    benchmark.write_images(tmp_path / "images.npy", 3000)
    encoding = benchmark.encoding_speed("fc_bvae", tmp_path / "images.npy")
    assert encoding.images > 0 and encoding.multiplications == dense
    shown, nothing = benchmark.seconds_of_help(runs=1)
    assert shown > nothing > 0


@pytest.mark.all
def test_the_benchmark(script, monkeypatch):
    """Each row in a process of its own, as short as can be; the command prints a table with all of them."""
    for name, shortest in {"SECONDS": 0, "TO_ENCODE": 3000, "HELP_RUNS": 1}.items():
        monkeypatch.setattr(benchmark, name, shortest)
    status, printed, _ = script("benchmark.py", "--models", "fc_cvae")
    assert not status and "failed" not in printed
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    rows = {row[0].strip(): row for row in table[1:]}
    measured = [row for row in benchmark.rows_of(["fc_cvae"]) if multiplies_bfloat16() or row.precision == "float32"]
    assert list(rows) == [*map(str, measured), "fc_cvae, codes of 3,000 images from a file"]
    for row in rows.values():
        assert float(row[1].replace(",", "")) > 0 and float(row[5]) > 0


@pytest.mark.all
def test_the_benchmark_of_exports(script):
    """Three batch sizes of the SavedModel; three files of LiteRT, each smaller than the one before it, beside it."""
    status, printed, _ = script("benchmark.py", "--export", "--models", "fc_cvae")
    assert not status
    saved, files = ([line.split("|") for line in part.splitlines()[2:]] for part in printed.strip().split("\n\n"))
    assert [row[2].strip() for row in saved] == ["1", "64", "2048"]
    assert [row[2].split()[-1] for row in files] == ["SavedModel", "float32", "float16", "int8"]
    assert sorted((float(row[3]) for row in files[1:]), reverse=True) == [float(row[3]) for row in files[1:]]


def test_bare_products_are_those_of_the_encoder():
    """Without bias (which begins at 0) and relu, the encoder itself; convolutions by their own layers."""
    bare_products = benchmark.bare_products
    images = np.random.default_rng(0).random((5, 6, 7, 2), np.float32)
    for encoder in (networks.dense_encoder((6, 7, 2), 4, (8,)), networks.conv_encoder((6, 7, 2), 4)):
        expected = images
        for layer in encoder.layers:
            if hasattr(layer, "activation"):
                layer.activation = keras.activations.linear
            expected = layer(expected)
        np.testing.assert_allclose(bare_products(encoder)(images), expected, rtol=1e-4, atol=1e-5)


def test_protocols_have_files_of_their_own():
    settings = [[], ["--precision", "mixed_bfloat16"], ["--categorical", "24x4"]]
    settings.append(settings[1] + settings[2])
    settings += [["--learning-rate", "5e-4"], ["--learning-rate", "7e-4", "--optimizer", "RAdam"], ["--start-at-mean"]]
    settings += [[*given, "--seed", "7"] for given in settings]
    parser = compare_estimators.make_parser()
    for ending in (".md", ".png"):
        paths = {compare_estimators.comparison(parser.parse_args(given), ending) for given in settings}
        assert len(paths) == 14 and all(path.suffix == ending for path in paths)


def test_a_learning_rate_ends_no_name():
    """comparison_0.0005.md was comparison_0.md, as that of 0.0007 was."""
    parser = compare_estimators.make_parser()
    rates = ("5e-4", "7e-4")
    given = [parser.parse_args(["--learning-rate", rate]) for rate in rates]
    names = [compare_estimators.comparison(each, ".md").name for each in given]
    assert names == ["comparison_0.0005.md", "comparison_0.0007.md"]


@pytest.mark.all
@pytest.mark.parametrize("categorical", [[], ["--categorical", "3x4", "--start-at-mean"]], ids=["bits", "categories"])
def test_a_comparison_goes_on(prepared, apart, tmp_path, categorical):
    """In parts, with other distances between evaluations and a signal inside one, it ends as in one call."""
    prepared("mnist")
    (whole,), rows = apart("comparison_in_parts", tmp_path, categorical, timeout=900)
    assert [row["step"] for row in rows] == [4, 6, 12]
    columns = ("train_elbo", "test_bound", "test_bound_100", "gradient_variance")
    assert [rows[-1][name] for name in columns] == [whole[name] for name in columns]
    assert "| LeaveOneOut:2 | 2 | 12 |" in next((tmp_path / "parts").glob("*.md")).read_text()


@pytest.mark.all
def test_a_start_at_the_mean_image(prepared, apart, tmp_path):
    """At a rate of 1e-9 all images have about the loss of the first batch's mean image, and the KL is at most 3 ln 4.

    An untrained decoder differs a little from one code to the other. Without the start the loss is 784 ln 2 = 543.
    """
    prepared("mnist")
    row = apart("comparison_at_mean", tmp_path)
    images = np.concatenate([batch.numpy() for batch in datasets.load("mnist", "train", batch_size=1000)])
    first = next(iter(datasets.load("mnist", "train", batch_size=100, seed=0, epochs=1))).numpy()
    mean = np.clip(first.mean(axis=0), 0.01, 0.99)
    loss = -(images * np.log(mean) + (1 - images) * np.log1p(-mean)).mean(axis=0).sum()
    assert abs(-row["train_elbo"] - loss) < 25, (row, loss)


@pytest.mark.parametrize(
    ("between", "taken", "steps"),
    [
        (5000, 0, 500),
        (8000, 0, 500),
        (1000, 0, 100),
        (500, 0, 50),
        (7, 0, 1),
        (5001, 0, 3),
        (5000, 40, 40),
        (30, 40, 2),
    ],
)
def test_steps_of_a_call(between, taken, steps):
    """Ten calls or more between two evaluations, of equal length; 5001 is 3 times a prime; 30 and 40 have 10 in common.

    The length divides the steps that have been taken as well, so that the next evaluation is met.
    """
    assert compare_estimators.steps_per_call(between, taken) == steps


def test_the_figure_of_a_comparison(tmp_path):
    """A run in the middle of its training has fewer rows than the others."""
    rows = [{"step": 10.0 * i, "seconds": i / 3, "train_elbo": -200 / i} for i in range(1, 4)]
    path = tmp_path / "elbo.png"
    compare_estimators.draw({"one": rows, "two": rows[:1]}, path)
    image = imread(path)
    assert image.shape[1] > 1000 and len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 10
    assert list(tmp_path.iterdir()) == [path]
