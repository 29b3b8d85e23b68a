"""What the encoder sees in training."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tf_isvae import BernoulliLatent, DiscreteVAE, networks
from tf_isvae.distortion import distorted

IMAGES = np.random.default_rng(0).random((3, 7, 9, 2), np.float32)
SEED = tf.constant([3, 4])


def test_it_is_an_affine_map_with_linear_interpolation():
    """Against SciPy, whose map takes rows and columns of the result to those of the image."""
    amount = 0.2
    draws = tf.random.stateless_uniform((5, 3, 1, 1), SEED, -amount, amount).numpy().reshape(5, 3).astype(np.float64)
    found = distorted(tf.constant(IMAGES), amount, SEED).numpy()
    for image, result, (down, right, tall, wide, turn) in zip(IMAGES, found, draws.T, strict=True):
        cosine, sine = np.cos(2.5 * turn), np.sin(2.5 * turn)
        matrix = np.diag([1 + tall, 1 + wide]) @ [[cosine, -sine], [sine, cosine]]
        middle = np.array([3.0, 4.0])
        offset = middle - matrix @ middle + [7 * down, 9 * right]
        for channel in range(2):
            expected = scipy.ndimage.affine_transform(
                image[..., channel].astype(np.float64), matrix, offset, order=1, mode="nearest"
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=2e-5)


def test_hidden_pixels_are_0_and_the_others_larger():
    """Their number lies within six standard errors; it fails by chance with probability 2e-9 at a seed."""
    encoder, decoder = networks.dense_encoder((50, 40, 1), 1, ()), networks.dense_decoder(1, (50, 40, 1), ())
    model = DiscreteVAE(encoder, BernoulliLatent(1), decoder, hidden_pixels=0.3, seed=0)
    images = tf.ones((5, 50, 40, 1))
    seen, again, other = (model._seen(images, tf.constant(seed)).numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    hidden = seen == 0
    np.testing.assert_allclose(seen[~hidden], 1 / 0.7, rtol=1e-6)
    assert abs(hidden.mean() - 0.3) < 6 * np.sqrt(0.3 * 0.7 / hidden.size)
    np.testing.assert_array_equal(seen, again)
    assert (seen != other).any() and (hidden[0] != hidden[1]).any()


@pytest.mark.parametrize("name", ["distortion", "hidden_pixels"])
def test_only_the_encoder_sees_it_and_only_in_training(name):
    """With a decoder that ignores z, and a likelihood of the image as it is, training logs the undistorted one."""
    encoder = networks.dense_encoder((7, 9, 2), 3, ())
    decoder = networks.dense_decoder(3, (7, 9, 2), ())
    decoder.set_weights([0 * w for w in decoder.get_weights()])
    parts = {"estimator": "Enumerated", "seed": 0}
    plain = DiscreteVAE(encoder, BernoulliLatent(3), decoder, **parts)
    model = DiscreteVAE(encoder, BernoulliLatent(3), decoder, **{name: 0.2}, **parts)
    images = tf.constant(IMAGES)
    seen, unseen = (each._training_terms(images, SEED) for each in (model, plain))
    np.testing.assert_allclose(seen[0].value, unseen[0].value, rtol=1e-5)
    assert np.abs(seen[1] - unseen[1]).min() > 1e-4  # the KL is of another q
    np.testing.assert_array_equal(model.elbo(IMAGES), plain.elbo(IMAGES))
    copy = DiscreteVAE.from_config(model.get_config())
    assert getattr(copy, name) == getattr(model.with_prior("factorized"), name) == 0.2


@pytest.mark.parametrize("value", [0, 1.0, -0.1, True, "0.1"])
@pytest.mark.parametrize("name", ["distortion", "hidden_pixels"])
def test_bad_amounts(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*share"):
        DiscreteVAE(
            networks.dense_encoder((2, 2, 1), 1, ()),
            BernoulliLatent(1),
            networks.dense_decoder(1, (2, 2, 1), ()),
            **{name: value},
        )
