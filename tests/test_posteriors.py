"""posteriors: what each kind answers, against sums over every z in float64 and against TFP's own distributions."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import posteriors
from tf_isvae.posteriors import Bits, Gaussian, OneHots

tfd = tfp.distributions

RNG = np.random.default_rng(0)
BITS = RNG.normal(scale=2.0, size=(4, 3)).astype(np.float32)
ONE_HOTS = RNG.normal(scale=2.0, size=(4, 2, 3)).astype(np.float32)
MEAN, SCALE = RNG.normal(size=(4, 3)).astype(np.float32), RNG.uniform(0.5, 2.0, (4, 3)).astype(np.float32)
KINDS = {
    "bits": lambda: Bits(tf.constant(BITS)),
    "one-hots": lambda: OneHots(tf.constant(ONE_HOTS)),
    "one category": lambda: OneHots(tf.constant(ONE_HOTS[:, :1])),
    "gaussian": lambda: Gaussian(tf.constant(MEAN), tf.constant(SCALE)),
}
DISCRETE = [name for name in KINDS if name != "gaussian"]


def tfp_own(q):
    """The same distribution put together from TFP's alone."""
    if isinstance(q, Bits):
        return tfd.Independent(tfd.Bernoulli(logits=q.logits, dtype=tf.float32), 1)
    if isinstance(q, OneHots):
        sizes = q.logits.shape[-2:]
        flatten = tfp.bijectors.Reshape(event_shape_in=sizes, event_shape_out=[math.prod(sizes)])
        one_hots = tfd.Independent(tfd.OneHotCategorical(logits=q.logits, dtype=tf.float32), 1)
        return tfd.TransformedDistribution(one_hots, flatten)
    return tfd.MultivariateNormalDiag(q.mean(), q.stddev())


def every_z(q):
    if isinstance(q, Bits):
        return np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    variables, categories = q.logits.shape[-2:]
    return np.array([np.concatenate(z) for z in itertools.product(np.eye(categories), repeat=variables)])


def log_q(q):
    """ln q of every z, float64: (z, batch)."""
    eta, z = q.logits.numpy().astype(np.float64), every_z(q)
    if isinstance(q, Bits):
        return z @ eta.T - np.logaddexp(0, eta).sum(1)
    log_softmax = eta - scipy.special.logsumexp(eta, axis=-1, keepdims=True)
    return z @ log_softmax.reshape(len(eta), -1).T


@pytest.mark.parametrize("name", KINDS)
def test_a_tfp_distribution_to_everyone_else(name):
    """Samples, density, mean, mode and KL are those of TFP's own; also those of copies and slices, and of what a graph
    takes and returns."""
    q = KINDS[name]()
    assert isinstance(q, tfd.Distribution) and isinstance(q, posteriors.Posterior)
    own = tfp_own(q)
    assert q.batch_shape == own.batch_shape and q.event_shape == own.event_shape
    z = own.sample(5, seed=(1, 2))
    for found, expected in (
        (q.sample(5, seed=(1, 2)), z),
        (q.log_prob(z), own.log_prob(z)),
        (q.mean(), own.mean()),
        (q.mode(), own.mode()),
        (q.copy().sample(5, seed=(1, 2)), z),
        (tf.function(lambda given: given.log_prob(z))(q), own.log_prob(z)),
        (tf.function(lambda given: given)(q).sample(5, seed=(1, 2)), z),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # TFP's KL of a bit from itself is -3e-8.
    found, expected = tfd.kl_divergence(q, q[:1]), tfd.kl_divergence(own, tfp_own(q[:1]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert posteriors.of(q) is q


@pytest.mark.parametrize("name", KINDS)
def test_stop_gradient(name):
    """The same density, through which no gradient flows."""
    q = KINDS[name]()
    parameters = q.logits if name != "gaussian" else q.loc
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        made = Gaussian(parameters, q.stddev()) if name == "gaussian" else type(q)(parameters)
        stopped = made.stop_gradient()
        z = tf.stop_gradient(stopped.sample(2, seed=(0, 1)))
        value = stopped.log_prob(z)
    assert type(stopped) is type(q) and tape.gradient(value, parameters) is None
    np.testing.assert_array_equal(value, q.log_prob(z))


@pytest.mark.parametrize("name", DISCRETE)
def test_entropy_against_enumeration(name):
    q = KINDS[name]()
    logs = log_q(q)
    np.testing.assert_allclose(q.entropy(), -(np.exp(logs) * logs).sum(0), rtol=1e-5)


def test_entropy_of_a_gaussian():
    expected = np.log(SCALE * np.sqrt(2 * np.pi * np.e)).sum(1)
    np.testing.assert_allclose(KINDS["gaussian"]().entropy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [Bits, OneHots])
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_entropy_of_what_is_certain(kind, size):
    logits = tf.constant([[size, -size]] if kind is Bits else [[[size, -size]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        entropy = kind(logits).entropy()
    np.testing.assert_allclose(entropy, [0.0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(entropy, logits), np.zeros(logits.shape), atol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_every_code_and_its_probability(name):
    q = KINDS[name]()
    z = q.all_z("a test")
    assert z.dtype == tf.float32 and len(z) == q.num_codes
    np.testing.assert_array_equal(z, every_z(q))
    np.testing.assert_allclose(q.log_prob_of_each(z, "a test"), log_q(q), atol=1e-5)


@pytest.mark.parametrize("q", [Bits(tf.zeros((1, 13))), OneHots(tf.zeros((1, 6, 5)))], ids=["8192", "15625"])
def test_too_many_codes_to_enumerate(q):
    with pytest.raises(
        ValueError, match=f"a test: the posterior is over {q.num_codes} codes; it must be .* at most 4096"
    ):
        q.all_z("a test")


@pytest.mark.parametrize("name", DISCRETE)
def test_the_relaxation_has_the_mean_and_the_way_back(name):
    q = KINDS[name]()
    relaxed = q.relaxation("a test")
    mean = relaxed.to_mean(relaxed.logits)
    np.testing.assert_allclose(relaxed.to_z(mean), q.mean(), atol=1e-6)
    np.testing.assert_allclose(relaxed.to_mean(relaxed.to_logits(mean)), mean, atol=1e-6)
    each = relaxed.from_z(tf.constant(every_z(q), tf.float32))
    assert each.shape[1:] == relaxed.logits.shape[1:] and mean.shape == relaxed.logits.shape
    np.testing.assert_array_equal(relaxed.to_z(each), every_z(q))
    if name != "bits":
        np.testing.assert_array_equal(each.numpy().sum(-1), np.ones(each.shape[:-1]))
    # What is certain has finite logits, and stays certain.
    np.testing.assert_allclose(relaxed.to_mean(relaxed.to_logits(each)), each, rtol=0, atol=1e-29)
    # Any leading axes.
    z = q.sample((7, 2), seed=(0, 1))
    np.testing.assert_array_equal(relaxed.to_z(relaxed.from_z(z)), z)
    # Slopes of the mode are 0 where that is a matter of a constant: all z lose the same.
    slopes = relaxed.from_z(tf.constant(RNG.normal(size=(4, q.event_shape[-1])), tf.float32))
    taken = relaxed.to_z(slopes - relaxed.from_mode(slopes)).numpy()
    of_each = np.einsum("bu,zu->zb", taken, every_z(q))
    np.testing.assert_allclose(of_each, np.tile(of_each[:1], (len(of_each), 1)), atol=1e-5)
    left = tf.reduce_sum(relaxed.to_z(relaxed.from_mode(slopes)) * q.mode(), axis=-1)
    np.testing.assert_allclose(
        left, 0 if name != "bits" else (relaxed.to_z(slopes) * q.mode()).numpy().sum(-1), atol=1e-6
    )


@pytest.mark.parametrize("name", KINDS)
def test_factors_add_up_to_the_whole(name):
    q = KINDS[name]()
    factors = q.factors("a test")
    np.testing.assert_allclose(tf.reduce_sum(factors.entropy(), -1), q.entropy(), rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_score_surrogate(name):
    """Its gradient is mean_m w_m d ln q(z_m)/d eta, by TFP's density."""
    weights, q = tf.constant(RNG.normal(size=(6, 4)), tf.float32), KINDS[name]()
    z = q.sample(6, seed=(2, 3)).numpy()  # TFP remembers where its own tensors came from
    parameters = q.loc if name == "gaussian" else q.logits
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(parameters)
        made = Gaussian(parameters, q.stddev()) if name == "gaussian" else type(q)(parameters)
        surrogate = made.score_surrogate(z, weights)
        expected = tf.reduce_mean(weights * tfp_own(made).log_prob(z), axis=0)
    assert surrogate.shape == (4,)
    np.testing.assert_allclose(tape.gradient(surrogate, parameters), tape.gradient(expected, parameters), atol=1e-5)


# --- samples from uniform numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISCRETE)
def test_frequencies_of_samples_from_uniform_numbers(name):
    """20,000 draws for the first image: |z| < 5 for each of at most 9 values of z, false alarm < 6e-6."""
    draws, q = 20_000, KINDS[name]()[:1]
    units = q.event_shape[0]
    uniform = np.random.default_rng(1).uniform(1e-6, 1 - 1e-6, (draws, units)).astype(np.float32)
    z = q.sample_from(tf.constant(uniform), "a test").numpy()
    counts = (z[:, None] == every_z(q)).all(-1).sum(0)
    expected = np.exp(log_q(q))[:, 0]
    assert counts.sum() == draws  # every sample is a valid z
    assert np.all(np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected * (1 - expected)))


def test_gaussian_samples_are_quantiles():
    uniform = np.array([[0.5, 0.1, 0.999]] * 4, np.float32)
    found = KINDS["gaussian"]().sample_from(tf.constant(uniform), "a test")
    np.testing.assert_allclose(found, scipy.stats.norm.ppf(uniform.astype(np.float64), MEAN, SCALE), atol=1e-4)


def test_normal_quantile():
    uniform = np.concatenate([np.linspace(1e-7, 1 - 1e-7, 10_001), [2.0**-24, 1 - 2.0**-24]]).astype(np.float32)
    found = posteriors.normal_quantile(tf.constant(uniform))
    np.testing.assert_allclose(found, scipy.special.ndtri(uniform.astype(np.float64)), atol=1e-5)


# --- the KL of bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_shape", [(4, 3), (1, 3)])
@pytest.mark.parametrize("size", [0.01, 2.0, 20.0, 500.0])
def test_kl_of_bits_and_its_gradient(size, prior_shape):
    """Against the formula in float64: p (eta - b) - ln(1 + e^eta) + ln(1 + e^b), b the prior's logits."""
    rng = np.random.default_rng(0)
    eta, prior = (rng.normal(scale=size, size=shape).astype(np.float32) for shape in ((4, 3), prior_shape))
    given = tf.constant(eta), tf.constant(prior)
    with tf.GradientTape() as tape:
        tape.watch(given)
        kl = tfd.kl_divergence(Bits(given[0]), Bits(given[1]))
    eta, prior = eta.astype(np.float64), prior.astype(np.float64)
    p, b = scipy.special.expit(eta), scipy.special.expit(prior)
    expected = p * (eta - prior) - np.logaddexp(0, eta) + np.logaddexp(0, prior)
    np.testing.assert_allclose(kl, expected.sum(1), rtol=1e-6, atol=1e-5)
    to_prior = (b - p).sum(0, keepdims=True) if len(prior) == 1 else b - p
    for found, by_hand in zip(tape.gradient(kl, given), (p * (1 - p) * (eta - prior), to_prior), strict=True):
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=2e-6)


def test_bits_are_at_no_distance_from_themselves():
    logits = tf.constant([[0.0, -3.0, 30.0, 500.0]])
    np.testing.assert_array_equal(tfd.kl_divergence(Bits(logits), Bits(logits)), [0.0])


# --- bounded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 61.0, 500.0])
@pytest.mark.parametrize("kind", [Bits, OneHots])
def test_bounded_is_the_same_distribution(kind, size):
    """Means and KL of logits up to +-500, and of categories whose logits are both large, or both small."""
    logits = size * np.array([[1, -1, 0.8, 0.5]], np.float32)
    logits = tf.constant(logits if kind is Bits else logits.reshape(1, 2, 2))
    q, uniform = kind(logits), kind(tf.zeros_like(logits))
    np.testing.assert_allclose(q.bounded().mean(), q.mean(), rtol=1e-6, atol=1e-25)
    np.testing.assert_allclose(tfd.kl_divergence(q.bounded(), uniform), tfd.kl_divergence(q, uniform), rtol=1e-6)
    assert np.abs(Bits(logits).bounded().logits).max() <= 60


# --- what a posterior cannot do -------------------------------------------------------------------------------------

QUESTIONS = {
    "bit_logits": lambda q: q.bit_logits("ABC"),
    "relaxation": lambda q: q.relaxation("ABC"),
    "all_z": lambda q: q.all_z("ABC"),
    "log_prob_of_each": lambda q: q.log_prob_of_each(tf.zeros((1, 3)), "ABC"),
    "reparameterized": lambda q: q.reparameterized("ABC"),
    "factors": lambda q: q.factors("ABC"),
    "sample_from": lambda q: q.sample_from(tf.zeros((1, 3)), "ABC"),
}
PLAIN = lambda: posteriors.of(tfd.Poisson(tf.ones((4,))))  # noqa: E731


@pytest.mark.parametrize(
    "make, name, question",
    [
        *((KINDS["gaussian"], "Gaussian", q) for q in ("bit_logits", "relaxation", "all_z", "log_prob_of_each")),
        *((KINDS["bits"], "Bits", q) for q in ("reparameterized",)),
        *((KINDS["one-hots"], "OneHots", q) for q in ("reparameterized", "bit_logits")),
        *((PLAIN, "Poisson", question) for question in QUESTIONS),
    ],
)
def test_what_a_posterior_cannot_do(make, name, question):
    with pytest.raises(TypeError, match=f"^ABC: the posterior is {name}; it must be ") as error:
        QUESTIONS[question](make())
    assert "\n" not in str(error.value)


def test_any_other_distribution_has_samples_and_a_density():
    plain = tfd.Independent(tfd.Laplace(tf.zeros((4, 3)), 1.0), 1)
    q = posteriors.of(plain)
    z = q.sample(2, seed=(0, 1))
    np.testing.assert_array_equal(z, plain.sample(2, seed=(0, 1)))
    np.testing.assert_array_equal(q.stop_gradient().log_prob(z), plain.log_prob(z))
    assert q.bounded() is q and q.reparameterized("a test") is q
    assert q.factors("a test").batch_shape == (4, 3)
