"""zoo: every name builds what it says."""

import keras
import numpy as np
import pytest

from tf_isvae import BernoulliLatent, CategoricalLatent, estimators, likelihoods, zoo

NAMES = ["fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae"]


def test_the_names_are_the_papers():
    assert list(zoo.ARCHITECTURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
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
    assert type(model.estimator) is estimators.ImportanceSampling and model.estimator.num_samples == 1
    assert model.estimator.proposal is None
    assert type(model.likelihood) is likelihoods.Bernoulli


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("image_shape, latent_dim", [((1, 1, 1), 1), ((5, 7, 3), 6), ([8, 8, 1], 3)], ids=str)
def test_sizes(name, image_shape, latent_dim):
    model = zoo.build(name, image_shape, latent_dim)
    images = np.random.default_rng(0).uniform(size=(3, *image_shape)).astype(np.float32)
    codes = model.encode(images)
    assert codes.shape == (3, latent_dim if name.endswith("bvae") else 1)
    decoded = model.decode(codes)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1


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
