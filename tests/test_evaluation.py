"""Evaluation against closed forms, NumPy and hand-made cases."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import one_line
from PIL import Image
from sklearn import metrics

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    callbacks,
    estimators,
    evaluation,
    networks,
    zoo,
)
from tf_isvae.commands.evaluate import WORDS

SHAPE = (2, 2, 1)
CLUSTERING = ("accuracy", "matched_accuracy", "nmi", "ari", "classes_found", "clusters")
IMAGES = np.random.default_rng(0).random((16, *SHAPE), np.float32)


def build(latent, estimator=None, seed=1):
    keras.utils.set_random_seed(seed)
    return DiscreteVAE(
        networks.dense_encoder(SHAPE, latent.encoder_units, hidden=(5,)),
        latent,
        networks.dense_decoder(latent.units, SHAPE, hidden=(5,)),
        estimator=estimator,
        seed=0,
    )


@pytest.mark.parametrize("bias", [0.0, *(pytest.param(bias, marks=pytest.mark.all) for bias in (-2.0, 1.0))])
def test_gradient_variance_of_one_bit_is_the_closed_form(bias):
    """One pixel x, eta = w x + v: the gradient is g (x, 1) with Var g = q (1 - q) ((1 - q) a + q b)^2.

    The variance of a two-valued variable from 4,000 draws has a relative standard error of sqrt((kurtosis - 1) / 4000),
    at most 4% here; 20% are five of them: a false alarm in 2 million.
    """
    x = 0.6
    model = DiscreteVAE(
        networks.dense_encoder((1, 1, 1), 1, hidden=()), BernoulliLatent(1), networks.dense_decoder(1, (1, 1, 1), ())
    )
    model.encoder.set_weights([np.array([[0.5]]), np.array([bias])])
    model.decoder.set_weights([np.array([[1.5]]), np.array([-0.5])])
    q = 1 / (1 + np.exp(-(0.5 * x + bias)))
    log_p = {z: x * (1.5 * z - 0.5) - np.log1p(np.exp(1.5 * z - 0.5)) for z in (0, 1)}
    variance = q * (1 - q) * ((1 - q) * log_p[1] + q * log_p[0]) ** 2
    found = evaluation.gradient_variance(model, np.full((1, 1, 1, 1), x, np.float32), draws=4000)
    assert found == pytest.approx(variance * (x**2 + 1) / 2, rel=0.2)


def test_gradient_variance_of_estimators():
    model = build(BernoulliLatent(4))
    exact = evaluation.gradient_variance(model, IMAGES, 20, estimators.Enumerated())
    disarm = evaluation.gradient_variance(model, IMAGES, 200, estimators.DisARM())
    # Two decoder evaluations each.
    paper = evaluation.gradient_variance(model, IMAGES, 200, estimators.ImportanceSampling(2))
    assert exact < 1e-12 < disarm < paper


@pytest.mark.all
def test_variance_on_a_trained_model_is_no_higher_than_the_papers():
    """At equal decoder evaluations. Each variance, a mean over 200 weights and 200 draws, is good to about a tenth;
    those compared differ by a factor of 2 or more."""
    latent = BernoulliLatent(6)
    model = build(latent, estimators.DisARM())
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    rows = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.float32).reshape(16, *SHAPE)
    model.fit(np.repeat(rows, 8, 0), epochs=60, batch_size=16, verbose=0)

    def variance(estimator):
        return evaluation.gradient_variance(model, rows, 200, estimator)

    paper = {m: variance(estimators.ImportanceSampling(m)) for m in (2, 3, 4)}
    assert variance(estimators.LeaveOneOut(2)) < paper[2]
    assert variance(estimators.DisARM(1)) < paper[2]
    assert variance(estimators.Linearized(estimators.DisARM(1))) < paper[3]
    assert variance(estimators.LeaveOneOut(4)) < paper[4]
    assert variance(estimators.ARMS(4)) < paper[4]


@pytest.mark.all
def test_gradient_variance_as_training_goes():
    """The last value is that of the function for the weights after the last epoch; recorded in the history."""
    model = build(BernoulliLatent(4))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    recorded = model.fit(IMAGES, epochs=2, callbacks=[callbacks.GradientVariance(IMAGES[:8], draws=30)], verbose=0)
    values = recorded.history["gradient_variance"]
    assert len(values) == 2 and values[0] != values[1]
    assert values[1] == pytest.approx(evaluation.gradient_variance(model, IMAGES[:8], draws=30, seed=0), rel=1e-5)
    for wrong in (1, True, 2.0):
        with pytest.raises(ValueError, match="GradientVariance: draws is .* at least 2"):
            callbacks.GradientVariance(IMAGES, draws=wrong)


@pytest.mark.all
def test_annealing_ends_with_its_training(tmp_path):
    """However it ends: by early stopping that restores a best epoch, by an error, or in a copy saved in its middle."""
    model = build(BernoulliLatent(2))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    annealing = callbacks.KLAnnealing(start=30.0, epochs=4)
    best = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)  # the first
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    model.fit(IMAGES, epochs=4, verbose=0, callbacks=[annealing, best, saved])
    copy = keras.models.load_model(tmp_path / "1.keras")

    def fail(epoch, logs):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        copy.fit(IMAGES, epochs=4, verbose=0, callbacks=[annealing, keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    for one in (model, copy):
        # A step without annealing is that of a model which has never met it.
        fresh = build(BernoulliLatent(2))
        fresh.set_weights(one.get_weights())
        for each in (one, fresh):
            each.compile(optimizer=keras.optimizers.SGD(0.1))
            each.seed = 5
            each.fit(IMAGES, epochs=1, batch_size=len(IMAGES), shuffle=False, verbose=0)
        for mine, other in zip(one.get_weights(), fresh.get_weights(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.all
def test_an_estimator_has_no_bias_against_itself():
    """Of a sampled reference in many dimensions, nearly all noise: its direction must not be that of the same draws.

    An unbiased estimator has a p-value below 1e-4 with probability at most 1e-4.
    """
    keras.utils.set_random_seed(0)
    model = zoo.build("fc_bvae", image_shape=(28, 28, 1))
    images = np.random.default_rng(0).random((20, 28, 28, 1), np.float32)
    same = estimators.ImportanceSampling(1)
    for draws in (2, 60):
        assert evaluation.estimator_bias(model, images, same, same, draws=draws)["p_value"] > 1e-4


@pytest.mark.parametrize("bias", [12.0, 60.0])
def test_rounding_is_no_bias(bias):
    """A posterior that is certain of one category: the exact gradient is 0 but for rounding, and the samples' is 0."""
    model = build(CategoricalLatent(6))
    *weights, last = model.encoder.get_weights()
    model.encoder.set_weights([*weights, np.eye(6, dtype=np.float32)[0] * bias])
    found = evaluation.estimator_bias(model, IMAGES, estimators.LeaveOneOut(4), draws=200)
    assert found["p_value"] > 1e-4
    assert bias < 60 or np.isnan(found["relative_bias"])


@pytest.mark.all
@pytest.mark.parametrize("latent", [BernoulliLatent(3), CategoricalLatent(4)], ids=["bits", "categories"])
def test_estimator_bias_tells_biased_from_unbiased(latent):
    """An unbiased estimator has a p-value below 1e-4 with probability at most 1e-4."""
    model = build(latent)
    # Far from the start, so that straight-through's bias is of the size of the gradient.
    model.decoder.set_weights([3 * w for w in model.decoder.get_weights()])
    for unbiased in (estimators.LeaveOneOut(4), estimators.ImportanceSampling(8)):
        assert evaluation.estimator_bias(model, IMAGES, unbiased, draws=300)["p_value"] > 1e-4
    biased = evaluation.estimator_bias(model, IMAGES, estimators.StraightThrough(4), draws=300)
    assert biased["p_value"] < 1e-4 and abs(biased["relative_bias"]) > 0.01
    two = evaluation.estimator_bias(model, IMAGES, estimators.LeaveOneOut(4), estimators.LeaveOneOut(8), draws=300)
    assert two["p_value"] > 1e-4
    two = evaluation.estimator_bias(model, IMAGES, estimators.StraightThrough(4), estimators.LeaveOneOut(8), draws=300)
    assert two["p_value"] < 1e-4


@pytest.mark.parametrize(
    "latent", [BernoulliLatent(3), CategoricalLatent(4, 2), GaussianLatent(3)], ids=["bits", "categories", "gaussian"]
)
def test_kl_per_unit_adds_up(latent):
    q = latent.posterior(np.random.default_rng(1).normal(size=(5, latent.encoder_units)))
    parts = latent.kl_per_unit(q)
    assert parts.shape == (5, latent.code_units)
    np.testing.assert_allclose(np.sum(parts, axis=1), latent.kl(q), rtol=1e-5)


def test_code_statistics_of_bits():
    model = build(BernoulliLatent(4))
    model.encoder.set_weights([20 * w for w in model.encoder.get_weights()])
    found = evaluation.code_statistics(model, IMAGES)
    q = 1 / (1 + np.exp(-np.float64(model.encoder(IMAGES))))
    codes = model.encode(IMAGES)
    assert found["active_units"] == (q.var(axis=0) > 0.01).sum()
    assert found["codes_used"] == len({tuple(code) for code in codes})
    np.testing.assert_allclose(found["usage"], codes.mean(axis=0))
    kl = np.stack([np.log(2) - scipy.stats.bernoulli(p).entropy() for p in q])
    np.testing.assert_allclose(found["kl_per_unit"], kl.mean(axis=0), rtol=1e-3, atol=1e-6)
    entropy = sum(scipy.stats.entropy([p, 1 - p], base=2) for p in q.mean(axis=0))
    assert found["mean_entropy"] == pytest.approx(entropy, rel=1e-5)


def test_code_statistics_of_categories_and_of_data_sets():
    import tensorflow as tf

    model = build(CategoricalLatent(3, 2))
    model.encoder.set_weights([20 * w for w in model.encoder.get_weights()])
    found = evaluation.code_statistics(model, tf.data.Dataset.from_tensor_slices(IMAGES).batch(5))
    labelled = tf.data.Dataset.from_tensor_slices((IMAGES, np.arange(len(IMAGES))))
    for name, value in evaluation.code_statistics(model, labelled.batch(5)).items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    codes = model.encode(IMAGES)
    for variable in range(2):
        usage = np.array([(codes[:, variable] == value).mean() for value in range(3)])
        np.testing.assert_allclose(found["usage"][variable], usage)
        used = usage[usage > 0]
        assert found["perplexity"][variable] == pytest.approx(np.exp(-(used * np.log(used)).sum()))
    q = scipy.special.softmax(np.float64(model.encoder(IMAGES)).reshape(-1, 2, 3), axis=-1).mean(axis=0)
    assert found["mean_entropy"] == pytest.approx(scipy.stats.entropy(q, axis=1, base=2).sum(), rel=1e-5)
    assert set(evaluation.code_statistics(build(GaussianLatent(2)), IMAGES)) == {
        "active_units",
        "kl_per_unit",
        "codes_used",
    }


def test_clustering():
    labels = np.array([0, 0, 0, 1, 1, 2])
    same = evaluation.clustering(np.array([5, 5, 5, 3, 3, 9]), labels)
    assert same == {"accuracy": 1.0, "matched_accuracy": 1.0, "nmi": 1.0, "ari": 1.0, "classes_found": 3, "clusters": 3}
    # Class 0 in two clusters: pure, but only one of them can stand for it.
    split = evaluation.clustering(np.array([[0, 1], [0, 1], [1, 1], [2, 0], [2, 0], [3, 0]]), labels)
    assert split["accuracy"] == 1.0 and split["matched_accuracy"] == pytest.approx(5 / 6) and split["nmi"] < 1
    one = evaluation.clustering(np.zeros(6, int), labels)
    assert one["accuracy"] == 0.5 and one["nmi"] == pytest.approx(0) and one["classes_found"] == 1


def test_clusters_beside_k_means():
    """On three kinds of images that differ in all pixels, k-means finds the kinds; the model knows two of them."""
    rng = np.random.default_rng(0)
    kinds = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1)), np.diag([1.0, 1.0])[..., None]])
    labels = np.repeat([0, 1, 2], 20)
    images = (0.8 * kinds[labels] + 0.2 * rng.random((60, 2, 2, 1))).astype(np.float32)
    encoder = networks.dense_encoder((2, 2, 1), 3, ())
    # Category 0 if the corner beside the diagonal is dark and the diagonal too, else 1 or 2 by the corner.
    encoder.set_weights([10 * np.array([[-1, 1, 1], [0, 2, -2], [0, 0, 0], [-1, 1, 1.0]]), np.array([8.0, -10, 0])])
    model = DiscreteVAE(encoder, CategoricalLatent(3), networks.dense_decoder(3, (2, 2, 1), ()))
    found = evaluation.compare_clusterings(model, (images, labels), (images, None), seeds=2)
    assert found["categories"]["ari"] == found["k-means on pixels"]["ari"] == 1.0
    shown = evaluation.templates(model, images, count=2, neighbours=3)
    assert [template.share for template in shown] == pytest.approx([1 / 3] * 2) and len(shown) == 2
    for template in shown:
        np.testing.assert_allclose(template.image, model.decode([template.code])[0], rtol=1e-6)
        distances = np.square(images - template.image).sum((1, 2, 3))
        np.testing.assert_array_equal(template.nearest, np.argsort(distances, kind="stable")[:3])
    bits = DiscreteVAE(encoder, BernoulliLatent(3), networks.dense_decoder(3, (2, 2, 1), ()))
    for call, parts in (
        (lambda: evaluation.templates(bits, images), ["are no clusters"]),
        (lambda: evaluation.templates(model, images, neighbours=61), ["neighbours is 61", "at most 60"]),
        (lambda: evaluation.compare_clusterings(model, (images, None), (images, None)), ["test has no labels"]),
        (lambda: evaluation.compare_clusterings(model, (images, labels[1:]), (images, None)), ["one label for each"]),
        (
            lambda: evaluation.compare_clusterings(model, (images, labels), (images, None), {"one": bits}),
            ["codes of one are no real numbers", "fc_vae"],
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        one_line(error, *parts)


@pytest.mark.all
def test_the_script_shows_clusters(script, tmp_path):
    zoo.build("fc_cvae", image_shape=(8, 8, 1), latent_dim=5).save(tmp_path / "model.keras")
    zoo.build("fc_vae", image_shape=(8, 8, 1), latent_dim=2).save(tmp_path / "real.keras")
    command = ["evaluate.py", "model.keras", "--dataset", "digits"]
    given = ["--clusters", "--beside", "real.keras", "--picture", "templates.png", "--to", "figures.json"]
    status, output, errors = script(*command, *given)
    assert (status, errors) == (0, "")
    rows = [line.split(" | ") for line in output.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "| categories",
        "| k-means on pixels",
        "| k-means on the means of real.keras",
    ]
    assert {"templates.png", "figures.json"} < {path.name for path in tmp_path.iterdir()}
    for wrong, parts in (
        (["--picture", "a.png"], ["are for --clusters"]),
        (["--clusters", "--picture", "a.jpg"], ["a.jpg", ".png"]),
        (["--clusters", "--beside", "model.keras"], ["codes of model.keras are no real numbers"]),
    ):
        status, output, errors = script(*command, *wrong)
        assert (status, output) == (2, "")
        one_line(errors, *parts)


@pytest.mark.all
def test_clusters_of_a_seed(script, tmp_path):
    """Each run is trained once, and its figures are those of its codes; a row is the mean over the seeds."""
    command = ["compare_clusters.py", "fc_cvae", "--dataset", "digits", "--sizes", 3, "--seeds", 1]
    command += ["--epochs", 1, "--batch-size", 500, "--run-dir", "runs"]
    status, output, errors = script(*command)
    assert (status, errors) == (0, "")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"fc_cvae_3_0", "fc_vae_means_0", "clusters.md"}
    table = (tmp_path / "runs" / "clusters.md").read_text()
    assert script(*command) == (0, "\n" + table, "") and output.endswith(table)
    model = zoo.load(tmp_path / "runs" / "fc_cvae_3_0")
    images, labels = evaluation.images_for(model, "digits", "test")
    nmi = metrics.normalized_mutual_info_score(labels, model.encode(images)[:, 0])
    (row,) = [line for line in table.splitlines() if line.startswith("| fc_cvae, 3 |")]
    assert row.split(" | ")[3] == f"{nmi:.3f} ± 0.000"
    seeds = [dict.fromkeys(("clusters", "matched_accuracy", "nmi", "ari", "accuracy"), value) for value in (0.4, 0.6)]
    import compare_clusters

    row = compare_clusters.table({"both": seeds}).splitlines()[-1]
    assert row == "| both | 0.5 |" + " 0.500 ± 0.141 |" * 4  # sqrt(2 * 0.1^2 / (2 - 1))
    for wrong, parts in (
        (["fc_bvae"], ["the codes of fc_bvae are no clusters", "fc_cvae"]),
        (["fc_cvae", "--seeds", 0], ["--seeds is 0"]),
        (["fc_cvae", "--sizes", "ten"], ["latent_dim is 'ten'"]),
        (["fc_cvae", "--dataset", "no.npz"], ["no.npz"]),
    ):
        status, output, errors = script(command[0], *wrong)
        assert (status, output) == (2, "")
        one_line(errors, *parts)


def test_retrieval():
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
    # From 000 the order is the one above; relevant are places 1 and 3: (1/1 + 2/3) / 2.
    found = evaluation.retrieval(codes, [7, 8, 7, 8], [[0, 0, 0]], [7])
    assert found == pytest.approx((1 + 2 / 3) / 2)
    assert evaluation.retrieval(codes, [7, 8, 7, 8], [[1, 1, 1]], [8], top=1) == 1
    assert evaluation.retrieval(codes, [7, 8, 7, 8], [[1, 1, 1]], [9]) == 0


def test_kl_annealing_falls_geometrically_and_leaves_weight_1():
    weights = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(float(model.kl_annealing)))
    model = build(BernoulliLatent(2))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    annealing = callbacks.KLAnnealing(start=16.0, epochs=4)
    history = model.fit(IMAGES, epochs=6, verbose=0, callbacks=[annealing, watch]).history
    np.testing.assert_allclose(weights, [16, 8, 4, 2, 1, 1])
    assert float(model.kl_annealing) == float(model.kl_weight) == 1
    # The logs have weight 1.
    np.testing.assert_allclose(history["loss"], np.subtract(history["kl"], history["log_likelihood"]), rtol=1e-5)


@pytest.mark.parametrize("share, epochs, expected", [(0.5, 4, [16, 4, 1, 1]), (0.25, 4, [16, 1, 1, 1])])
def test_kl_annealing_over_a_share_of_the_run(share, epochs, expected):
    weights = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(float(model.kl_annealing)))
    model = build(BernoulliLatent(2))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(IMAGES, epochs=epochs, verbose=0, callbacks=[callbacks.KLAnnealing(16.0, share), watch])
    np.testing.assert_allclose(weights, expected)


@pytest.mark.all
@pytest.mark.parametrize("annealed, epochs", [(6, 4), (2, 2)])
def test_kl_annealing_that_cannot_end_is_warned_of(annealed, epochs):
    """The weight of the last epoch is 16^(1 - 3/6) and 16^(1 - 1/2), both 4."""
    model = build(BernoulliLatent(2))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning) as warned:
        model.fit(IMAGES, epochs=epochs, verbose=0, callbacks=[callbacks.KLAnnealing(16.0, annealed)])
    one_line(warned[0].message, f"epochs is {annealed}, and fit ends after {epochs}", "is 4 in the last", "epochs=0.5")


def test_variance_by_certainty():
    """Of a decoder that ignores z, ln p = a everywhere: the variance of eq. 20 is q (1 - q) a^2, exactly known."""
    eta = np.array([0.0, 0.5, 6.0, -7.0, 2.0], np.float32)
    encoder = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    decoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Reshape((2, 2, 1))])
    encoder.set_weights([np.zeros((4, 5)), eta])
    decoder.set_weights([np.zeros((5, 4)), np.zeros(4)])
    model = DiscreteVAE(encoder, BernoulliLatent(5), decoder)
    figures = evaluation.variance_by_certainty(model, np.zeros((200, 2, 2, 1), np.float32), draws=200)
    q = 1 / (1 + np.exp(-eta.astype(np.float64)))
    expected = q * (1 - q) * (4 * np.log(2)) ** 2
    assert (figures["sure_bits"], figures["unsure_bits"]) == (pytest.approx(0.4), pytest.approx(0.4))
    # 80,000 draws of each kind: the mean variances are known to 1% and, of the rare bits, to 9% (five standard errors
    # and more below).
    assert figures["eta_variance_unsure"] == pytest.approx(expected[:2].mean(), rel=0.03)
    assert figures["eta_variance_sure"] == pytest.approx(expected[2:4].mean(), rel=0.45)


def test_certainty_is_of_bits():
    for latent in (CategoricalLatent(2, 2), GaussianLatent(2)):
        with pytest.raises(ValueError, match=f"model has a {type(latent).__name__}; it must have bits"):
            evaluation.variance_by_certainty(build(latent), IMAGES, draws=2)


@pytest.mark.parametrize(
    "latent, own",
    [
        (BernoulliLatent(3), {"sure_bits", "unsure_bits", "eta_variance_unsure", "retrieval_map_100"}),
        (CategoricalLatent(2), {"perplexity", "classes", *(f"cluster_{name}" for name in CLUSTERING)}),
        # Too many codes to be clusters.
        pytest.param(CategoricalLatent(4, 24), {"perplexity"}, marks=pytest.mark.all),
        pytest.param(GaussianLatent(2), set(), marks=pytest.mark.all),
    ],
    ids=["bits", "category", "categories", "gaussian"],
)
def test_the_figures_of_each_latent(latent, own):
    """Each figure is that of the function it comes from, on the images that the docstring names."""
    keras.utils.set_random_seed(0)
    shape = (8, 8, 1)
    model = DiscreteVAE(
        networks.dense_encoder(shape, latent.encoder_units, hidden=()),
        latent,
        networks.dense_decoder(latent.units, shape, hidden=()),
        estimator=estimators.Reparameterized() if isinstance(latent, GaussianLatent) else None,
        seed=0,
    )
    figures = evaluation.evaluate(model, **evaluation.data_for(model, "digits"))
    always = {"test_images", "test_neg_elbo", "test_ln_p", "test_ln_p_kind", "first_1000_neg_elbo", "first_1000_ln_p"}
    always |= {"gradient_variance", "active_units", "codes_used", "detail_kept"}
    always |= {"samples_like_one_class", "test_like_one_class"}
    assert set(figures) == always | own <= set(WORDS)
    images, labels = evaluation.images_for(model, "digits", "test")
    assert images.shape == (360, *shape) and labels.shape == (360,)
    assert figures["test_neg_elbo"] == pytest.approx(-model.elbo(images, seed=0).mean())
    assert figures["first_1000_neg_elbo"] == figures["test_neg_elbo"]  # there are 360 images
    assert figures["test_ln_p_kind"] == ("exact" if latent.enumerable else "bound of 100 samples")
    assert figures["test_ln_p"] == pytest.approx(model.log_likelihood(images, 100, seed=0).mean())
    clusters = evaluation.clustering(model.encode(images), labels)
    assert [figures[f"cluster_{name}"] for name in clusters if f"cluster_{name}" in own] == (
        list(clusters.values()) if "classes" in own else []
    )


def test_images_for_a_model():
    """In the model's shape; `count` of them in an order of their own; None for labels that there are not."""
    model = zoo.build("fc_bvae", image_shape=(6, 5, 3), latent_dim=2)
    images, labels = evaluation.images_for(model, "digits", "train", count=40)
    assert images.shape == (40, 6, 5, 3) and images.dtype == np.float32 and labels.shape == (40,)
    again, _ = evaluation.images_for(model, "digits", "train", count=40)
    np.testing.assert_array_equal(images, again)
    binary, _ = evaluation.images_for(model, "digits", "test", binarize="dynamic")
    assert set(np.unique(binary)) == {0, 1}
    unlabelled, none = evaluation.images_for(model, IMAGES, "train")
    assert unlabelled.shape == (16, 6, 5, 3) and none is None
    with pytest.raises(ValueError, match="nosuch"):
        evaluation.images_for(model, "digits", "nosuch")


def test_detail_of_stripes():
    """Rows that alternate between 0 and 1: every difference down is 1, every one across 0."""
    stripes = np.broadcast_to(np.array([0.0, 1, 0, 1])[None, :, None, None], (3, 4, 5, 1))
    assert evaluation.detail(stripes) == 1
    assert evaluation.detail(stripes / 2) == 0.25


def test_share_like_one_class():
    """Training images on a line, ten near 0 and ten near 1: nine of ten labels are enough, eight are not."""
    train = np.concatenate([0.01 * np.arange(10), 1 - 0.01 * np.arange(10)]).reshape(20, 1, 1, 1)
    images = np.array([0.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    for others, expected in ((1, 1.0), (2, 1 / 3)):
        labels = np.array([4] * (10 - others) + [7] * others + [2] * 10)
        assert evaluation.share_like_one_class(images, train, labels) == pytest.approx(expected)


def test_without_labels_the_figures_that_need_none_remain():
    model, unlabelled, told = build(BernoulliLatent(3)), (IMAGES, None), []
    figures = evaluation.evaluate(model, unlabelled, unlabelled, progress=told.append)
    assert figures["test_images"] == len(IMAGES) and "sure_bits" in figures
    assert len(told) >= 3 and f"ln p(x) of {len(IMAGES)} images" in told
    assert not {"retrieval_map_100", "samples_like_one_class", "classes"} & set(figures)


def test_flat_images_have_no_detail_to_keep():
    flat = np.broadcast_to(np.float32([0.0, 0.3, 1.0])[:, None, None, None], (3, *IMAGES.shape[1:]))
    figures = evaluation.evaluate(build(BernoulliLatent(3)), (flat, None), (flat, None))
    assert "detail_kept" not in figures
    assert all(np.isfinite(value) for value in figures.values() if not isinstance(value, str))


@pytest.mark.all
def test_the_script_says_what_each_figure_is(script, tmp_path):
    zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=5).save(tmp_path / "model.keras")
    status, output, errors = script("evaluate.py", "model.keras", "--dataset", "digits", "--to", "figures.json")
    assert (status, errors) == (0, "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(output.splitlines()) == len(figures) and "_" not in output
    assert max(map(len, output.splitlines())) < 80
    assert re.search(r"^-ELBO, nats an image +(\S+)$", output, re.M)[1] == f"{figures['test_neg_elbo']:.6g}"


@pytest.mark.all
def test_labels_of_ones_own_images(tmp_path):
    """Class subfolders, one grey and one white: clusters and retrieval are measured on them as on any labels."""
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("grey", 90), ("white", 255)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.array([[0, level], [0, level]], np.uint8)).save(folder / f"{i}.png")
    figures = {}
    for latent in (BernoulliLatent(2), CategoricalLatent(3)):
        model = build(latent)
        data = evaluation.data_for(model, tmp_path)
        assert data["test"][1].tolist() == [0] * 4 + [1] * 4
        figures |= evaluation.evaluate(model, **data)
    assert figures["classes"] == 2 and 0 < figures["retrieval_map_100"] <= 1
    assert figures["test_like_one_class"] == 1  # the ten nearest of each are of its class
    # Labels of the test images alone, and less training images than neighbours.
    images, labels = data["test"]
    assert {"classes"} == set(evaluation.evaluate(model, (images, labels), (images, None))) & {
        "classes",
        "retrieval_map_100",
        "samples_like_one_class",
    }
    assert "samples_like_one_class" not in evaluation.evaluate(model, (images, labels), (images, labels))
