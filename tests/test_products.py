"""products: latents of discrete and continuous parts, against sums over codes times Gauss-Hermite quadrature."""

import signal

import keras
import numpy as np
import pytest
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
    networks,
    training,
)

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


# --- the model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    model = build(LATENTS["category and gaussians"](), "Hybrid+Enumerated")
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(IMAGES, epochs=2, callbacks=[callbacks.KLAnnealing(5, 1)], verbose=0)
    return model


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
@pytest.mark.parametrize("prior", ["factorized", "mixture"])
def test_priors_that_learn(prior):
    model = build(LATENTS["all kinds"](), "Hybrid+Enumerated", prior=prior)
    model.compile("adam")
    history = model.fit(IMAGES, epochs=2, callbacks=[callbacks.KLAnnealing(5, 1)], verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.generate(3, seed=0).shape == (3, 3, 2, 1)


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
    (weights, losses), (weights_of_two, losses_of_two) = apart("hybrid_on_two_replicas", devices=2)
    np.testing.assert_allclose(weights_of_two, weights, atol=1e-4)
    np.testing.assert_allclose(losses_of_two, losses, rtol=1e-4)


@pytest.mark.all
@pytest.mark.parametrize("name", ["fc_hvae", "cnn_hvae"])
def test_a_run_that_is_stopped_and_resumed(name, monkeypatch, tmp_path):
    """The best recipe on the digits, bit for bit as without the stop; and what the run reports of its categories."""
    settings = {"model": name, "dataset": "digits", "image_size": (8, 8), "latent_dim": (3, 2), "batch_size": 500}
    settings |= {"epochs": 3, "kl_epochs": 2, "seed": 0, "precision": "float32"}

    def config(folder):
        return training.Config(**settings, run_dir=str(tmp_path / folder))

    metrics, whole = training.train(config("whole"))
    resumed = test_training.run_in_two_parts(monkeypatch, config("parts"), 4, signal.SIGTERM)
    same_run(resumed, whole)
    assert metrics["steps"] == 9
