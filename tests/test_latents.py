"""latents: densities, KL, samples and codes, against TFP in float64 and sums over every z."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from helpers import one_line

from tf_isvae import BernoulliLatent, CategoricalLatent, DiscreteVAE, GaussianLatent, networks
from tf_isvae.precision import layers_in

tfd = tfp.distributions

BUILDERS = {
    "bits": lambda: BernoulliLatent(3),
    "one bit": lambda: BernoulliLatent(1),
    "category": lambda: CategoricalLatent(5),
    "categories": lambda: CategoricalLatent(3, variables=2),
    "one category": lambda: CategoricalLatent(1),
    "binary categories": lambda: CategoricalLatent(2, variables=3),
}


@pytest.fixture(params=list(BUILDERS))
def latent(request):
    return BUILDERS[request.param]()


@pytest.fixture(params=[*BUILDERS, "gaussian"])
def any_latent(request):
    return GaussianLatent(3) if request.param == "gaussian" else BUILDERS[request.param]()


def random_eta(latent, batch=4, scale=2.0):
    return np.random.default_rng(0).normal(scale=scale, size=(batch, latent.encoder_units)).astype(np.float32)


def every_z(latent):
    if isinstance(latent, BernoulliLatent):
        return np.array(list(itertools.product((0.0, 1.0), repeat=latent.units)))
    one_hots = itertools.product(np.eye(latent.categories), repeat=latent.num_variables)
    return np.array([np.concatenate(z) for z in one_hots])


def log_q(latent, eta):
    """log q(z) for every z, in float64 NumPy: (z, batch)."""
    eta = eta.astype(np.float64)
    z = every_z(latent)
    if isinstance(latent, BernoulliLatent):
        return z @ eta.T - np.logaddexp(0, eta).sum(1)
    blocks = eta.reshape(len(eta), latent.num_variables, latent.categories)
    log_softmax = blocks - np.log(np.exp(blocks).sum(-1, keepdims=True))
    return z @ log_softmax.reshape(len(eta), -1).T


# --- distributions ---------------------------------------------------------------------------------------------------


def test_posterior_log_prob_of_every_z(latent):
    eta = random_eta(latent)
    z = every_z(latent).astype(np.float32)
    result = latent.posterior(eta).log_prob(z[:, None])
    np.testing.assert_allclose(result, log_q(latent, eta), atol=1e-5)


def test_prior_is_uniform(latent):
    z = every_z(latent).astype(np.float32)
    prior = latent.prior()
    assert prior.batch_shape == (1,) and prior.event_shape == (latent.units,)
    np.testing.assert_allclose(prior.log_prob(z), np.full(len(z), -np.log(len(z))), atol=1e-6)


@pytest.fixture(params=["float32", "mixed_bfloat16"])
def policy(request):
    with layers_in(request.param):
        yield keras.config.dtype_policy()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", [*BUILDERS, "gaussian"])
def test_shapes_and_float32_under_any_policy(policy, name, batch):
    latent = BUILDERS.get(name, lambda: GaussianLatent(3))()
    eta = tf.cast(random_eta(latent, batch), policy.compute_dtype)
    q = latent.posterior(eta)
    z = latent(eta, training=True)
    assert q.batch_shape == (batch,) and q.event_shape == (latent.units,)
    assert z.shape == (batch, latent.units) and latent.kl(q).shape == (batch,)
    for tensor in (z, q.mode(), q.sample(seed=(0, 1)), q.log_prob(z), latent.kl(q)):
        assert tensor.dtype == tf.float32
    assert latent.compute_dtype == "float32"


def test_posterior_inside_a_graph_of_unknown_batch(any_latent):
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec((None, any_latent.encoder_units))])
    def kl(eta):
        q = any_latent.posterior(eta)
        shapes.append((q.batch_shape.as_list(), q.event_shape.as_list()))
        return any_latent.kl(q)

    eta = random_eta(any_latent)
    np.testing.assert_allclose(kl(eta), any_latent.kl(any_latent.posterior(eta)), rtol=1e-6)
    assert shapes == [([None], [any_latent.units])]


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_against_enumeration(latent):
    eta = random_eta(latent)
    logs = log_q(latent, eta)
    expected = (np.exp(logs) * (logs + np.log(len(logs)))).sum(0)
    np.testing.assert_allclose(latent.kl(latent.posterior(eta)), expected, atol=1e-5)


def test_kl_per_unit(any_latent):
    """One figure for each code entry: the KL of that unit alone, and their sum is the KL."""
    eta = random_eta(any_latent)
    result = any_latent.kl_per_unit(any_latent.posterior(eta))
    assert result.shape == (4, any_latent.code_units)
    np.testing.assert_allclose(
        tf.reduce_sum(result, -1), any_latent.kl(any_latent.posterior(eta)), rtol=1e-5, atol=1e-6
    )
    if isinstance(any_latent, CategoricalLatent):
        alone, parts = CategoricalLatent(any_latent.categories), np.split(eta, any_latent.code_units, axis=1)
    elif isinstance(any_latent, BernoulliLatent):
        alone, parts = BernoulliLatent(1), np.split(eta, any_latent.code_units, axis=1)
    else:
        alone, parts = GaussianLatent(1), [eta[:, [i, i + any_latent.units]] for i in range(any_latent.units)]
    expected = [alone.kl(alone.posterior(part)) for part in parts]
    np.testing.assert_allclose(result, np.stack(expected, axis=1), rtol=1e-5, atol=1e-6)


def test_kl_against_tfp():
    eta = np.random.default_rng(1).normal(scale=3.0, size=(6, 12))
    q = tfd.Independent(tfd.Bernoulli(probs=1 / (1 + np.exp(-eta))), 1)
    p = tfd.Independent(tfd.Bernoulli(probs=np.full(12, 0.5)), 1)
    latent = BernoulliLatent(12)
    np.testing.assert_allclose(latent.kl(latent.posterior(eta)), tfd.kl_divergence(q, p), rtol=1e-5)

    logits = eta.reshape(6, 3, 4)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = sum(
        tfd.kl_divergence(tfd.Categorical(probs=probs[:, i]), tfd.Categorical(probs=np.full(4, 0.25))).numpy()
        for i in range(3)
    )
    latent = CategoricalLatent(4, variables=3)
    np.testing.assert_allclose(latent.kl(latent.posterior(eta)), expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_kl_of_a_gaussian(batch):
    """KL(N(m, s) || N(0, 1)) = (s^2 + m^2 - 1) / 2 - ln s."""
    latent = GaussianLatent(4)
    eta = random_eta(latent, batch)
    mean, raw = np.split(eta.astype(np.float64), 2, axis=1)
    scale = np.log1p(np.exp(raw)) + 1e-6
    expected = (0.5 * (scale**2 + mean**2 - 1) - np.log(scale)).sum(1)
    np.testing.assert_allclose(latent.kl(latent.posterior(eta)), expected, rtol=1e-5)
    np.testing.assert_allclose(latent.posterior(eta).mean(), mean, rtol=1e-6)
    np.testing.assert_allclose(latent.posterior(eta).stddev(), scale, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_extreme_logits_give_the_limit_and_finite_gradients(latent, sign):
    """With sign 0 the logits alternate between +1e4 and -1e4. A certain bit has KL ln 2, a certain category ln c;
    equal logits, however large, leave a category uniform."""
    signs = np.full(latent.encoder_units, sign) if sign else np.resize([1.0, -1.0], latent.encoder_units)
    eta = tf.constant(1e4 * signs[None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(eta)
        kl = latent.kl(latent.posterior(eta))
    if isinstance(latent, BernoulliLatent):
        expected = latent.units * math.log(2)
    else:
        top = (signs.reshape(-1, latent.categories) == signs.reshape(-1, latent.categories).max(1)[:, None]).sum(1)
        expected = np.log(latent.categories / top).sum()
    np.testing.assert_allclose(kl, [expected], atol=1e-5)
    assert np.isfinite(tape.gradient(kl, eta)).all()


@pytest.mark.parametrize("latent_name", ["bits", "category", "categories"])
def test_extreme_logits_train(latent_name):
    """An encoder whose bias is +-1e4: losses and the weights after two steps stay finite."""
    latent = BUILDERS[latent_name]()
    encoder = networks.dense_encoder((2, 2, 1), latent.encoder_units, hidden=())
    kernel, bias = encoder.get_weights()
    encoder.set_weights([kernel, np.resize([1e4, -1e4, -1e4], bias.shape)])
    model = DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, (2, 2, 1), hidden=()), seed=0)
    model.compile(keras.optimizers.SGD(0.1))
    images = np.random.default_rng(0).uniform(size=(4, 2, 2, 1)).astype(np.float32)
    history = model.fit(images, batch_size=2, verbose=0).history
    assert np.isfinite([history[key] for key in ("loss", "log_likelihood", "kl")]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_gaussian_kl_is_finite_where_the_scale_vanishes():
    latent = GaussianLatent(1)
    eta = tf.constant([[0.0, -1e4], [3.0, 1e4]])
    with tf.GradientTape() as tape:
        tape.watch(eta)
        kl = latent.kl(latent.posterior(eta))
    assert np.isfinite(kl).all() and np.isfinite(tape.gradient(kl, eta)).all()


def test_one_category_says_nothing():
    latent = CategoricalLatent(1)
    eta = tf.constant([[3.0], [-1e4]])
    with tf.GradientTape() as tape:
        tape.watch(eta)
        kl = latent.kl(latent.posterior(eta))
    np.testing.assert_array_equal(kl, [0.0, 0.0])
    np.testing.assert_array_equal(tape.gradient(kl, eta), [[0.0], [0.0]])
    np.testing.assert_array_equal(latent(eta, training=True), [[1.0], [1.0]])


# --- samples ---------------------------------------------------------------------------------------------------------


def test_inference_gives_the_mode(latent):
    eta = random_eta(latent)
    expected = every_z(latent)[log_q(latent, eta).argmax(0)]
    np.testing.assert_array_equal(latent(eta), expected)
    np.testing.assert_array_equal(latent(eta, training=False), expected)


def test_frequencies_of_samples(latent):
    """Samples in training are distributed as q: |z| < 5 for each of at most 9 values of z, false alarm < 6e-6."""
    draws = 20_000
    eta = random_eta(latent, 1, scale=1.0)
    z = latent(np.repeat(eta, draws, axis=0), training=True, seed=tf.constant([3, 4])).numpy()
    q = np.exp(log_q(latent, eta)[:, 0])
    counts = (z[:, None] == every_z(latent)).all(-1).sum(0)
    assert counts.sum() == draws  # every sample is a valid z
    assert np.all(np.abs(counts - draws * q) <= 5 * np.sqrt(draws * q * (1 - q)))


def test_gaussian_samples():
    """Mean and standard deviation of 2 units: |z| < 5, false alarm < 3e-6."""
    draws, latent = 20_000, GaussianLatent(2)
    eta = np.array([[0.5, -1.0, 0.0, 2.0]], np.float32)
    z = latent(np.repeat(eta, draws, axis=0), training=True, seed=tf.constant([3, 4])).numpy()
    scale = np.log1p(np.exp(eta[0, 2:]))
    assert np.all(np.abs(z.mean(0) - eta[0, :2]) < 5 * scale / np.sqrt(draws))
    assert np.all(np.abs(z.std(0) - scale) < 5 * scale / np.sqrt(2 * draws))
    np.testing.assert_array_equal(latent(eta), eta[:, :2])


def test_seeds_of_the_layer():
    latent, eta = BernoulliLatent(40), np.zeros((8, 40), np.float32)
    one, two = tf.constant([1, 2]), tf.constant([1, 3])
    np.testing.assert_array_equal(latent(eta, training=True, seed=one), latent(eta, training=True, seed=one))
    assert np.any(latent(eta, training=True, seed=one) != latent(eta, training=True, seed=two))
    assert np.any(latent(eta, training=True) != latent(eta, training=True))


# --- codes -----------------------------------------------------------------------------------------------------------


def test_all_codes(latent):
    codes = latent.all_codes()
    assert codes.dtype == np.int32 and codes.shape == (latent.num_codes, latent.code_units)
    assert codes.tolist() == [list(c) for c in itertools.product(range(latent.code_values), repeat=latent.code_units)]
    np.testing.assert_array_equal(latent.from_codes(codes), every_z(latent))


def test_codes_round_trip(latent):
    codes = latent.all_codes()
    z = latent.from_codes(codes)
    assert z.dtype == tf.float32
    assert latent.to_codes(z).dtype == tf.int32
    np.testing.assert_array_equal(latent.to_codes(z), codes)
    # Any leading axes.
    np.testing.assert_array_equal(latent.to_codes(latent.from_codes(codes[:, None])), codes[:, None])


def test_codes_are_those_of_the_mode(latent):
    eta = random_eta(latent)
    np.testing.assert_array_equal(latent.codes(eta), latent.all_codes()[log_q(latent, eta).argmax(0)])


def test_gaussian_codes():
    latent = GaussianLatent(2)
    eta = random_eta(latent)
    np.testing.assert_array_equal(latent.codes(eta), eta[:, :2])
    np.testing.assert_array_equal(latent.from_codes(latent.to_codes(eta[:, :2])), eta[:, :2])
    assert latent.num_codes is None and latent.code_values is None
    with pytest.raises(ValueError, match="GaussianLatent") as error:
        latent.all_codes()
    one_line(error, "enumerated")


def test_num_codes_is_exact_for_many_bits():
    assert BernoulliLatent(200).num_codes == 2**200
    assert CategoricalLatent(10, variables=30).num_codes == 10**30


# --- arguments and serialisation -------------------------------------------------------------------------------------


def test_serialisation(any_latent):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(any_latent))
    assert type(copy) is type(any_latent) and copy.get_config() == any_latent.get_config()
    for attribute in ("units", "encoder_units", "code_units", "code_values"):
        assert getattr(copy, attribute) == getattr(any_latent, attribute)


def test_inside_a_functional_keras_model(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, CategoricalLatent(3, variables=2)(keras.layers.Dense(6)(inputs)))
    assert model.output_shape == (None, 6)
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras").predict(x, verbose=0), model(x))


def test_what_evaluation_asks_of_codes():
    """Bits are compared by Hamming distance, categories are clusters, Gaussians are neither; two values make no bit."""
    codes = np.array([[0, 1], [0, 1], [1, 1], [0, 0]])
    bits = BernoulliLatent(2)
    assert list(bits.usage(codes)) == ["usage"] and bits.usage(codes)["usage"].tolist() == [0.25, 0.75]
    assert bits.bits(codes) is codes and bits.clusters(codes) is None
    categories = CategoricalLatent(2, variables=2)
    found = categories.usage(codes)
    assert found["usage"].tolist() == [[0.75, 0.25], [0.25, 0.75]]
    # exp(-(3 ln(3/4) + ln(1/4)) / 4) = 4 / 27^(1/4)
    np.testing.assert_allclose(found["perplexity"], [4 / 27**0.25] * 2)
    np.testing.assert_allclose(categories.usage(codes[:2])["perplexity"], [1, 1])  # the other value never occurs
    assert categories.bits(codes) is None and categories.clusters(codes) is codes
    assert GaussianLatent(2).usage(codes) == {}
    assert GaussianLatent(2).bits(codes) is GaussianLatent(2).clusters(codes) is None


@pytest.mark.parametrize(
    "latent, few",
    [
        (BernoulliLatent(12), True),
        (BernoulliLatent(13), False),
        (CategoricalLatent(4096), True),
        (CategoricalLatent(4, variables=24), False),
        (GaussianLatent(1), False),
    ],
)
def test_enumerable_is_up_to_4096_codes(latent, few):
    assert latent.enumerable is few


@pytest.mark.parametrize("name", BUILDERS)
def test_a_latent_alone_is_differentiated_straight_through(name):
    """The sample is that of q, bit for bit; its gradient that of the mean, here in float64 by its Jacobian."""
    latent = BUILDERS[name]()
    eta, weights = random_eta(latent), random_eta(latent)[::-1].copy()
    seed = tf.constant([3, 4])
    with tf.GradientTape() as tape:
        logits = tf.constant(eta)
        tape.watch(logits)
        z = latent(logits, training=True, seed=seed)
        value = tf.reduce_sum(weights * z)
    np.testing.assert_array_equal(z, latent.posterior(eta).sample(seed=seed))
    eta, weights = eta.astype(np.float64), weights.astype(np.float64)
    if isinstance(latent, BernoulliLatent):
        mean = 1 / (1 + np.exp(-eta))
        expected = weights * mean * (1 - mean)
    else:
        shape = (len(eta), latent.num_variables, latent.categories)
        p, w = np.exp(eta.reshape(shape)), weights.reshape(shape)
        p /= p.sum(-1, keepdims=True)
        expected = (p * (w - (p * w).sum(-1, keepdims=True))).reshape(eta.shape)
    np.testing.assert_allclose(tape.gradient(value, logits), expected, rtol=1e-4, atol=1e-6)


def test_straight_through_can_be_left_out():
    latent = BernoulliLatent(3, straight_through=False)
    copy = BernoulliLatent.from_config(latent.get_config())
    logits = tf.zeros((2, 3))
    for each in (latent, copy):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            z = each(logits, training=True)
        assert tape.gradient(z, logits) is None
    with pytest.raises(ValueError) as error:
        CategoricalLatent(3, straight_through=1)
    one_line(error, "straight_through is 1", "True or False")
