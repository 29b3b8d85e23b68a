"""The scikit-learn estimators."""

import json
import pickle
import re

import joblib
import numpy as np
import pytest
import tensorflow as tf
from helpers import one_line
from scipy.ndimage import gaussian_filter
from sklearn import base, pipeline, preprocessing
from sklearn.utils.estimator_checks import parametrize_with_checks

from tf_isvae import BernoulliLatent, DiscreteVAE, datasets, estimators, evaluation, files, networks, training, zoo
from tf_isvae.wrappers import CodeClusterer, HashingTransformer, OutlierDetector

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((60, *SHAPE), np.float32)
SHORT = {"epochs": 1, "batch_size": 60}
ESTIMATORS = (
    HashingTransformer(latent_dim=10, packed=True, **SHORT),
    CodeClusterer(latent_dim=3, kl_epochs=0, **SHORT),
    OutlierDetector(latent_dim=3, num_samples=2, **SHORT),
)


@pytest.fixture(scope="module")
def model():
    """A model whose first bits say whether the first pixels are above one half."""
    encoder = networks.dense_encoder(SHAPE, 10, ())
    matrix = np.eye(16, 10, dtype=np.float32)
    encoder.set_weights([matrix, np.full(10, -0.5, np.float32)])
    return DiscreteVAE(encoder, BernoulliLatent(10), networks.dense_decoder(10, SHAPE, ()))


@pytest.fixture(scope="module")
def fitted():
    return [base.clone(estimator).fit(IMAGES) for estimator in ESTIMATORS]


def outputs(estimator, images):
    return estimator.transform(images) if hasattr(estimator, "transform") else estimator.predict(images)


def test_bits_are_those_of_the_pixels(model):
    bits = (IMAGES.reshape(-1, 16)[:, :10] > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(HashingTransformer(model).fit_transform(IMAGES), bits)
    packed = HashingTransformer(model, packed=True).fit_transform(IMAGES.reshape(-1, 16))
    assert packed.shape == (60, 2) and packed.dtype == np.uint8
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=10), bits)


@pytest.mark.all
@pytest.mark.parametrize("i", range(3))
def test_pickle_joblib_and_clone(fitted, i, tmp_path):
    estimator = fitted[i]
    expected = outputs(estimator, IMAGES)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    for other in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator.joblib")):
        np.testing.assert_array_equal(outputs(other, IMAGES), expected)
    assert repr(base.clone(estimator)) == repr(ESTIMATORS[i])


def test_a_trained_model_can_be_cloned(model):
    hashing = base.clone(HashingTransformer(model))
    assert hashing.model is not model
    np.testing.assert_array_equal(hashing.fit_transform(IMAGES), model.encode(IMAGES))


def test_in_a_pipeline(model):
    """Rows of 0 to 255 become images in [0, 1]; the name of the model stands for a trained one."""
    digits = next(iter(datasets.load("digits", "test", batch_size=30))).numpy()
    scale = preprocessing.FunctionTransformer(lambda rows: rows / 255)
    steps = pipeline.make_pipeline(scale, HashingTransformer("fc_bvae_mnist"))
    codes = steps.fit(255 * digits.reshape(-1, 784)).transform(255 * digits.reshape(-1, 784))
    # An image may cross the threshold if scaling has rounded it.
    assert (codes != zoo.load("fc_bvae_mnist").encode(digits)).mean() < 0.001
    assert steps[-1].image_shape_ == (28, 28, 1) and steps[-1].n_features_in_ == 784


@pytest.mark.all
def test_the_model_is_that_of_a_run(fitted, tmp_path):
    np.savez(tmp_path / "images.npz", images=IMAGES)
    settings = {"dataset": str(tmp_path / "images.npz"), "run_dir": str(tmp_path / "run"), "latent_dim": 10, **SHORT}
    training.train(training.Config(**settings))
    trained = zoo.load(tmp_path / "run")
    for one, other in zip(fitted[0].model_.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_settings_of_a_run_are_parameters():
    parameters = OutlierDetector(latent_dim=7, kl_start=3.0).get_params()
    assert parameters["latent_dim"] == 7 and parameters["kl_start"] == 3.0 and parameters["recipe"] == "best"
    assert "run_dir" not in parameters and "dataset" not in parameters
    with pytest.raises(TypeError, match="colour"):
        HashingTransformer(colour=True)


@pytest.mark.all
def test_clusters_are_categories(fitted):
    clusterer = fitted[1]
    np.testing.assert_array_equal(clusterer.codes_[clusterer.labels_], clusterer.model_.encode(IMAGES))
    np.testing.assert_array_equal(clusterer.predict(IMAGES), clusterer.labels_)
    # A category without a cluster.
    other = pickle.loads(pickle.dumps(clusterer))
    other.codes_ = np.array([[99]])
    assert (other.predict(IMAGES) == -1).all()


def test_outliers_are_below_the_threshold(fitted):
    detector = fitted[2]
    scores = detector.score_samples(IMAGES)
    np.testing.assert_allclose(detector.decision_function(IMAGES), scores - detector.offset_)
    assert (detector.predict(IMAGES) == -1).sum() == 6  # contamination 0.1 of 60
    # Of 8 codes, the log-likelihood is exact.
    np.testing.assert_allclose(scores, detector.model_.log_likelihood(IMAGES))


def test_the_recipe_for_search():
    hashing = HashingTransformer(latent_dim=3, recipe="hash", **SHORT).fit(IMAGES)
    assert hashing.model_.distortion == 0.1 and abs(float(hashing.model_.kl_weight) - 0.3) < 1e-6


def test_scores(model):
    """Regret is what fitting q to the image gains: the exact ELBO of few codes rises, and not above ln p(x)."""
    few = DiscreteVAE(
        networks.dense_encoder(SHAPE, 3, ()),
        BernoulliLatent(3),
        networks.dense_decoder(3, SHAPE, ()),
        estimator="Enumerated",
    )
    bound, exact = few.elbo(IMAGES), few.log_likelihood(IMAGES)
    regret = evaluation.typicality(few, IMAGES, "regret", num_samples=1, steps=300)
    np.testing.assert_allclose(evaluation.typicality(few, IMAGES, "elbo"), bound, rtol=1e-5)
    assert (regret < 1e-3).all() and (bound - regret < exact + 1e-3).all() and regret.mean() < -0.01
    detector = OutlierDetector(few, score="regret", num_samples=1, steps=300).fit(IMAGES)
    np.testing.assert_allclose(detector.score_samples(IMAGES), regret, atol=1e-3)


def test_regret_refines_once():
    """Of three draws with five steps: five estimates of the refinement, three before it and three after."""
    estimates = tf.Variable(0)

    def counting(posterior, log_likelihood, seed=None):
        estimates.assign_add(1)
        return estimators.LeaveOneOut()(posterior, log_likelihood, seed)

    model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=13, estimator=counting)
    regret = evaluation.typicality(model, IMAGES, "regret", num_samples=3, steps=5)
    assert estimates.numpy() == 5 + 3 + 3
    each = [model.elbo(IMAGES, seed) - model.elbo(IMAGES, seed, refine=5) for seed in range(3)]
    np.testing.assert_allclose(regret, np.mean(each, axis=0), rtol=1e-4, atol=1e-4)


def test_overlap():
    """Each blurred image beside its blurred reconstruction, by hand; a black image has none."""

    images = np.random.default_rng(3).random((5, 28, 28, 1), np.float32)
    images[4] = 0
    model = zoo.build("fc_bvae", image_shape=(28, 28, 1), latent_dim=13)
    found = evaluation.typicality(model, images, "overlap", num_samples=2, seed=1)
    reconstructions = (model.reconstruct(images, seed=2) + model.reconstruct(images, seed=3)) / 2
    for image, reconstruction, share in zip(images, reconstructions, found, strict=True):
        x, r = (gaussian_filter(np.float64(each[..., 0]), 1) for each in (image, reconstruction))
        assert share == pytest.approx(2 * (x * r).sum() / ((x**2).sum() + (r**2).sum()), abs=1e-4)
    assert found[4] == 0 and (found[:4] > 0.5).all()  # the reconstruction is grey


@pytest.mark.all
def test_the_script_for_outliers(script, tmp_path):
    """Black images among digits."""
    zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=3).save(tmp_path / "model.keras")
    np.savez(tmp_path / "black.npz", x_test=np.zeros((40, 8, 8), np.uint8))
    arguments = ["compare_outliers.py", "model.keras", "digits", "--outliers", "black.npz", "--images", 60]
    status, output, errors = script(*arguments, "--scores", "elbo", "regret", "overlap")
    assert status == 0, errors
    rows = dict(re.findall(r"^\| (\w+) \| ([01]\.\d{4}) \|$", output, re.M))
    assert list(rows) == ["elbo", "regret", "overlap", "IsolationForest", "OneClassSVM"]
    assert rows["overlap"] == "1.0000"  # what is black overlaps with nothing
    for wrong, parts in (
        (["model.keras", "digits"], ["either --outliers or --one-class"]),
        (["model.keras", "digits", "--one-class"], ["'model.keras'", "fc_bvae"]),
        (["model.keras", "digits", "--outliers", "black.npz", "--scores", "far"], ["--scores is 'far'", "regret"]),
        (["model.keras", "digits", "--outliers", "black.npz", "--images", "0"], ["--images is 0"]),
        (
            ["model.keras", "digits", "--outliers", "black.npz", "--latent-dim", "3"],
            ["--latent-dim is for --one-class"],
        ),
        (["fc_bvae", "digits", "--one-class", "--latent-dim", "many"], ["latent_dim is 'many'"]),
        (["model.keras", "digits", "--outliers", "black.npz", "--keep", "a.json"], ["--keep is for --one-class"]),
        (["fc_bvae", "digits", "--one-class", "--keep", "no/a.json"], ["no/a.json", "folder"]),
        (["fc_bvae", "digits", "--one-class", "--keep", "black.npz"], ["black.npz", "another file"]),
    ):
        status, output, errors = script("compare_outliers.py", *wrong)
        assert (status, output) == (2, "")
        one_line(errors, *parts)


@pytest.mark.all
def test_one_class_goes_on(script, tmp_path):
    """The figures of nine digits are kept, so one model is trained; the mean of all is taken by hand."""
    command = ["compare_outliers.py", "fc_bvae", "digits", "--one-class", "--scores", "overlap"]
    command += ["--latent-dim", 2, "--batch-size", 100, "--keep", "kept.json"]
    how = {"inliers": "digits", "scores": ["overlap"], "model": "fc_bvae", "latent_dim": 2, "batch_size": 100}
    figures = {name: 0.25 for name in ("overlap", "IsolationForest", "OneClassSVM")}
    kept = {"how": {**how, "epochs": 1}, "classes": {f"class {i}": figures for i in range(9)}}
    files.write_json("kept.json", kept)
    status, output, errors = script(*command, "--epochs", 1)
    assert (status, errors) == (0, "")
    now = json.loads((tmp_path / "kept.json").read_text())
    new = now["classes"].pop("class 9")
    assert now["classes"] == kept["classes"] and 0.5 < new["OneClassSVM"] < 1  # a digit is unlike the others
    for name, area in new.items():
        assert f"| {name} | {(9 * 0.25 + area) / 10:.4f} |" in output
    assert script(*command, "--epochs", 1) == (0, output, "")
    status, output, errors = script(*command, "--epochs", 2)
    assert (status, output) == (2, "")
    one_line(errors, "kept.json is not of this command and its settings")


@pytest.mark.parametrize(
    "estimator, given, parts",
    [
        (HashingTransformer("fc_cvae"), IMAGES, ["model is 'fc_cvae'", "bits", "fc_bvae"]),
        (CodeClusterer("fc_bvae"), IMAGES, ["model is 'fc_bvae'", "clusters", "fc_cvae"]),
        (HashingTransformer("no_such"), IMAGES, ["'no_such'", "fc_bvae_mnist"]),
        (HashingTransformer("fc_bvae_mnist", latent_dim=9), IMAGES, ["latent_dim is 9", "left out"]),
        (HashingTransformer("fc_bvae_mnist"), IMAGES, ["(60, 4, 4, 1)", "28, 28, 1"]),
        (HashingTransformer(epochs=0), IMAGES, ["epochs is 0"]),
        (HashingTransformer("cnn_bvae", recipe="hash"), IMAGES, ["recipe is 'hash'", "best, paper", "cnn_bvae"]),
        (HashingTransformer(distortion=2.0), IMAGES, ["distortion is 2.0", "share"]),
        (HashingTransformer(packed="yes"), IMAGES, ["packed is 'yes'"]),
        (HashingTransformer(image_shape=(4, 5, 1)), IMAGES.reshape(60, 16), ["(4, 5, 1)", "16"]),
        (HashingTransformer(), 255 * IMAGES, ["X have values", "divide by 255"]),
        (HashingTransformer(), IMAGES[:0], ["minimum of 1"]),
        (OutlierDetector(score="distance"), IMAGES, ["score is 'distance'", "elbo"]),
        (OutlierDetector(contamination=0.6), IMAGES, ["contamination is 0.6"]),
    ],
)
def test_bad_input(estimator, given, parts):
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as error:
        estimator.fit(given)
    one_line(error, *parts)


# --- scikit-learn's own checks.


class _Squeezed:
    """Takes numbers of any size. The checks' data are no images, whose values lie in [0, 1]; all else is as it is."""

    def _checked(self, images):
        return super()._checked(0.5 + np.arctan(images) / np.pi)


class AnyHashing(_Squeezed, HashingTransformer):
    pass


class AnyClusterer(_Squeezed, CodeClusterer):
    pass


class AnyDetector(_Squeezed, OutlierDetector):
    pass


# The checks that do not apply, and why.
_SCORE = "the parameter `score` is a text, and has the name of a method that this check calls"
_ORDER = "a matrix product in float32 adds in an order that depends on the row, so last bits may differ"
DO_NOT_APPLY = {
    AnyHashing: {},
    AnyClusterer: {},
    AnyDetector: {
        "check_fit_score_takes_y": _SCORE,
        "check_n_features_in_after_fitting": _SCORE,
        "check_pipeline_consistency": _SCORE,
        "check_methods_sample_order_invariance": _ORDER,
        "check_methods_subset_invariance": _ORDER,
    },
}


@pytest.mark.all
@parametrize_with_checks(
    [
        AnyHashing(latent_dim=3, epochs=1),
        # Two features tell less of their blob than the KL of a category costs, so the KL has next to no weight.
        AnyClusterer(latent_dim=3, epochs=60, batch_size=10, learning_rate=0.01, kl_weight=0.01, kl_epochs=0),
        AnyDetector(latent_dim=3, epochs=1),  # of so few codes, the scores are exact
    ],
    expected_failed_checks=lambda estimator: DO_NOT_APPLY[type(estimator)],
)
def test_check_estimator(estimator, check):
    check(estimator)
