"""products: latents of discrete and continuous parts, against sums over codes times Gauss-Hermite quadrature."""

import signal

import keras
import numpy as np
import pytest
import scipy.stats
import sklearn.mixture
import tensorflow as tf
import test_training
from helpers import one_line, same_run

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    ProductLatent,
    callbacks,
    estimators,
    evaluation,
    export,
    fit_clusters,
    networks,
    plotting,
    priors,
    training,
)
from tf_isvae.export import signatures
from tf_isvae.objective import Phase

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 3, 2, 1)).astype(np.float32)

LATENTS = {
    "category and gaussians": lambda: ProductLatent([CategoricalLatent(3), GaussianLatent(2)]),
    "gaussian before bits": lambda: ProductLatent([GaussianLatent(1), BernoulliLatent(2)]),
    "all kinds": lambda: ProductLatent(
        [GaussianLatent(1), CategoricalLatent(2, 2), GaussianLatent(2), BernoulliLatent(2)]
    ),
    "discrete only": lambda: ProductLatent([CategoricalLatent(3), BernoulliLatent(2)]),
}


@pytest.fixture(params=LATENTS)
def latent(request):
    return LATENTS[request.param]()


def random_eta(latent, batch=4):
    return np.random.default_rng(1).normal(scale=1.5, size=(batch, latent.encoder_units)).astype(np.float32)


def with_own(latent, eta):
    """Each part with its columns of eta."""
    ends = np.cumsum([part.encoder_units for part in latent.parts])[:-1]
    return list(zip(latent.parts, np.split(eta, ends, axis=1), strict=True))


def build(latent, estimator="ImportanceSampling", **options):
    keras.utils.set_random_seed(0)
    encoder = networks.dense_encoder((3, 2, 1), latent.encoder_units, (4,))
    decoder = networks.dense_decoder(latent.units, (3, 2, 1), (4,))
    return DiscreteVAE(encoder, latent, decoder, estimator=estimator, seed=0, **options)


# --- the posterior -----------------------------------------------------------------------------------------------


def test_everything_is_that_of_the_parts(latent):
    """Sums over the parts, or their results side by side: each part is asked alone."""
    eta = random_eta(latent)
    q = latent.posterior(eta)
    each = [(part, part.posterior(own)) for part, own in with_own(latent, eta)]
    assert q.batch_shape == (4,) and q.event_shape == (latent.units,)
    z = q.sample(6, seed=(0, 1))
    assert z.shape == (6, 4, latent.units) and z.dtype == tf.float32
    parts = np.split(z.numpy(), np.cumsum([part.units for part in latent.parts])[:-1], axis=-1)
    expected = sum(own.log_prob(one).numpy() for (_, own), one in zip(each, parts, strict=True))
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-5)
    np.testing.assert_allclose(latent.kl(q), sum(part.kl(own).numpy() for part, own in each), rtol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(latent.kl_per_unit(q), -1), latent.kl(q), rtol=1e-5)
    assert latent.kl_per_unit(q).shape == (4, latent.code_units + latent.feature_units)
    np.testing.assert_allclose(q.negative_entropy(), -sum(own.entropy().numpy() for _, own in each), rtol=1e-4)
    for name in ("mean", "mode"):
        np.testing.assert_array_equal(getattr(q, name)(), np.concatenate([getattr(own, name)() for _, own in each], 1))


def test_samples_of_noise_are_those_of_the_parts(latent):
    eta, uniform = random_eta(latent), RNG.uniform(0.01, 0.99, (4, latent.units)).astype(np.float32)
    q = latent.posterior(eta)
    ends = np.cumsum([part.units for part in latent.parts])[:-1]
    pairs = zip(with_own(latent, eta), np.split(uniform, ends, axis=1), strict=True)
    expected = [part.posterior(own).sample_from(noise, "a test") for (part, own), noise in pairs]
    assert q.takes_noise
    np.testing.assert_array_equal(q.sample_from(uniform, "a test"), np.concatenate(expected, 1))


def test_codes_and_features_give_z_back(latent):
    z = latent.posterior(random_eta(latent)).sample(seed=(0, 2))
    stored = latent.stored(z)
    stored = stored if isinstance(stored, tuple) else (stored,)
    assert stored[0].dtype == tf.int32 and stored[0].shape == (4, latent.code_units)
    if latent.feature_units:
        assert stored[1].dtype == tf.float32 and stored[1].shape == (4, latent.feature_units)
    np.testing.assert_array_equal(latent.from_codes(*stored), z)
    latent.check_stored(*(part.numpy() for part in stored))


@pytest.mark.all
def test_a_product_without_continuous_part_is_enumerated():
    latent = LATENTS["discrete only"]()
    assert latent.num_codes == 12 == len(np.unique(latent.all_codes(), axis=0)) and latent.enumerable
    model, single = build(latent, "Enumerated"), build(latent, "LeaveOneOut:2")
    elbo = np.mean([single.elbo(IMAGES, seed=seed) for seed in range(300)], axis=0)
    np.testing.assert_allclose(model.elbo(IMAGES), elbo, atol=0.2)
    assert (model.log_likelihood(IMAGES) >= model.elbo(IMAGES)).all()
    assert model.encode(IMAGES).shape == (5, 3) and model.decode(model.encode(IMAGES)).shape == IMAGES.shape


# --- the estimator -----------------------------------------------------------------------------------------------

DRAWS = 20_000


def function(z, theta):
    """Some f(z, w) that is bent in all of its arguments, of z (..., units), and of parameters (..., units)."""
    inner = tf.reduce_sum(z * theta, axis=-1)
    return 3.0 * tf.sin(inner) + tf.square(inner - 1.0) + tf.reduce_sum(tf.cos(z), axis=-1) * inner


def exact(latent, eta, theta):
    """E_q[f] and its gradients with respect to eta and theta: all codes times 40 quadrature nodes, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    discrete, gaussian = latent.parts
    assert gaussian.units == 1
    eta, theta = tf.constant(eta, tf.float64), tf.constant(theta, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([eta, theta])
        logits, mean, raw = eta[: discrete.encoder_units], eta[-2], eta[-1]
        w = mean + (tf.nn.softplus(raw) + 1e-6) * nodes
        z = tf.constant(discrete.from_codes(discrete.all_codes()).numpy(), tf.float64)
        if isinstance(discrete, BernoulliLatent):
            log_q = tf.reduce_sum(z * logits - tf.nn.softplus(logits), axis=-1)
        else:
            log_q = tf.linalg.matvec(z, tf.nn.log_softmax(logits))
        both = tf.concat([tf.repeat(z, len(nodes), axis=0), tf.tile(w[:, None], (len(z), 1))], axis=1)
        f = tf.reshape(function(both, theta), (len(z), len(nodes)))
        mean = tf.reduce_sum(tf.exp(log_q)[:, None] * f * (weights / weights.sum()))
    return mean.numpy(), *(each.numpy() for each in tape.gradient(mean, [eta, theta]))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("category", "Hybrid+Enumerated"),
        ("category", "Hybrid+LeaveOneOut:2"),
        ("bits", "Hybrid+Enumerated"),
        ("bits", "Hybrid+DisARM:1"),
        ("bits", "Hybrid+ARMS:3"),
        ("bits", "Hybrid+Linearized+DisARM:1"),
        ("bits", "LeaveOneOut:2"),
    ],
)
def test_the_estimate_is_unbiased(part, name):
    """Value and every gradient lie within 5.5 standard errors: each fails by chance with probability 4e-8."""
    latent = ProductLatent([CategoricalLatent(3) if part == "category" else BernoulliLatent(2), GaussianLatent(1)])
    eta = np.random.default_rng(3).normal(size=latent.encoder_units)
    theta = np.random.default_rng(4).normal(size=latent.units)
    expected = exact(latent, eta, theta)
    etas = tf.constant(np.tile(eta, (DRAWS, 1)), tf.float32)
    thetas = tf.constant(np.tile(theta, (DRAWS, 1)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([etas, thetas])
        estimate = estimators.get(name)(latent.posterior(etas), lambda z: function(z, thetas), seed=(3, 4))
        total = tf.reduce_sum(estimate.surrogate)
    for found, wanted in zip([estimate.value, *tape.gradient(total, [etas, thetas])], expected, strict=True):
        found = found.numpy().astype(np.float64)
        error = found.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        assert (np.abs(found.mean(axis=0) - wanted) < 5.5 * error + 1e-5).all(), (name, found.mean(axis=0), wanted)


def test_names_and_costs():
    estimator = estimators.get("Hybrid+DisARM:2")
    assert estimators.name_of(estimator) == "Hybrid+DisARM:2" and repr(estimator) == "Hybrid(DisARM(num_pairs=2))"
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(estimator))
    assert copy.get_config() == estimator.get_config()
    assert estimators.get("Hybrid").decoder_evaluations(LATENTS["category and gaussians"]()) == 3
    assert estimator.decoder_evaluations(LATENTS["gaussian before bits"]()) == 4
    assert estimators.get("Hybrid").decoder_evaluations(LATENTS["all kinds"]()) == 16


# --- the prior with a Gaussian for each category ------------------------------------------------------------------


def disturbed_clusters(latent):
    """A priors.Clusters with random weights."""
    prior = priors.Clusters().build_for(latent)
    rng = np.random.default_rng(6)
    for weight in prior.weights:
        weight.assign(0.7 * rng.normal(size=weight.shape))
    return prior


def as_table(prior):
    """What it stands for, in float64: ln p(c), the means, and the covariances, inverses of A^T A."""
    logits, mean, raw = (weight.numpy().astype(np.float64) for weight in (prior.weight_logits, prior.mean, prior.raw))
    factors = np.tril(raw, -1) + np.exp(raw) * np.eye(raw.shape[-1])
    covariances = np.linalg.inv(np.swapaxes(factors, 1, 2) @ factors)
    return logits - np.log(np.exp(logits).sum()), mean, covariances


@pytest.mark.parametrize(
    "name",
    [
        "gaussian before bits",
        *(pytest.param(name, marks=pytest.mark.all) for name in ("category and gaussians", "all kinds")),
    ],
)
def test_clusters_against_enumeration_and_quadrature(name):
    """KL and ln p(z): sums over all codes times Gauss-Hermite nodes, with SciPy's density, in float64."""
    latent = LATENTS[name]()
    prior = disturbed_clusters(latent)
    log_p, means, covariances = as_table(prior)
    eta = random_eta(latent, 2)
    split = latent.posterior(eta).split("a test")
    codes = split.discrete.all_z("a test")
    log_q = split.discrete.log_prob(codes[:, None]).numpy().astype(np.float64)  # (codes, images)
    d = latent.feature_units
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)  # exact: the integrand is quadratic
    grid = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), -1).reshape(-1, d)
    share = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * d, indexing="ij"), -1).reshape(-1, d), axis=1)
    for image in range(2):
        mean, stddev = (
            each.numpy()[image].astype(np.float64) for each in (split.continuous.mean(), split.continuous.stddev())
        )
        w = mean + stddev * grid
        log_q_w = scipy.stats.norm.logpdf(grid).sum(1) - np.log(stddev).sum()
        expected = 0.0
        for c in range(len(codes)):
            log_p_w = scipy.stats.multivariate_normal(means[c], covariances[c]).logpdf(w)
            z = split.join(codes[c][None, None], tf.constant(w[:, None], tf.float32))[:, 0]
            np.testing.assert_allclose(prior.log_prob(z), log_p[c] + log_p_w, rtol=1e-3, atol=1e-3)
            inner = log_q[c, image] + log_q_w - log_p[c] - log_p_w
            expected += np.exp(log_q[c, image]) * (share * inner).sum()
        np.testing.assert_allclose(prior.kl(latent.posterior(eta))[image], expected, rtol=1e-4)


def test_clusters_begin_as_the_latents_own_prior(latent):
    if not latent.feature_units:
        with pytest.raises(TypeError) as found:
            priors.Clusters().build_for(latent)
        return one_line(found, "Clusters: the posterior is Product", "discrete and of continuous parts")
    prior, q = priors.Clusters().build_for(latent), latent.posterior(random_eta(latent))
    assert prior.untouched and not disturbed_clusters(latent).untouched
    np.testing.assert_allclose(prior.kl(q), latent.kl(q), rtol=1e-4)
    z = q.sample(seed=(0, 1))
    np.testing.assert_allclose(prior.log_prob(z), latent.prior().log_prob(z), rtol=1e-4)


@pytest.mark.all
def test_samples_of_clusters_and_where_they_start():
    """Started from a table, the samples have it: 5.5 standard errors, each fails by chance with probability 4e-8."""
    latent = LATENTS["category and gaussians"]()
    weights, means = np.array([0.5, 0.3, 0.2]), np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 1.0]])
    factors = np.array([[[1.0, 0.0], [0.5, 0.2]], [[0.3, 0.0], [-1.0, 2.0]], [[2.0, 0.0], [0.0, 1.0]]])
    covariances = factors @ np.swapaxes(factors, 1, 2)
    prior = priors.Clusters().build_for(latent)
    prior.start(weights, means, covariances)
    for found, wanted in zip(as_table(prior), (np.log(weights), means, covariances), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    n = 20_000
    code, w = np.split(prior.sample(n, seed=0).numpy(), [3], axis=1)
    assert (np.abs(code.mean(0) - weights) < 5.5 * np.sqrt(weights * (1 - weights) / n)).all()
    for c in range(3):
        white = np.linalg.solve(factors[c], (w[code[:, c] == 1] - means[c]).T)  # independent standard normal
        count = white.shape[1]
        assert (np.abs(white.mean(1)) < 5.5 / np.sqrt(count)).all()
        assert (np.abs(np.cov(white) - np.eye(2)) < 5.5 * np.sqrt(2 / count)).all()


# --- the model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    model = build(LATENTS["category and gaussians"](), "Hybrid+Enumerated")
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(IMAGES, epochs=2, callbacks=[callbacks.KLAnnealing(5, 1)], verbose=0)
    return model


@pytest.mark.all
def test_annealing_weighs_the_continuous_kl_only(model):
    """loss = -E_q[ln p(x|z)] + KL(category) + weight * KL(Gaussians)."""
    latent, seed = model.latent, tf.constant([0, 1])
    (category, logits), (gaussian, other) = with_own(latent, np.asarray(model.encoder(IMAGES)))
    parts = [part.kl(part.posterior(own)).numpy() for part, own in ((category, logits), (gaussian, other))]
    try:
        model.kl_annealing.assign(30.0)
        estimate, kl, losses = model._training_terms(tf.constant(IMAGES), seed)
    finally:
        model.kl_annealing.assign(1.0)
    np.testing.assert_allclose(kl, sum(parts), rtol=1e-5)
    np.testing.assert_allclose(losses + estimate.surrogate, parts[0] + 30 * parts[1], rtol=1e-4)


def test_encode_and_decode(model):
    many = np.random.default_rng(2).random((1030, 3, 2, 1)).astype(np.float32)  # more than one chunk
    codes, features = model.encode(many)
    assert codes.dtype == np.int32 and codes.shape == (1030, 1) and 0 <= codes.min() <= codes.max() < 3
    assert features.dtype == np.float32 and features.shape == (1030, 2)
    eta = np.asarray(model.encoder(many))
    np.testing.assert_array_equal(codes[:, 0], eta[:, :3].argmax(1))
    np.testing.assert_allclose(features, eta[:, 3:5], atol=1e-6)
    z = np.concatenate([np.eye(3, dtype=np.float32)[codes[:, 0]], features], axis=1)
    np.testing.assert_allclose(model.decode(codes, features), tf.sigmoid(model.decoder(z)), atol=1e-6)
    np.testing.assert_allclose(model.predict(many, verbose=0), model.decode(codes, features), atol=1e-6)
    assert model.generate(7, seed=0).shape == (7, 3, 2, 1)
    refined = model.encode(IMAGES, refine=2)
    assert [part.shape for part in refined] == [(5, 1), (5, 2)]


def test_the_bound_is_tighter_than_the_elbo(model):
    elbo = np.mean([model.elbo(IMAGES, seed=seed) for seed in range(20)])
    assert model.log_likelihood(IMAGES, 200, seed=0).mean() > elbo


def test_a_file_gives_the_model_back(model, tmp_path):
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    for one, other in zip(model.encode(IMAGES), copy.encode(IMAGES), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model.elbo(IMAGES, seed=0), copy.elbo(IMAGES, seed=0))
    assert estimators.name_of(copy.estimator) == "Hybrid+Enumerated"
    assert [type(part) for part in copy.latent.parts] == [CategoricalLatent, GaussianLatent]


@pytest.mark.all
@pytest.mark.parametrize("prior", ["factorized", "mixture", "clusters"])
def test_priors_that_learn(prior):
    model = build(LATENTS["all kinds"](), "Hybrid+Enumerated", prior=prior)
    model.compile("adam")
    history = model.fit(IMAGES, epochs=2, callbacks=[callbacks.KLAnnealing(5, 1)], verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.generate(3, seed=0).shape == (3, 3, 2, 1)


# --- the warm start ----------------------------------------------------------------------------------------------


def of_two_pixels():
    """A model whose encoder is one linear layer, and 3 clusters of images of two pixels, which it hands on as w."""
    latent = LATENTS["category and gaussians"]()
    rng, middle = np.random.default_rng(7), np.array([[0.2, 0.2], [0.2, 0.8], [0.8, 0.5]])
    which = rng.integers(0, 3, 300)
    images = np.clip(middle[which] + 0.03 * rng.normal(size=(300, 2)), 0, 1).astype(np.float32).reshape(-1, 2, 1, 1)
    encoder = networks.dense_encoder((2, 1, 1), latent.encoder_units, ())
    kernel = np.zeros((2, 7), np.float32)
    kernel[:, 3:5] = 10 * np.eye(2)
    encoder.set_weights([kernel, np.float32([0, 0, 0, -5, -5, -3, -3])])
    decoder = networks.dense_decoder(latent.units, (2, 1, 1), (4,))
    return DiscreteVAE(encoder, latent, decoder, estimator="Hybrid", prior="clusters", seed=0), images, which, middle


@pytest.mark.all
def test_fit_clusters_finds_clusters():
    """Prior and categories become the three clusters of the images; what the encoder says of w stays, bit for bit."""
    model, images, which, middle = of_two_pixels()
    before = model.encode(images)[1]
    found = fit_clusters(model, images, starts=2)
    codes, features = model.encode(images)
    np.testing.assert_array_equal(features, before)
    for each in (found, codes):
        figures = evaluation.clustering(each, which)
        assert figures["matched_accuracy"] == 1 and figures["clusters"] == 3
    own = [np.flatnonzero(found == c)[0] for c in range(3)]  # an image of each component
    log_p, means, covariances = as_table(model.prior)
    np.testing.assert_allclose(np.exp(log_p), np.bincount(found) / 300, atol=1e-3)
    np.testing.assert_allclose(means, 10 * middle[which[own]] - 5, atol=0.2)  # 0.3 is the spread of 100 images
    variance = np.log1p(np.exp(-3.0)) ** 2  # of q
    for c in range(3):
        np.testing.assert_allclose(covariances[c], np.cov(before[found == c].T) + variance * np.eye(2), atol=0.01)


@pytest.mark.all
def test_a_warm_start():
    """First the Gaussians alone: nothing moves of categories and prior; then all do. Logs are those of the ELBO."""
    model, images, *_ = of_two_pixels()
    model.compile(keras.optimizers.Adam(1e-2))
    kernels = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kernels.append((model.encoder.get_weights()[0], model.prior.untouched))
    )
    start = callbacks.WarmStart(lambda: images, epochs=2, distortion=None)
    began = model.encoder.get_weights()[0]
    model.fit(images, epochs=3, callbacks=[start, look], verbose=0)
    for kernel, untouched in kernels[:2]:
        np.testing.assert_array_equal(kernel[:, :3], began[:, :3])
        assert untouched and not np.array_equal(kernel[:, 3:], began[:, 3:])
    assert not kernels[2][1] and not np.array_equal(kernels[2][0][:, :3], began[:, :3])
    assert model.phase == Phase()
    kept = model.prior.get_weights()
    # As a run that goes on. Another estimator of the first epochs takes its turn from then on.
    phases, first = [], callbacks.FirstEstimator("Hybrid+ReinMax", epochs=4)
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: phases.append(model.phase))
    model.fit(images, epochs=3, initial_epoch=2, callbacks=[first, start, look], verbose=0)
    assert phases == [Phase(estimator=first.estimator)]
    assert np.abs(model.prior.get_weights()[1] - kept[1]).max() < 1  # trained on, not started again
    # Another training of what is trained: nothing waits.
    del phases[:]
    model.fit(images, epochs=3, callbacks=[start, look], verbose=0)
    assert phases == 3 * [Phase()]


@pytest.mark.all
@pytest.mark.parametrize("stops", [[3], [1, 3], [2, 3]], ids=str)
def test_a_first_estimator_beside_a_warm_start(stops):
    """From the first epoch: the Gaussians alone, then the first estimator, then the model's own; resumed, the same."""
    first = callbacks.FirstEstimator("Hybrid+ReinMax", epochs=2)
    alone = Phase(first.estimator, categories_wait=True, distortion=0.1)
    expected = [alone, Phase(first.estimator), Phase()]
    model, images, *_ = of_two_pixels()
    model.compile(keras.optimizers.Adam(1e-2))
    phases, begin = [], 0
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: phases.append(model.phase))
    for end in stops:
        given = [first, callbacks.WarmStart(images, epochs=1), look]
        model.fit(images, initial_epoch=begin, epochs=end, callbacks=given, verbose=0)
        begin = end
    assert phases == expected


@pytest.mark.all
def test_a_warm_start_that_fails_leaves_nothing_behind():
    """Nor does one that finds the prior set by hand go on to wait."""
    model, images, *_ = of_two_pixels()
    model.compile(keras.optimizers.Adam(1e-2))

    def fail(epoch, logs):
        assert model.phase.categories_wait
        raise ZeroDivisionError

    look = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(ZeroDivisionError):
        model.fit(images, epochs=3, callbacks=[callbacks.WarmStart(images, epochs=2), look], verbose=0)
    assert model.phase == Phase()

    def start_by_hand(epoch, logs):
        model.prior.start(np.ones(3) / 3, np.eye(3)[:, :2], np.stack(3 * [np.eye(2)]))

    phases = []
    look = keras.callbacks.LambdaCallback(lambda epoch, logs: phases.append(model.phase), start_by_hand)
    given = [callbacks.WarmStart(images, epochs=2, distortion=None), look]
    model.fit(images, epochs=2, callbacks=given, verbose=0)
    assert phases == [Phase(categories_wait=True), Phase()]


def test_few_components_get_no_more_starts_than_ten(monkeypatch):
    model, images, *_ = of_two_pixels()
    seeds = []

    class Counted(sklearn.mixture.GaussianMixture):
        def fit(self, data):
            seeds.append(self.random_state)
            return super().fit(data)

    monkeypatch.setattr(sklearn.mixture, "GaussianMixture", Counted)
    fit_clusters(model, images[:60])
    assert seeds == list(range(16))


def test_what_a_warm_start_refuses():
    model, images, *_ = of_two_pixels()
    other = model.with_prior("uniform")
    other.compile("adam")
    with pytest.raises(TypeError) as found:
        other.fit(images, callbacks=[callbacks.WarmStart(images)], verbose=0)
    one_line(found, "WarmStart: the prior is Uniform", "prior='clusters'")
    with pytest.raises(TypeError) as found:
        fit_clusters(other, images)
    one_line(found, "fit_clusters: the prior is Uniform")
    with pytest.raises(TypeError) as found:
        BernoulliLatent(2).undecided(tf.zeros((1, 2)))
    one_line(found, "WarmStart: the latent is BernoulliLatent", "ProductLatent")
    model.encoder.add(keras.layers.Activation("linear"))
    with pytest.raises(TypeError) as found:
        fit_clusters(model, images)
    one_line(found, "fit_clusters: the encoder ends with a Activation", "Dense")


def test_traversals(model, tmp_path):
    """As many rows as categories, columns as values; the feature that is chosen changes the images most."""
    many = np.random.default_rng(3).random((50, 3, 2, 1)).astype(np.float32)
    codes, features = model.encode(many)

    def change(feature):
        total = 0.0
        for code in np.unique(codes):
            own = features[codes[:, 0] == code]
            ends = np.tile(own.mean(0), (2, 1))
            spread = (own if len(own) >= 10 else features)[:, feature].std()
            ends[:, feature] += [-2 * spread, 2 * spread]
            total += np.abs(np.subtract(*model.decode([[code]] * 2, ends))).sum()
        return total

    assert plotting.traversals(model, many, tmp_path / "a.png") == np.argmax([change(0), change(1)])
    with pytest.raises(ValueError) as found:
        plotting.traversals(build(BernoulliLatent(2)), many, tmp_path / "b.png")
    one_line(found, "the model's latent is BernoulliLatent without continuous parts", "ProductLatent")
    with pytest.raises(ValueError) as found:
        plotting.traversals(model, many, tmp_path / "b.png", feature=2)
    one_line(found, "traversals: feature is 2")


def test_traversals_of_codes_that_one_image_has(tmp_path, monkeypatch):
    """The feature that the decoder does see changes most, though no two images of a code say how far it reaches.

    A row says which code it is.
    """
    model = build(ProductLatent([BernoulliLatent(30), GaussianLatent(2)]))
    many = np.random.default_rng(3).random((9, 3, 2, 1)).astype(np.float32)
    assert len(np.unique(model.encode(many)[0], axis=0)) == 9
    kernel = model.decoder.layers[0].kernel
    kernel.assign(kernel * np.float32([1] * 30 + [0, 1])[:, None])
    drawn, draw = [], plotting.mosaics.image_rows
    monkeypatch.setattr(plotting.mosaics, "image_rows", lambda rows, *rest: drawn.append(rows) or draw(rows, *rest))
    assert plotting.traversals(model, many, tmp_path / "a.png") == 1
    assert set(drawn[0]) == {"".join(map(str, code)) + ": 11.1%" for code in model.encode(many)[0]}
    model = build(ProductLatent([CategoricalLatent(12, 5), GaussianLatent(2)]))
    codes = model.encode(many)[0]
    plotting.traversals(model, many, tmp_path / "a.png")
    assert codes.max() > 9 and {label.partition(":")[0] for label in drawn[1]} == {
        ", ".join(map(str, c)) for c in codes
    }


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ([], ValueError, ["parts is []", "list of latents"]),
        (CategoricalLatent(2), ValueError, ["list of latents"]),
        ([CategoricalLatent(2), 3], TypeError, ["a part is 3", "must be a"]),
        ([GaussianLatent(2), GaussianLatent(1)], ValueError, ["no part is discrete", "GaussianLatent(units)"]),
    ],
)
def test_bad_parts(parts, error, text):
    with pytest.raises(error) as found:
        ProductLatent(parts)
    one_line(found, *text)


def test_a_product_in_a_product():
    with pytest.raises(ValueError) as found:
        ProductLatent([LATENTS["discrete only"](), GaussianLatent(1)])
    one_line(found, "a part is a ProductLatent", "give its parts")


@pytest.mark.parametrize(
    ("name", "estimator", "text"),
    [
        ("category and gaussians", "Enumerated", ["Enumerated: the posterior is Product", "Hybrid(Enumerated())"]),
        ("gaussian before bits", "DisARM", ["DisARM: the posterior is Product", "Hybrid(DisARM(...))"]),
        ("category and gaussians", "Hybrid+DisARM", ["DisARM: the posterior is OneHots", "must be Bits"]),
        ("category and gaussians", "Reparameterized", ["Reparameterized: the posterior is Product"]),
        ("discrete only", "Hybrid", ["Hybrid: the posterior is Product", "discrete and of continuous"]),
    ],
)
def test_estimators_that_do_not_take_it(name, estimator, text):
    with pytest.raises(TypeError) as found:
        build(LATENTS[name](), estimator)
    one_line(found, *text)


def test_hybrid_of_bits_alone():
    with pytest.raises(TypeError) as found:
        build(BernoulliLatent(2), "Hybrid")
    one_line(found, "Hybrid: the posterior is Bits", "ProductLatent")


def test_bad_codes_and_features(model):
    codes, features = model.encode(IMAGES)
    for given, text in (
        ((codes,), ["features are missing", "(n, 2)"]),
        ((codes, features[:, :1]), ["features have shape (5, 1)", "(5, 2)"]),
        ((codes, features[:3]), ["features have shape (3, 2)", "5 codes"]),
        ((codes, np.full((5, 2), np.nan)), ["not all finite"]),
        ((codes + 3, features), ["codes have values", "0 to 2"]),
    ):
        with pytest.raises(ValueError) as found:
            model.decode(*given)
        one_line(found, *text)
    with pytest.raises(ValueError) as found:
        build(BernoulliLatent(2)).decode(np.zeros((5, 2), int), features)
    one_line(found, "features were given", "leave them out")


# --- export, evaluation, runs ------------------------------------------------------------------------------------


@pytest.mark.all
def test_saved_model_and_litert_give_what_the_model_gives(model, tmp_path):
    """encode, decode and generate of both formats; the features are a second output, and a second input of decode."""
    from ai_edge_litert.interpreter import Interpreter

    codes, features = model.encode(IMAGES)
    saved = tf.saved_model.load(str(export.saved_model(model, tmp_path / "hybrid", warmup=False))).signatures
    lite = Interpreter(str(export.litert(model, tmp_path / "hybrid.tflite")))
    noise = {"seed": tf.constant([[0, 1], [2, 3]])}, {"noise": np.full((2, 5), 0.3, np.float32)}
    for of, sampling in zip((lambda name: saved[name], lite.get_signature_runner), noise, strict=True):
        encoded = of("encode")(images=tf.constant(IMAGES) if sampling.get("seed") is not None else IMAGES)
        assert set(encoded) == {"codes", "features", "logits"}
        np.testing.assert_array_equal(encoded["codes"], codes)
        np.testing.assert_allclose(encoded["features"], features, atol=1e-5)
        both = {"codes": codes, "features": features}
        if "seed" in sampling:
            both = {name: tf.constant(value) for name, value in both.items()}
        np.testing.assert_allclose(of("decode")(**both)["images"], model.decode(codes, features), atol=1e-5)
        generated = of("generate")(**sampling)
        decoded = model.decode(np.asarray(generated["codes"]), np.asarray(generated["features"]))
        np.testing.assert_allclose(generated["images"], decoded, atol=1e-5)
    card = (tmp_path / "hybrid" / "README.md").read_text()
    assert "features float32 (n, 2)" in card and 'features=codes["features"]' in card
    with pytest.raises(tf.errors.InvalidArgumentError, match="features have values"):
        saved["decode"](codes=tf.constant(codes), features=tf.constant(features * np.nan))


@pytest.mark.all
def test_exports_with_clusters(tmp_path):
    """generate and score of SavedModel and LiteRT: what prior and likelihood give for the same noise."""
    from ai_edge_litert.interpreter import Interpreter

    latent = LATENTS["category and gaussians"]()
    model = build(latent, "Hybrid", prior=disturbed_clusters(latent))
    model.save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")  # with its prior
    seed = np.random.default_rng(0).integers(0, 2**31, (len(IMAGES), 2), np.int32)
    noise = signatures.uniforms(tf.constant(seed), latent.units)
    codes, features = latent.stored(model.prior.sample_from(noise))
    kl = model.prior.kl(latent.posterior(model.encoder(IMAGES)))
    served = tf.saved_model.load(str(export.saved_model(model, tmp_path / "s", warmup=False))).signatures
    lite = Interpreter(str(export.litert(model, tmp_path / "m.tflite"))).get_signature_runner
    for found, score in (
        (served["generate"](seed=tf.constant(seed)), served["score"](images=IMAGES, seed=tf.constant(seed))),
        (lite("generate")(noise=noise.numpy()), lite("score")(images=IMAGES, noise=noise.numpy())),
    ):
        np.testing.assert_array_equal(found["codes"], codes)
        np.testing.assert_allclose(found["features"], features, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(score["kl"], kl, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(score["elbo"], score["log_likelihood"] - score["kl"], rtol=1e-4, atol=1e-4)


@pytest.mark.all
def test_evaluation(model):
    images = np.random.default_rng(5).random((40, 3, 2, 1)).astype(np.float32)
    labels = np.arange(40) % 3
    figures = evaluation.evaluate(model, (images, labels), (images, labels))
    expected = evaluation.clustering(model.encode(images)[0], labels)
    assert figures["cluster_matched_accuracy"] == expected["matched_accuracy"] and figures["codes_used"] <= 3
    assert figures["cluster_nmi"] == expected["nmi"] and figures["test_ln_p_kind"] == "bound of 100 samples"
    statistics = evaluation.code_statistics(model, images)
    assert statistics["usage"].shape == (1, 3) and statistics["kl_per_unit"].shape == (3,)
    assert len(evaluation.templates(model, images, count=2)) <= 2


@pytest.mark.all
def test_two_replicas_step_as_one(apart):
    """Without clusters; and with them: the mixture after the Gaussians' epochs, and the epochs together."""
    without, with_clusters = apart("hybrid_on_two_replicas", devices=2)
    (weights, losses), (weights_of_two, losses_of_two) = without
    np.testing.assert_allclose(weights_of_two, weights, atol=1e-4)
    np.testing.assert_allclose(losses_of_two, losses, rtol=1e-4)
    (started_two, ended_two, losses_of_two), (started, ended, losses) = with_clusters
    assert np.abs(ended - started).max() > 1e-3
    np.testing.assert_allclose(started_two, started, atol=1e-4)
    np.testing.assert_allclose(ended_two, ended, atol=1e-4)
    np.testing.assert_allclose(losses_of_two, losses, rtol=1e-4)


@pytest.mark.all
@pytest.mark.parametrize("name", ["fc_hvae", "cnn_hvae", "fc_hbvae"])
def test_a_run_that_is_stopped_and_resumed(name, monkeypatch, tmp_path):
    """The best recipe on the digits, bit for bit as without the stop; and what the run reports of its categories."""
    settings = {"model": name, "dataset": "digits", "image_size": (8, 8), "latent_dim": (3, 2), "batch_size": 500}
    settings |= {"epochs": 3, "seed": 0, "precision": "float32"}  # with clusters, the first epoch is the Gaussians'

    def config(folder):
        return training.Config(**settings, run_dir=str(tmp_path / folder))

    metrics, whole = training.train(config("whole"))
    resumed = test_training.run_in_two_parts(monkeypatch, config("parts"), 4, signal.SIGTERM)
    same_run(resumed, whole)
    assert metrics["steps"] == 9
