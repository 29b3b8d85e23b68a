"""tf_isvae.optimizers.Adam against keras.optimizers.Adam, the oracle, and Muon against NumPy's singular vectors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_isvae import optimizers, zoo

SHAPES = ((5, 3), (3,), (2, 2, 3, 1))


def _after(optimizer, steps: int = 30, dtype: str = "float32") -> list[np.ndarray]:
    """Weights after some steps with gradients of very different sizes, some of them 0."""
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.normal(size=shape), dtype=dtype) for shape in SHAPES]
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights))
    optimizer.build(weights)
    for t in range(steps):
        sizes = 10.0 ** rng.integers(-6, 3, len(SHAPES)) * (t % 3 > 0)
        step([tf.constant(s * rng.normal(size=shape), dtype) for s, shape in zip(sizes, SHAPES, strict=True)])
    return [keras.ops.convert_to_numpy(weight).astype(np.float64) for weight in weights]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_1": 0.5, "beta_2": 0.99, "epsilon": 1e-3},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(1e-2, 20)},
        {"weight_decay": 0.1},
        {"global_clipnorm": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 7},
        {"gradient_accumulation_steps": 3},
        {"amsgrad": True},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_makes_the_steps_of_keras(options):
    for ours, theirs in zip(_after(optimizers.Adam(**options)), _after(keras.optimizers.Adam(**options)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_rectified_makes_adam_the_published_radam():
    """Algorithm 2 of Liu et al. 2020 in NumPy, float64, whose first five steps move the moments only. A step is at most
    the learning rate, so that 300 steps of 1e-2 leave float32 an error far below 1e-4."""
    rng, rate, weight = np.random.default_rng(0), 1e-2, keras.Variable([1.0, -2.0])
    optimizer = optimizers.Adam(optimizers.Rectified(rate))
    optimizer.build([weight])
    theta, mean, square = np.array([1.0, -2.0]), 0.0, 0.0
    longest = 2 / (1 - 0.999) - 1
    for t in range(1, 301):
        gradient = rng.normal(size=2) + [0.5, 30.0]
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
        if length > 5:
            squared = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            corrected = mean / (1 - 0.9**t) * np.sqrt((1 - 0.999**t) / square)
            theta = theta - rate * np.sqrt(squared) * corrected
        assert (t > 5) == (length > 5)
    assert np.abs(theta - [1.0, -2.0]).min() > 0.1
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), theta, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 200), (200, 7), (128, 500), (4, 9)])
def test_muon_goes_equally_far_in_all_directions(shape):
    """Along the singular vectors of gradient + 0.95 momentum (float64), 0.7 to 1.2 times 0.2 sqrt(longer side) rate.

    The iteration's own bounds are 0.68 and 1.14, for singular values above 0.005 of the matrix's length: as all here.
    """
    rng, rate = np.random.default_rng(0), 0.03
    weight = keras.Variable(rng.normal(size=shape), dtype="float32")
    optimizer = optimizers.Muon(rate)
    optimizer.build([weight])
    momentum = np.zeros(shape)
    for size in (1.0, 1e-4, 30.0):
        gradient = size * rng.normal(size=shape) * np.linspace(0.5, 1, shape[1])
        before = keras.ops.convert_to_numpy(weight).astype(np.float64)
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
        step = (before - keras.ops.convert_to_numpy(weight)) / (0.2 * max(shape) ** 0.5 * rate)
        momentum = 0.95 * momentum + gradient
        left, values, right = np.linalg.svd(gradient + 0.95 * momentum, full_matrices=False)
        assert values.min() > 0.005 * np.linalg.norm(values)
        along = left.T @ step @ right.T
        assert np.diag(along).min() > 0.6 and np.diag(along).max() < 1.25
        np.testing.assert_allclose(left @ np.diag(np.diag(along)) @ right, step, atol=2e-3)


def test_muon_leaves_a_weight_whose_gradient_is_0():
    weight = keras.Variable(np.ones((3, 2)), dtype="float32")
    optimizer = optimizers.Muon(0.1)
    optimizer.apply([tf.zeros((3, 2))], [weight])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), 1)


def test_muon_is_adam_for_all_but_narrow_matrices():
    shapes = ((129, 130), (5,), (2, 2, 3, 1), (3, 2))
    weights = {}
    for kind in (optimizers.Muon, optimizers.Adam):
        rng = np.random.default_rng(0)
        weights[kind] = [keras.Variable(rng.normal(size=shape), dtype="float32") for shape in shapes]
        optimizer = kind(0.01, weight_decay=0.1)
        for _ in range(3):
            optimizer.apply([tf.constant(rng.normal(size=s), tf.float32) for s in shapes], weights[kind])
    pairs = [[keras.ops.convert_to_numpy(w) for w in pair] for pair in zip(*weights.values(), strict=True)]
    for muon, adam in pairs[:-1]:
        np.testing.assert_array_equal(muon, adam)
    assert np.abs(np.subtract(*pairs[-1])).min() > 1e-4


def test_weights_of_another_dtype():
    for ours, theirs in zip(
        _after(optimizers.Adam(), dtype="bfloat16"), _after(keras.optimizers.Adam(), dtype="bfloat16"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_sparse_gradients():
    def step(optimizer):
        weight = keras.Variable(np.ones((3, 2)), dtype="float32")
        optimizer.build([weight])
        optimizer.apply([tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([3, 2]))], [weight])
        return keras.ops.convert_to_numpy(weight)

    for kind in (optimizers.Adam, optimizers.Muon):
        np.testing.assert_allclose(step(kind(0.1)), step(keras.optimizers.Adam(0.1)), rtol=1e-6)


def _trained(optimizer, strategy=None, estimator=None) -> keras.Model:
    images = np.random.default_rng(0).random((32, 4, 4, 1), np.float32)
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(0)
        model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3, estimator=estimator, seed=0)
        model.compile(optimizer=optimizer())
    model.fit(images, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


@pytest.mark.all
def test_fit_and_saving_with_its_state(tmp_path):
    model = _trained(optimizers.Adam)
    for ours, theirs in zip(model.get_weights(), _trained(keras.optimizers.Adam).get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is optimizers.Adam
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.all
def test_muon_is_saved_with_its_state(tmp_path):
    model, other = _trained(optimizers.Muon), _trained(optimizers.Adam)
    assert any(np.abs(w - v).max() > 1e-3 for w, v in zip(model.get_weights(), other.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is optimizers.Muon
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.all
def test_replicas_make_the_same_steps(apart):
    for one, other in apart("optimizers_on_two_replicas", devices=2):
        for weight, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=0, atol=2e-5)
