"""zoo: every name builds what it says; trained models are found by name and by path."""

import shutil
import zipfile

import keras
import numpy as np
import pytest
from helpers import ROOT, needs_bfloat16

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    GaussianLatent,
    datasets,
    estimators,
    likelihoods,
    training,
    zoo,
)

PAPERS = ["fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae"]
HYBRIDS = ["fc_hvae", "cnn_hvae", "fc_hbvae"]
NAMES = [*PAPERS, "fc_vae", *HYBRIDS]


def test_the_names_are_the_papers_the_conventional_vae_and_hybrids():
    assert list(zoo.MODELS) == NAMES


def test_the_conventional_vae():
    model = zoo.build("fc_vae")
    assert type(model.latent) is GaussianLatent and model.latent.units == 50
    assert type(model.estimator) is estimators.Reparameterized and model.estimator.num_samples == 1
    # The networks of fc_bvae, but for the encoder's output: a mean and a scale for each unit.
    like = zoo.build("fc_bvae")
    assert [w.shape for w in model.decoder.weights] == [w.shape for w in like.decoder.weights]
    assert [w.shape for w in model.encoder.weights][:2] == [w.shape for w in like.encoder.weights][:2]
    assert model.encoder.output_shape == (None, 100)
    assert type(zoo.build("fc_vae", estimator=estimators.ImportanceSampling()).estimator) is not type(model.estimator)
    for recipe in ("best", "paper"):
        assert training.Config(model="fc_vae", recipe=recipe).estimator == "Reparameterized"


@pytest.mark.parametrize("name", PAPERS)
def test_defaults_are_the_papers(name):
    model = zoo.build(name)
    assert model.name == name and model.image_shape == (28, 28, 1)
    if name.endswith("bvae"):
        assert type(model.latent) is BernoulliLatent and model.latent.units == 50
    else:
        assert type(model.latent) is CategoricalLatent
        assert (model.latent.categories, model.latent.num_variables) == (100, 1)
    has_convolutions = [any("Conv" in type(la).__name__ for la in net.layers) for net in (model.encoder, model.decoder)]
    assert has_convolutions == [name.startswith("cnn")] * 2
    best = estimators.DisARM if name.endswith("bvae") else estimators.Enumerated
    assert type(model.estimator) is best
    assert type(model.likelihood) is likelihoods.Bernoulli
    colour = zoo.build("fc_bvae", (2, 2, 3), 3)
    assert likelihoods.name_of(colour.likelihood) == "DiscretizedLogistic:channel"
    assert zoo.build("cnn_bvae", (2, 2, 3), 3, likelihood="Gaussian:0.5").likelihood.scale == 0.5


@pytest.mark.parametrize("name", HYBRIDS[:2])
def test_hybrids(name):
    latent = zoo.build(name, (5, 7, 3), "4x2").latent
    assert [(type(part), part.units) for part in latent.parts] == [(CategoricalLatent, 4), (GaussianLatent, 2)]
    model = zoo.build(name, (5, 7, 3), 4, seed=0)
    assert model.latent.feature_units == 10 and estimators.name_of(model.estimator) == "Hybrid+LeaveOneOut:2"
    codes, features = model.encode(np.zeros((3, 5, 7, 3), np.float32))
    assert codes.shape == (3, 1) and features.shape == (3, 10)
    assert model.decode(codes, features).shape == (3, 5, 7, 3)
    config = training.Config(model=name, epochs=6)
    assert (config.prior, config.warm_epochs) == ("clusters", 2)
    assert training.Config(model=name, prior="uniform").warm_epochs == 0


def test_the_hybrid_of_bits():
    latent = zoo.build("fc_hbvae").latent
    assert [(type(part), part.units) for part in latent.parts] == [(BernoulliLatent, 40), (GaussianLatent, 10)]
    model = zoo.build("fc_hbvae", (5, 7, 3), 4, seed=0)
    assert estimators.name_of(model.estimator) == "Hybrid+DisARM:1"
    codes, features = model.encode(np.zeros((3, 5, 7, 3), np.float32))
    assert codes.shape == (3, 4) and features.shape == (3, 10)
    assert model.decode(codes, features).shape == (3, 5, 7, 3)
    config = training.Config(model="fc_hbvae", latent_dim="4x2")
    assert (config.prior, config.warm_epochs) == ("uniform", 0)
    assert (config.first_estimator, config.estimator) == ("Hybrid+ReinMax", "Hybrid+DisARM:1")
    with pytest.raises(ValueError, match="recipe is 'hash'; it must be one of best, paper for the model fc_hbvae"):
        training.Config(model="fc_hbvae", recipe="hash")  # search takes no bits that have Gaussians beside them


@pytest.mark.parametrize("name", [*PAPERS, "fc_vae"])
@pytest.mark.parametrize("image_shape, latent_dim", [((1, 1, 1), 1), ((5, 7, 3), 6), ([8, 8, 1], 3)], ids=str)
def test_sizes(name, image_shape, latent_dim):
    model = zoo.build(name, image_shape, latent_dim)
    images = np.random.default_rng(0).uniform(size=(3, *image_shape)).astype(np.float32)
    codes = model.encode(images)
    assert codes.shape == (3, 1 if name.endswith("cvae") else latent_dim)
    decoded = model.decode(codes)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_more_categories_than_can_be_enumerated():
    model = zoo.build("fc_cvae", (1, 1, 1), 4097)
    assert type(model.estimator) is estimators.LeaveOneOut
    assert np.isfinite(model.elbo(np.zeros((2, 1, 1, 1), np.float32))).all()


def test_options_reach_the_model():
    estimator, likelihood = estimators.ImportanceSampling(3), likelihoods.Gaussian(0.5)
    model = zoo.build("fc_bvae", (2, 2, 1), 3, estimator=estimator, likelihood=likelihood, seed=12)
    assert model.estimator is estimator and model.likelihood is likelihood and model.seed == 12


def test_set_random_seed_fixes_the_initial_weights():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return zoo.build("fc_bvae", (2, 2, 1), 3).encoder.get_weights()[0]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.any(weights(1) != weights(2))


# --- Trained models.


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of models as scripts/export.py lays them out, with what does not belong there; and the model."""
    shelf = tmp_path_factory.mktemp("shelf")
    keras.utils.set_random_seed(0)
    model = zoo.build("fc_bvae", (4, 3, 1), 5, seed=1)
    for name in ("digits", "letters"):
        (shelf / name / "1").mkdir(parents=True)
        model.save(shelf / name / f"{name}.keras")
    (shelf / "letters" / ".0123.keras").write_text("being written")
    (shelf / "empty").mkdir()
    (shelf / "README.md").write_text("not a model")
    return shelf, model


@pytest.fixture
def found(shelf, monkeypatch):
    monkeypatch.setenv("TF_ISVAE_MODELS", str(shelf[0]))
    return shelf


def equal(one, other):
    images = np.random.default_rng(0).random((7, 4, 3, 1), np.float32)
    np.testing.assert_array_equal(one.encode(images), other.encode(images))
    np.testing.assert_array_equal(one.decode(one.encode(images)), other.decode(other.encode(images)))


def test_names_of_trained_models(found, monkeypatch):
    in_the_clone = sorted(path.parent.name for path in ROOT.glob("exported_models/*/*.keras"))
    assert zoo.names() == sorted(["digits", "letters", *in_the_clone])
    monkeypatch.delenv("TF_ISVAE_MODELS")
    assert zoo.names() == in_the_clone


def test_load_by_name(found):
    shelf, model = found
    for name in ("digits", "letters"):
        equal(zoo.load(name), model)


def test_load_by_path(shelf, tmp_path, monkeypatch):
    shelf, model = shelf
    monkeypatch.chdir(shelf)
    for path in (shelf / "letters", shelf / "letters" / "letters.keras", "letters", "letters/letters.keras"):
        equal(zoo.load(path), model)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(shelf / "digits" / "digits.keras", run_dir / "model.keras")
    equal(zoo.load(str(run_dir)), model)


@pytest.mark.all
def test_a_clone_beside_the_package(tmp_path, monkeypatch, shelf, fresh_python):
    """In a process of its own, with a copy of the package; the variable's folder comes first."""
    shutil.copytree(ROOT / "tf_isvae", tmp_path / "clone" / "tf_isvae", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shelf[0], tmp_path / "clone" / "exported_models")
    (tmp_path / "own" / "digits").mkdir(parents=True)
    zoo.build("fc_bvae", (2, 2, 1), 3).save(tmp_path / "own" / "digits" / "digits.keras")
    environment = {"PYTHONPATH": str(tmp_path / "clone"), "TF_ISVAE_MODELS": str(tmp_path / "own")}
    done = fresh_python("tests/programs/load_from_the_zoo.py", environment=environment)
    assert done.stdout == "['digits', 'letters'] (2, 2, 1) (4, 3, 1)\n", done.stderr


@pytest.mark.parametrize("name, near", [("digit", "digits"), ("nothing_like_it", None), ("no/such/path.keras", None)])
def test_unknown_trained_model(found, name, near):
    with pytest.raises(FileNotFoundError) as error:
        zoo.load(name)
    message = str(error.value)
    assert "\n" not in message and repr(name) in message and "digits" in message and "letters" in message
    assert str(found[0]) in message and str(ROOT / "exported_models") in message
    assert (f"Did you mean {near!r}?" in message) == (near is not None)


def test_a_folder_without_one_model(found):
    shelf, model = found
    with pytest.raises(FileNotFoundError, match="0 .keras files"):
        zoo.load(shelf / "empty")


def test_a_damaged_or_foreign_file_is_refused(found, tmp_path):
    whole = (found[0] / "digits" / "digits.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(whole[: len(whole) // 2])
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    shutil.copy(found[0] / "digits" / "digits.keras", tmp_path / "more.keras")
    with zipfile.ZipFile(tmp_path / "more.keras", "a") as archive:
        archive.writestr("../evil.py", "print()")
    (tmp_path / "text.txt").write_text("text")
    for name in ("half.keras", "other.keras", "more.keras", "text.txt"):
        with pytest.raises(ValueError, match=name) as error:
            zoo.load(tmp_path / name)
        assert "\n" not in str(error.value)


@needs_bfloat16
def test_a_model_trained_in_bfloat16_is_loaded_in_float32():
    """Every layer; and the codes of its own arithmetic, but for bits whose logit is about 0: at most 30 of 10,000."""
    if "cnn_bvae_mnist" not in zoo.names():
        pytest.skip("exported_models/ is not here")
    images = next(iter(datasets.load("digits", "test", batch_size=200, image_size=(28, 28)))).numpy()
    trained, model = zoo.load("cnn_bvae_mnist", precision=None), zoo.load("cnn_bvae_mnist")
    layers = [model, model.latent, *model.encoder.layers, *model.decoder.layers]
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    assert trained.encoder.layers[-1].compute_dtype == "bfloat16"
    for mine, other in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    differ = model.encode(images) != trained.encode(images)
    assert images.shape == (200, 28, 28, 1) and 0 < differ.sum() <= 30
    eta = np.asarray(model.encoder(images))
    assert np.abs(eta[differ]).max() < 0.1 * np.abs(eta).mean()


def test_a_precision_that_is_none(found):
    with pytest.raises(ValueError, match="^precision is 'half'; it must be one of float32, mixed_bfloat16"):
        zoo.load("digits", precision="half")
