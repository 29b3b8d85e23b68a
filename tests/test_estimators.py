"""estimators: against sums over every z, TFP's own estimator, and the paper's formulas.

A posterior over few z makes E_q[ln p(x|z)] and its gradient finite sums, computed here in float64.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import BernoulliLatent, CategoricalLatent, GaussianLatent, estimators, likelihoods, networks
from tf_isvae.estimators import ImportanceSampling

tfd = tfp.distributions

IMAGE_SHAPE = (2, 2, 1)
LATENTS = {
    "3 bits": (BernoulliLatent, (3,)),
    "5 categories": (CategoricalLatent, (5,)),
    "2 variables of 3": (CategoricalLatent, (3, 2)),
}


class Case:
    """A tiny VAE (float32), and the same formulas in float64 over all z."""

    def __init__(self, latent_class, sizes):
        keras.utils.set_random_seed(3)
        self.latent = latent_class(*sizes)
        units = self.latent.units
        # Two thirds of the hidden units of such small relu networks would be dead: tanh.
        self.encoder = networks.dense_encoder(IMAGE_SHAPE, units, hidden=(6,))
        self.decoder = networks.dense_decoder(units, IMAGE_SHAPE, hidden=(6,))
        for network in (self.encoder, self.decoder):
            network.set_weights([1.5 * np.random.normal(size=w.shape) for w in network.get_weights()])
            for layer in network.layers:
                if getattr(layer, "activation", None) is keras.activations.relu:
                    layer.activation = keras.activations.tanh
        self.image = np.array([0.9, 0.1, 0.4, 1.0], np.float32).reshape(1, *IMAGE_SHAPE)
        self.is_bernoulli = latent_class is BernoulliLatent
        if self.is_bernoulli:
            self.blocks = (units, 1)
            rows = itertools.product((0.0, 1.0), repeat=units)
        else:
            self.blocks = (units // sizes[0], sizes[0])
            rows = (np.concatenate(r) for r in itertools.product(np.eye(sizes[0]), repeat=self.blocks[0]))
        self.all_z = np.array(list(rows))

    def log_q(self, eta, z):
        """log q(z) of eta (..., units), in the precision of eta."""
        z = tf.cast(z, eta.dtype)
        if self.is_bernoulli:
            return tf.reduce_sum(z * eta - tf.nn.softplus(eta), axis=-1)
        shape = tf.concat([tf.shape(eta)[:-1], self.blocks], 0)
        log_softmax = tf.reshape(tf.nn.log_softmax(tf.reshape(eta, shape)), tf.shape(eta))
        return tf.reduce_sum(z * log_softmax, axis=-1)

    def posterior(self):
        return self.latent.posterior(self.encoder(self.image))

    def log_likelihood(self, z):
        """ln p(x|z) as the estimators call it, for the one image."""
        output = self.decoder(tf.reshape(z, (-1, self.latent.units)))
        return tf.reshape(likelihoods.Bernoulli().log_prob(output, self.image), tf.shape(z)[:-1])

    @property
    def variables(self):
        return [*self.encoder.trainable_variables, *self.decoder.trainable_variables]

    def per_z(self, log_proposal=None):
        """For every z, in float64: q_I(z), the estimate w ln p(x|z), and its gradient for all weights (z, weights)."""
        weights = [tf.Variable(w.numpy().astype(np.float64)) for w in self.variables]
        z = tf.constant(self.all_z)
        x = tf.constant(self.image.reshape(1, -1), tf.float64)
        with tf.GradientTape() as tape:
            a, b, c, d, e, f, g, h = weights
            eta = tf.tanh(x @ a + b) @ c + d
            logits = tf.tanh(z @ e + f) @ g + h
            log_p = tf.reduce_sum(x * tf.math.log_sigmoid(logits) + (1 - x) * tf.math.log_sigmoid(-logits), axis=-1)
            log_q = self.log_q(eta, z)
            log_q_i = tf.stop_gradient(log_q if log_proposal is None else log_proposal(eta, z))
            estimate = tf.exp(log_q - log_q_i) * log_p
        gradients = tape.jacobian(estimate, weights)
        flat = np.concatenate([g.numpy().reshape(len(self.all_z), -1) for g in gradients], axis=1)
        return np.exp(log_q_i.numpy()), estimate.numpy(), flat


@pytest.fixture(params=list(LATENTS))
def case(request):
    return Case(*LATENTS[request.param])


def from_eta(q, eta):
    """A posterior of the kind of q from other natural parameters, of the shape of q.logits with any batch."""
    return type(q)(eta)


def flattened(q):
    return from_eta(q, 0.5 * q.logits)


def uniform_prior(q):
    return from_eta(q, tf.zeros_like(q.logits[:1]))


@keras.saving.register_keras_serializable("test_estimators")
def registered_flattened(q):
    return flattened(q)


# name -> (proposal, its log-probability from eta and z in float64)
PROPOSALS = {
    "q itself": (None, lambda case: None),
    "uniform": (uniform_prior, lambda case: lambda eta, z: case.log_q(tf.zeros_like(eta), z)),
    "flattened q": (flattened, lambda case: lambda eta, z: case.log_q(0.5 * eta, z)),
}


def run(case, estimator, seed=0):
    """value, the flat gradient for all weights, and the z that were drawn."""
    drawn = []

    def log_likelihood(z):
        drawn.append(z)
        return case.log_likelihood(z)

    with tf.GradientTape() as tape:
        estimate = estimator(case.posterior(), log_likelihood, tf.constant([seed, 7]))
        surrogate = tf.reduce_sum(estimate.surrogate)
    gradient = tape.gradient(surrogate, case.variables, unconnected_gradients="zero")
    return estimate.value.numpy(), np.concatenate([g.numpy().ravel() for g in gradient]), drawn[0]


def index_of(case, z):
    """Which row of all_z each z is."""
    return np.argmax((np.asarray(z).reshape(-1, 1, case.latent.units) == case.all_z).all(-1), axis=1)


def worst_z_score(mean, expected, variance, draws, floor):
    """The largest |mean - expected| in standard errors; `floor` is what float32 may lose."""
    error = np.maximum(np.abs(mean - expected) - floor, 0.0)
    return np.max(error / np.sqrt(np.maximum(variance, 1e-12) / draws))


# --- the enumerated gradient --------------------------------------------------------------------------------------


def test_sum_over_all_proposals_of_one_z_is_the_enumerated_gradient(case):
    """Exact, no statistics: a proposal that always gives one z has the weight q(z), so that the estimates of all z
    add up to E_q[ln p(x|z)], and their gradients to its gradient, for the weights of both networks."""
    q, values, gradients = case.per_z()
    value, gradient = 0.0, 0.0
    for z in case.all_z:
        # At +-1e4 the distribution is a point in float32.
        point = tf.constant(1e4 * (2 * z - 1), tf.float32)
        estimator = ImportanceSampling(
            1, proposal=lambda p, point=point: from_eta(p, tf.reshape(point, p.logits.shape))
        )
        one_value, one_gradient, drawn = run(case, estimator)
        np.testing.assert_array_equal(drawn[0, 0], z)
        value, gradient = value + one_value, gradient + one_gradient
    np.testing.assert_allclose(value, [q @ values], rtol=1e-5)
    np.testing.assert_allclose(gradient, q @ gradients, atol=2e-5)


@pytest.mark.parametrize("proposal", list(PROPOSALS))
def test_gradient_is_eq_16_and_17_of_the_z_drawn(case, proposal):
    """Exact: the gradient is the mean over the drawn z of the float64 one in which the proposal is a constant. It
    would differ if a gradient reached the encoder through a proposal made from the posterior (as `flattened` is)."""
    function, log_proposal = PROPOSALS[proposal]
    value, gradient, drawn = run(case, ImportanceSampling(40, function))
    _, values, gradients = case.per_z(log_proposal(case))
    rows = index_of(case, drawn)
    assert len(set(rows)) > 1
    np.testing.assert_allclose(value, [values[rows].mean()], rtol=1e-5)
    np.testing.assert_allclose(gradient, gradients[rows].mean(0), atol=2e-5)


@pytest.mark.parametrize("proposal", list(PROPOSALS))
def test_mean_over_draws_is_the_enumerated_value_and_gradient(case, proposal):
    """Unbiased in the value and in every weight of both networks. The standard errors are exact (enumerated); each of
    at most 80 components fails for |z| > 5.5 with probability 4e-8: false alarm < 4e-6 per case."""
    draws = 20_000
    function, log_proposal = PROPOSALS[proposal]
    value, gradient, _ = run(case, ImportanceSampling(draws, function), seed=11)
    q, exact_values, exact_gradients = case.per_z()
    q_i, values, gradients = case.per_z(log_proposal(case))
    for mean, expected, each in ((value, q @ exact_values, values), (gradient, q @ exact_gradients, gradients)):
        variance = q_i @ each**2 - (q_i @ each) ** 2
        assert worst_z_score(mean, expected, variance, draws, floor=2e-5) < 5.5
        # The oracle itself: the estimator's mean is the same sum under any proposal.
        np.testing.assert_allclose(q_i @ each, expected, atol=1e-12)


def test_one_draw_for_each_of_many_images(case):
    """The same with M = 1 and a batch: every image has a z of its own. Gradient with respect to eta: at most 6
    components, |z| < 5: false alarm < 4e-6."""
    draws = 20_000
    eta = tf.repeat(case.encoder(case.image), draws, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(eta)
        estimate = ImportanceSampling()(case.latent.posterior(eta), case.log_likelihood, tf.constant([5, 6]))
        surrogate = tf.reduce_sum(estimate.surrogate)
    gradient = tape.gradient(surrogate, eta).numpy()
    assert estimate.value.shape == estimate.surrogate.shape == (draws,)

    eta64 = tf.constant(eta[:1].numpy(), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(eta64)
        log_q = case.log_q(eta64, case.all_z)
    score = tape.jacobian(log_q, eta64).numpy()[:, 0]
    q, values, _ = case.per_z()
    each = values[:, None] * score
    exact = q @ each
    assert worst_z_score(gradient.mean(0), exact, q @ each**2 - exact**2, draws, floor=1e-5) < 5
    # Each row is eq. 20 or 26 for one z: ln p(x|z) (z - mean).
    assert np.all(np.min(np.abs(gradient[:500, None] - each).max(-1), axis=1) < 1e-5)


# --- one Bernoulli bit ----------------------------------------------------------------------------------------------


def one_bit_gradients(logit, a, b, draws, seed=1):
    """The gradients for eta of `draws` estimates with M = 1, with ln p(x|z) = a for z = 1 and b for z = 0."""
    eta = tf.fill((draws, 1), float(logit))
    with tf.GradientTape() as tape:
        tape.watch(eta)
        q = BernoulliLatent(1).posterior(eta)
        estimate = ImportanceSampling()(q, lambda z: b + (a - b) * z[..., 0], tf.constant([seed, 2]))
    return tape.gradient(estimate.surrogate, eta).numpy()[:, 0].astype(np.float64)


@pytest.mark.parametrize("logit", [-3.0, -0.7, 0.0, 2.0])
def test_mean_and_variance_of_one_bit(logit):
    """Mean q(1-q)(a-b), variance q(1-q)((1-q)a + qb)^2. A draw takes two values only, so the standard errors of both
    are known exactly; |z| < 5 for 2 figures: false alarm < 2e-6."""
    a, b, draws = -3.0, -1.0, 100_000
    g = one_bit_gradients(logit, a, b, draws)
    q = 1 / (1 + np.exp(-logit))
    mean, variance = q * (1 - q) * (a - b), q * (1 - q) * ((1 - q) * a + q * b) ** 2
    assert abs(g.mean() - mean) < 5 * np.sqrt(variance / draws)
    fourth = q * (a * (1 - q) - mean) ** 4 + (1 - q) * (-b * q - mean) ** 4
    assert abs(np.mean((g - mean) ** 2) - variance) < 5 * np.sqrt((fourth - variance**2) / draws) + 1e-6


def test_variance_of_one_bit_vanishes_as_q_nears_0_and_1():
    """The paper's claim. At the logits +-8 about 33 of 100,000 draws differ from the rest; fewer than 5 or more than
    90 would be needed to break the order: false alarm < 1e-6."""
    logits = [-20, -8, -4, 0, 4, 8, 20]
    variances = [one_bit_gradients(logit, -90.0, -100.0, 100_000, seed=9).var() for logit in logits]
    assert variances[:4] == sorted(variances[:4]) and variances[3:] == sorted(variances[3:], reverse=True)
    assert max(variances[0], variances[-1]) < 1e-3 * max(variances)


# --- an independent implementation ----------------------------------------------------------------------------------


def test_agrees_with_tfp_monte_carlo_expectation(case):
    z = None
    eta = tf.Variable(case.encoder(np.concatenate([case.image, 1 - case.image])))

    def log_likelihood(samples):
        nonlocal z
        z = samples
        return case.log_likelihood(samples)

    with tf.GradientTape() as tape:
        estimate = ImportanceSampling(8)(case.latent.posterior(eta), log_likelihood, tf.constant([1, 2]))
    gradient = tape.gradient(estimate.surrogate, eta)
    with tf.GradientTape() as tape:
        expected = tfp.monte_carlo.expectation(
            f=case.log_likelihood,
            samples=z,
            log_prob=case.latent.posterior(eta).log_prob,
            use_reparameterization=False,
        )
    expected_gradient = tape.gradient(expected, eta)
    assert np.abs(expected_gradient).max() > 0.01
    np.testing.assert_allclose(estimate.value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


# --- proposals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", ["uniform", "flattened q"])
def test_value_is_the_weighted_mean_of_eq_14(case, proposal):
    function, log_proposal = PROPOSALS[proposal]
    value, _, z = run(case, ImportanceSampling(30, function))
    eta = tf.cast(case.encoder(case.image), tf.float64)
    z64 = tf.cast(z, tf.float64)[:, 0]
    weights = np.exp(case.log_q(eta, z64) - log_proposal(case)(eta, z64))
    log_p = case.log_likelihood(z).numpy()[:, 0]
    assert weights.std() > 0.1  # or the test would say nothing
    np.testing.assert_allclose(value, [np.mean(weights * log_p)], rtol=1e-5)


def test_a_mixture_as_proposal():
    """A defensive mixture, half q and half uniform: not a distribution of the latents' own kind. Unbiased with
    bounded weights: |z| < 5 with the enumerated standard error, false alarm < 6e-7."""
    case = Case(*LATENTS["3 bits"])

    def mixture(q):
        logits = tf.stack([q.logits, tf.zeros((1, 3))], axis=-2)
        parts = tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float32), 1)
        return tfd.MixtureSameFamily(tfd.Categorical(probs=[0.5, 0.5]), parts)

    def log_mixture(eta, z):
        return tf.math.log(0.5 * tf.exp(case.log_q(eta, z)) + 0.5 / 8)

    _, gradient, z = run(case, ImportanceSampling(60, mixture))
    _, _, gradients = case.per_z(log_mixture)
    np.testing.assert_allclose(gradient, gradients[index_of(case, z)].mean(0), atol=2e-5)

    value, _, _ = run(case, ImportanceSampling(20_000, mixture), seed=4)
    q_i, values, _ = case.per_z(log_mixture)
    expected = q_i @ values
    assert worst_z_score(value, expected, q_i @ values**2 - expected**2, 20_000, floor=2e-5) < 5


def test_a_proposal_of_batch_1_is_decoded_once_for_all_images(case):
    """z of shape (M, 1, units) is compared with every image."""
    shapes = []

    def log_likelihood(z):
        shapes.append(z.shape)
        return tf.repeat(case.log_likelihood(z), 4, axis=1)

    q = case.latent.posterior(tf.repeat(case.encoder(case.image), 4, axis=0))
    estimate = ImportanceSampling(6, uniform_prior)(q, log_likelihood, tf.constant([0, 1]))
    assert shapes == [(6, 1, case.latent.units)]
    assert estimate.value.shape == (4,)
    np.testing.assert_allclose(estimate.value, np.full(4, estimate.value[0]), rtol=1e-6)


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 7])
def test_num_samples_is_honoured(case, num_samples):
    shapes = []

    def log_likelihood(z):
        shapes.append(tuple(z.shape))
        return tf.zeros(z.shape[:-1])

    q = case.latent.posterior(tf.zeros((5, case.latent.encoder_units)))
    estimate = ImportanceSampling(num_samples)(q, log_likelihood, tf.constant([0, 1]))
    assert shapes == [(num_samples, 5, case.latent.units)]
    assert estimate.value.shape == estimate.surrogate.shape == (5,)


def test_same_seed_same_estimate_and_no_seed_a_fresh_one(case):
    estimator = ImportanceSampling(200)

    def value(seed):
        return estimator(case.posterior(), case.log_likelihood, seed).value.numpy()

    one, two = tf.constant([1, 2]), tf.constant([1, 3])
    assert value(one) == value(one)
    assert value(one) != value(two)
    assert value(None) != value(None)


@pytest.mark.parametrize("num_samples, proposal", [(1, None), (3, None), (2, registered_flattened)])
def test_serialisation(case, num_samples, proposal):
    estimator = ImportanceSampling(num_samples, proposal)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(estimator))
    assert type(copy) is ImportanceSampling
    assert copy.num_samples == num_samples and copy.proposal is proposal
    value, gradient, _ = run(case, estimator)
    copied_value, copied_gradient, _ = run(case, copy)
    np.testing.assert_array_equal(value, copied_value)
    np.testing.assert_array_equal(gradient, copied_gradient)


def test_an_estimator_of_ones_own_must_define_call():
    with pytest.raises(NotImplementedError, match="__call__"):
        estimators.Estimator()(None, None)


# --- the other estimators -------------------------------------------------------------------------------------------

UNBIASED = {  # name -> (estimator, decoder evaluations per image, Bernoulli only)
    "LeaveOneOut(2)": (estimators.LeaveOneOut(2), 2, False),
    "LeaveOneOut(5)": (estimators.LeaveOneOut(5), 5, False),
    "DisARM(1)": (estimators.DisARM(1), 2, True),
    "DisARM(3)": (estimators.DisARM(3), 6, True),
    "ARMS(2)": (estimators.ARMS(2), 2, True),
    "ARMS(4)": (estimators.ARMS(4), 4, True),
    "ARMS(7)": (estimators.ARMS(7), 7, True),
}
BIASED = {
    "StraightThrough(2)": (estimators.StraightThrough(2), 2, False),
    "ReinMax(2)": (estimators.ReinMax(2), 2, False),
}
LINEARIZED = {
    "Linearized(DisARM(1))": (estimators.Linearized(), 3, True),
    "Linearized(ARMS(3))": (estimators.Linearized(estimators.ARMS(3)), 4, True),
    "Linearized(LeaveOneOut(3))": (estimators.Linearized(estimators.LeaveOneOut(3)), 4, False),
}
APPLICABLE = [
    (name, latent)
    for name, (_, _, bernoulli_only) in {**UNBIASED, **BIASED, **LINEARIZED}.items()
    for latent in LATENTS
    if latent == "3 bits" or not bernoulli_only
]


@pytest.mark.parametrize("name, latent", [pair for pair in APPLICABLE if pair[0] not in BIASED])
def test_unbiased_estimators(name, latent):
    """Means over 20,000 images of the value and of the gradient for eta against the enumerated ones, in standard
    errors of the sample: at most 7 components, |z| < 5.5: false alarm < 3e-7 per case."""
    case, draws = Case(*LATENTS[latent]), 20_000
    eta = tf.repeat(case.encoder(case.image), draws, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(eta)
        estimate = {**UNBIASED, **LINEARIZED}[name][0](
            case.latent.posterior(eta), case.log_likelihood, tf.constant([8, 1])
        )
    gradient = tape.gradient(estimate.surrogate, eta).numpy().astype(np.float64)
    value = estimate.value.numpy().astype(np.float64)

    eta64 = tf.constant(eta[:1].numpy(), tf.float64)
    q, values, _ = case.per_z()
    with tf.GradientTape() as tape:
        tape.watch(eta64)
        expectation = tf.reduce_sum(tf.exp(case.log_q(eta64, case.all_z)) * values)
    assert worst_z_score(gradient.mean(0), tape.gradient(expectation, eta64)[0], gradient.var(0), draws, 1e-5) < 5.5
    assert worst_z_score(value.mean(), q @ values, value.var(), draws, 1e-5) < 5.5


@pytest.mark.parametrize("name, latent", [pair for pair in APPLICABLE if pair[0] not in LINEARIZED])
def test_decoders_learn_from_every_sample(name, latent):
    """Exact: eq. 17 with weight 1, the mean of d ln p(x|z) over the z drawn; and the number of them."""
    case = Case(*LATENTS[latent])
    estimator, evaluations, _ = {**UNBIASED, **BIASED}[name]
    value, gradient, drawn = run(case, estimator)
    assert drawn.shape == (evaluations, 1, case.latent.units)
    rows = index_of(case, drawn)
    np.testing.assert_array_equal(case.all_z[rows], drawn[:, 0])
    _, values, gradients = case.per_z()
    decoder = sum(int(np.prod(v.shape)) for v in case.decoder.trainable_variables)
    np.testing.assert_allclose(value, [values[rows].mean()], rtol=1e-5)
    np.testing.assert_allclose(gradient[-decoder:], gradients[rows, -decoder:].mean(0), atol=2e-5)


def test_enumerated_is_exact(case):
    value, gradient, _ = run(case, estimators.Enumerated())
    q, values, gradients = case.per_z()
    np.testing.assert_allclose(value, [q @ values], rtol=1e-5)
    np.testing.assert_allclose(gradient, q @ gradients, atol=2e-5)


@pytest.mark.parametrize(
    "estimator, power", [(estimators.StraightThrough(), 1), (estimators.ReinMax(), 2)], ids=["ST", "ReinMax"]
)
@pytest.mark.parametrize("latent", [lambda: BernoulliLatent(1), lambda: CategoricalLatent(4)], ids=["bit", "category"])
def test_biased_estimators_are_exact_to_their_order(estimator, power, latent):
    """Straight-through is exact if ln p(x|z) is linear in z, ReinMax (Heun's method) if it is quadratic: the
    gradient of each z, weighted by q(z) and summed, is the gradient of the sum over z."""
    latent = latent()
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(1, latent.units)).astype(np.float32)
    linear, square = (tf.constant(rng.normal(size=latent.units), tf.float32) for _ in range(2))
    drawn = []

    def f(z):
        drawn.append(z.numpy())
        return tf.reduce_sum(linear * z, -1) + (tf.reduce_sum(square * z, -1) ** 2 if power == 2 else 0.0)

    many = tf.repeat(tf.constant(eta), 500, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(many)
        surrogate = estimator(latent.posterior(many), f, tf.constant([0, 1])).surrogate
    gradients = tape.gradient(surrogate, many).numpy()
    z = np.round(drawn[0][0])

    exact_eta = tf.constant(eta)
    with tf.GradientTape() as tape:
        tape.watch(exact_eta)
        exact = estimators.Enumerated()(latent.posterior(exact_eta), f).surrogate
    every = latent.from_codes(latent.all_codes()).numpy()
    q = np.exp(latent.posterior(eta).log_prob(every))
    of_each = [gradients[(z == one).all(-1)][0] for one in every]  # 500 draws: all of them occur
    np.testing.assert_allclose(q @ np.array(of_each), tape.gradient(exact, exact_eta)[0], atol=1e-5)


def reinmax_of_each(logits, tau, z, slopes):
    """ReinMax's gradient for logits (variables, categories) of one sample z, float64, from the slopes of f at z: with
    J(p) = diag(p) - p p^T of each variable, 2 J((softmax(eta / tau) + z) / 2) - J(softmax(eta)) / 2 on the slopes."""

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def jacobian(p):
        return p * (slopes - (p * slopes).sum(-1, keepdims=True))

    return 2 * jacobian((softmax(logits / tau) + z) / 2) - jacobian(softmax(logits)) / 2


@pytest.mark.parametrize("tau", [1.0, 1.3])
@pytest.mark.parametrize("spread", [1.0, 20.0, 1e4], ids=["spread 1", "20", "saturated"])
@pytest.mark.parametrize("latent", list(LATENTS))
def test_reinmax_in_closed_form(latent, spread, tau):
    """Each of 2,000 draws has the gradient that NumPy computes from its z, even if softmax is 0 or 1 in float32. At
    spread 1 every z occurs, and their gradients weighted by q(z) are the estimator's expected gradient."""
    latent_class, sizes = LATENTS[latent]
    latent, rng = latent_class(*sizes), np.random.default_rng(1)
    eta = (spread * rng.normal(size=(1, latent.units))).astype(np.float32)
    inner = rng.normal(size=(latent.units, 4))
    drawn = []

    def f(z):
        drawn.append(z.numpy())
        return tf.reduce_sum(100 * tf.sin(tf.tensordot(z, tf.constant(inner, tf.float32), 1)), -1)

    many = tf.repeat(tf.constant(eta), 2000, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(many)
        estimator = estimators.ReinMax(temperature=tau)
        surrogate = estimator(latent.posterior(many), f, tf.constant([0, 1])).surrogate
    gradients = tape.gradient(surrogate, many).numpy()
    z = np.round(drawn[0][0]).astype(np.float64)
    slopes = 100 * np.cos(z @ inner) @ inner.T
    if latent_class is BernoulliLatent:  # a bit is a variable of two categories with logits (0, eta)
        pair = lambda zeros, ones: np.stack(np.broadcast_arrays(zeros, ones), axis=-1)  # noqa: E731
        logits, one_hots, both = pair(0.0, eta.astype(np.float64)), pair(1 - z, z), pair(0.0, slopes)
        expected = reinmax_of_each(logits, tau, one_hots, both)[..., 1]
    else:
        shape = (-1, latent.units // sizes[0], sizes[0])
        expected = reinmax_of_each(eta.astype(np.float64).reshape(shape), tau, z.reshape(shape), slopes.reshape(shape))
        expected = expected.reshape(-1, latent.units)
    np.testing.assert_allclose(gradients, expected, atol=2e-3)
    # A softmax's Jacobian takes at most a quarter of the slopes' range: saturated logits blow nothing up.
    assert np.abs(gradients).max() <= (2 + 0.5) / 4 * 2 * np.abs(slopes).max()
    if spread == 1:
        every = latent.from_codes(latent.all_codes()).numpy()
        q = np.exp(latent.posterior(eta).log_prob(every))
        of_each = np.array([gradients[(z == one).all(-1)][0] for one in every])
        exact = np.array([expected[(z == one).all(-1)][0] for one in every])
        np.testing.assert_allclose(q @ of_each, q @ exact, atol=1e-3)


def test_reparameterized():
    """E[a.z + |z|^2] = a.m + |m|^2 + |s|^2: mean gradient over 20,000 images, 4 components, |z| < 5.5: false alarm
    < 2e-7."""
    latent, a, draws = GaussianLatent(2), np.array([0.7, -1.2]), 20_000
    eta = np.array([[0.3, -0.8, 0.5, -1.0]])
    many = tf.constant(np.repeat(eta, draws, axis=0), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(many)
        estimate = estimators.Reparameterized()(
            latent.posterior(many), lambda z: tf.reduce_sum(a.astype(np.float32) * z + z**2, -1), tf.constant([2, 3])
        )
    gradient = tape.gradient(estimate.surrogate, many).numpy().astype(np.float64)
    mean, raw = eta[0, :2], eta[0, 2:]
    scale, slope = np.log1p(np.exp(raw)) + 1e-6, 1 / (1 + np.exp(-raw))
    expected = np.concatenate([a + 2 * mean, 2 * scale * slope])
    assert worst_z_score(gradient.mean(0), expected, gradient.var(0), draws, floor=1e-5) < 5.5


def test_linearized_leaves_a_linear_f_nothing_to_find():
    """f linear in z: the tangent is f, and the gradient exact whatever is drawn: slope q (1 - q)."""
    slope, eta = tf.constant([3.0, -1.0, 0.5]), tf.constant([[0.3, -2.0, 1.0], [0.0, 1.0, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(eta)
        f = lambda z: tf.reduce_sum(z * slope, -1) - 100.0  # noqa: E731
        estimate = estimators.Linearized()(BernoulliLatent(3).posterior(eta), f, None)
    q = 1 / (1 + np.exp(-eta.numpy()))
    np.testing.assert_allclose(tape.gradient(estimate.surrogate, eta), slope * q * (1 - q), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimate.value, q @ slope.numpy() - 100, rtol=1e-5)


@pytest.mark.parametrize("latent", ["3 bits", "2 variables of 3"])
def test_linearized_trains_the_decoder_as_the_other_does(latent):
    """The tangent is held fixed: the decoder's gradient is that of the other estimator, with the same noise."""
    case = Case(*LATENTS[latent])
    gradients = []
    for estimator in (estimators.LeaveOneOut(2), estimators.Linearized(estimators.LeaveOneOut(2))):
        with tf.GradientTape() as tape:
            surrogate = estimator(case.posterior(), case.log_likelihood, tf.constant([4, 2])).surrogate
        gradients.append(tape.gradient(surrogate, case.decoder.trainable_variables))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "text, estimator",
    [
        ("ARMS:4", estimators.ARMS(4)),
        ("DisARM:3", estimators.DisARM(3)),
        ("Enumerated", estimators.Enumerated()),
        ("ImportanceSampling:2", ImportanceSampling(2)),
        ("LeaveOneOut:5", estimators.LeaveOneOut(5)),
        ("Reparameterized:1", estimators.Reparameterized()),
        ("StraightThrough:1", estimators.StraightThrough()),
        ("ReinMax:2", estimators.ReinMax(2)),
        ("ReinMax:2:1.3", estimators.ReinMax(2, temperature=1.3)),
        ("ReinMax:1:1e-05", estimators.ReinMax(temperature=1e-5)),
        ("Linearized+DisARM:1", estimators.Linearized()),
        ("Linearized+LeaveOneOut:3", estimators.Linearized(estimators.LeaveOneOut(3))),
    ],
)
def test_every_estimator_has_a_name(text, estimator):
    """`get` and `name_of` are inverse to each other; an object is its own."""
    assert estimators.name_of(estimator) == text
    made = estimators.get(text)
    assert type(made) is type(estimator) and made.get_config() == estimator.get_config()
    assert estimators.get(estimator) is estimator


def test_names_without_a_count_are_the_defaults():
    for name in ("ARMS", "DisARM", "Enumerated", "ImportanceSampling", "LeaveOneOut", "Linearized", "ReinMax"):
        cls = getattr(estimators, name)
        assert type(estimators.get(name)) is cls and estimators.get(name).get_config() == cls().get_config()


class Stray(estimators.Estimator):
    """An estimator of one's own: an object of it will do, its name will not."""


@pytest.mark.parametrize(
    "text",
    [
        "Estimator",
        "Stray",
        "_Samples",
        "disarm",
        "",
        "ARMS:",
        "ARMS:-1",
        "ARMS:2.0",
        "ARMS:\u00b2",
        "Linearized:2",
        "Enumerated:3",
        "ReinMax:1.3",
        "ReinMax:1:",
        "ReinMax::1.3",
        "ReinMax:1:-1.3",
        "ReinMax:1:1.3:2",
        "ARMS:4:1.3",
        "Linearized+",
        "Linearized+Stray",
    ],
)
def test_texts_that_name_no_estimator(text):
    with pytest.raises(ValueError, match="^estimator is ") as error:
        estimators.get(text)
    assert "\n" not in str(error.value)
    assert "ImportanceSampling, LeaveOneOut" in str(error.value) or "takes no" in str(error.value)
    assert "Stray," not in str(error.value) and "Samples," not in str(error.value).replace("ImportanceSampling,", "")


@pytest.mark.parametrize("value", [None, 3, estimators.DisARM, b"DisARM"], ids=str)
def test_what_is_no_estimator(value):
    with pytest.raises(TypeError, match="^estimator is .*; it must be an object of tf_isvae.estimators"):
        estimators.get(value)


def test_estimators_without_a_name():
    stray = Stray()
    assert estimators.get(stray) is stray
    for estimator in (stray, ImportanceSampling(2, registered_flattened), estimators.Linearized(stray)):
        with pytest.raises(ValueError, match="^estimator is .*; it must be one of"):
            estimators.name_of(estimator)


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED, *LINEARIZED])
def test_decoder_evaluations(name):
    """As many as the z that are decoded, counted in the decoder."""
    case, count = Case(*LATENTS["3 bits"]), 0
    estimator, evaluations, _ = {**UNBIASED, **BIASED, **LINEARIZED}[name]

    def log_likelihood(z):
        nonlocal count
        count += len(z)
        return case.log_likelihood(z)

    estimator(case.posterior(), log_likelihood, tf.constant([0, 1]))
    assert estimator.decoder_evaluations(case.latent) == evaluations == count


def test_decoder_evaluations_of_all_codes():
    assert estimators.Enumerated().decoder_evaluations(CategoricalLatent(3, variables=2)) == 9
    assert estimators.Linearized(estimators.Enumerated()).decoder_evaluations(BernoulliLatent(4)) == 17


def test_a_plain_distribution_as_posterior(case):
    """A latent of one's own may have any TFP distribution as posterior: the same samples, values and gradients as from
    ours of the same density, for the estimators that need no more than samples and densities."""
    ours = case.posterior()
    if case.is_bernoulli:
        plain = lambda q: tfd.Independent(tfd.Bernoulli(logits=q.logits, dtype=tf.float32), 1)  # noqa: E731
    else:
        sizes = ours.logits.shape[-2:]
        flatten = tfp.bijectors.Reshape(event_shape_in=sizes, event_shape_out=[case.latent.units])
        plain = lambda q: tfd.TransformedDistribution(  # noqa: E731
            tfd.Independent(tfd.OneHotCategorical(logits=q.logits, dtype=tf.float32), 1), flatten
        )
    for estimator in (ImportanceSampling(5), estimators.LeaveOneOut(5), ImportanceSampling(5, lambda q: plain(ours))):
        results = []
        for make in (lambda q: q, plain):
            with tf.GradientTape() as tape:
                estimate = estimator(make(case.posterior()), case.log_likelihood, tf.constant([3, 1]))
            gradient = tape.gradient(estimate.surrogate, case.encoder.trainable_variables)
            results.append([estimate.value, *gradient])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)
    for estimator in (estimators.DisARM(), estimators.Enumerated(), estimators.ReinMax(), estimators.Reparameterized()):
        with pytest.raises(TypeError, match="the posterior is (Independent|TransformedDistribution); it must be"):
            estimator.check(plain(ours))


def test_linearized_needs_an_estimator():
    with pytest.raises(TypeError, match="Linearized: estimator is 3") as error:
        estimators.Linearized(3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED, *LINEARIZED])
def test_serialisation_of_the_others(name):
    estimator = {**UNBIASED, **BIASED, **LINEARIZED}[name][0]
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(estimator))
    assert type(copy) is type(estimator) and copy.get_config() == estimator.get_config()


@pytest.mark.parametrize("name", ["DisARM(1)", "ARMS(4)", "LeaveOneOut(2)", "Linearized(DisARM(1))"])
@pytest.mark.parametrize("logit", [-1e4, -50.0, 50.0, 1e4])
def test_saturated_bits_have_finite_gradients(name, logit):
    eta = tf.fill((8, 3), logit)
    with tf.GradientTape() as tape:
        tape.watch(eta)
        q = BernoulliLatent(3).posterior(eta)
        estimate = {**UNBIASED, **LINEARIZED}[name][0](
            q, lambda z: -100 * tf.reduce_sum(z, -1) - 500, tf.constant([0, 1])
        )
    np.testing.assert_allclose(tape.gradient(estimate.surrogate, eta), np.zeros((8, 3)), atol=1e-6)


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_saturated_categories_have_no_gradient(gap):
    """One of three categories is certain, and softmax need not round to a sum of exactly 1: the steep slopes of f must
    not see that."""
    eta = tf.constant([[0.0, gap, 3.0, -gap, 0.0, -gap]] * 8)
    slope = tf.constant([300.0, -100.0, 7.0, 50.0, 1000.0, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(eta)
        q = CategoricalLatent(3, variables=2).posterior(eta)
        estimate = estimators.Linearized(estimators.LeaveOneOut(2))(
            q, lambda z: tf.reduce_sum(z * slope, -1) - 500, tf.constant([0, 1])
        )
    np.testing.assert_allclose(tape.gradient(estimate.surrogate, eta), np.zeros((8, 6)), atol=1e-6)
