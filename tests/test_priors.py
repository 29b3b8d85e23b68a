"""priors: against sums over every code in float64, chi-squared tests, and the uniform prior's own formulas."""

import functools
import itertools
import json
import signal

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from helpers import one_line, same_run

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    callbacks,
    evaluation,
    export,
    fit_prior,
    networks,
    objective,
    posteriors,
    priors,
    recipes,
    training,
    zoo,
)
from tf_isvae.export import signatures
from tf_isvae.training.recorder import Recorder

SHAPE = (2, 2, 1)
IMAGES = np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype(np.float32)
LATENTS = {
    "12 bits": BernoulliLatent(12),
    "3 variables of 7": CategoricalLatent(7, 3),
    "9 values": CategoricalLatent(9),
}
KINDS = {
    "factorized": priors.Factorized,
    "autoregressive": lambda: priors.Autoregressive(hidden=(16, 24)),
    "mixture": lambda: priors.Mixture(components=3),
}


def disturbed(prior, latent, scale=0.8, seed=0):
    """A prior with random weights."""
    rng = np.random.default_rng(seed)
    prior.build_for(latent)
    for weight in prior.weights:
        weight.assign(scale * rng.normal(size=weight.shape))
    return prior


@pytest.fixture(scope="module", params=itertools.product(KINDS, LATENTS), ids=" of ".join)
def discrete(request):
    """(the latent, a prior with random weights, every z, ln p(z) of each)."""
    kind, name = request.param
    latent = LATENTS[name]
    prior = disturbed(KINDS[kind](), latent)
    z = latent.from_codes(latent.all_codes())
    return latent, prior, z, prior.log_prob(z).numpy().astype(np.float64)


def test_probabilities_of_all_codes_sum_to_1(discrete):
    _, _, _, log_prob = discrete
    assert abs(np.exp(log_prob).sum() - 1) < 1e-5
    assert np.ptp(log_prob) > 1  # far from uniform


def test_samples_have_these_probabilities(discrete):
    """A chi-squared test; it fails by chance with probability 1e-5 at this seed, each time that it is drawn anew."""
    latent, prior, _, log_prob = discrete
    n = 4000
    codes = latent.to_codes(prior.sample(n, seed=1)).numpy()
    index = np.ravel_multi_index(codes.T, (latent.code_values,) * latent.code_units)
    observed, expected = np.bincount(index, minlength=latent.num_codes), n * np.exp(log_prob)
    rare = expected < 5  # together one cell
    observed, expected = ([*counts[~rare], counts[rare].sum()] for counts in (observed, expected))
    observed, expected = np.array(observed), np.array(expected)
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-3)).sum()
    assert scipy.stats.chi2.sf(statistic, len(observed) - 1) > 1e-5


def test_a_bit_depends_on_those_before_it_only():
    """Each conditional of a MADE, from the joint probability of all codes: p(z_v | before) = sum / sum."""
    latent = BernoulliLatent(6)
    prior = disturbed(priors.Autoregressive(hidden=(9, 5)), latent)
    z = latent.from_codes(latent.all_codes()).numpy()
    joint = np.exp(prior.log_prob(z).numpy().astype(np.float64)).reshape((2,) * 6)
    conditional = tf.sigmoid(prior.logits(z)).numpy()
    for v in range(6):
        before = joint.sum(axis=tuple(range(v + 1, 6)))  # (2,) * (v + 1)
        one = (before[..., 1] / before.sum(axis=-1)).ravel()
        np.testing.assert_allclose(conditional[:, v], np.repeat(one, 2 ** (6 - v)), rtol=1e-4)


@pytest.mark.parametrize("latent", [BernoulliLatent(7), CategoricalLatent(3, 4)], ids=["bits", "variables"])
@pytest.mark.parametrize("hidden", [(), (4,), (30, 11)])
def test_incremental_samples_are_those_of_the_whole_network(latent, hidden):
    """What `sample_from` computes once for each unit, against one pass of the whole network for each variable."""
    prior = disturbed(priors.Autoregressive(hidden), latent)
    uniform = np.random.default_rng(1).uniform(0.001, 0.999, (40, latent.units)).astype(np.float32)
    z = np.zeros_like(uniform)
    width = latent.units // latent.code_units
    for v in range(latent.code_units):
        own = slice(v * width, (v + 1) * width)
        logits = prior.logits(tf.constant(z)).numpy()[:, own]
        if width == 1:
            z[:, own] = uniform[:, own] < 1 / (1 + np.exp(-logits))
        else:
            z[:, own] = np.eye(width)[np.argmax(logits - np.log(-np.log(uniform[:, own])), axis=1)]
    np.testing.assert_array_equal(prior.sample_from(tf.constant(uniform)), z)


def test_a_mixture_of_gaussians_is_tfps():
    latent = GaussianLatent(3)
    prior = disturbed(priors.Mixture(4), latent)
    mean, raw = np.split(prior.eta.numpy(), 2, axis=1)
    weights = tfp.distributions.Categorical(logits=prior.weight_logits.numpy())
    scale = np.log1p(np.exp(raw)) + 1e-6
    oracle = tfp.distributions.MixtureSameFamily(weights, tfp.distributions.MultivariateNormalDiag(mean, scale))
    z = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(prior.log_prob(tf.constant(z)), oracle.log_prob(z), rtol=1e-4)
    # Means and variances of samples within six standard errors (probability 2e-9 each).
    n = 20_000
    sample, other = prior.sample(n, seed=0).numpy(), oracle.sample(n, seed=(0, 1)).numpy()
    for f in (lambda z: z, np.square):
        error = np.sqrt((f(sample).var(axis=0) + f(other).var(axis=0)) / n)
        assert (np.abs(f(sample).mean(axis=0) - f(other).mean(axis=0)) < 6 * error).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent", [*LATENTS.values(), GaussianLatent(2)], ids=[*LATENTS, "Gaussians"])
def test_a_sample_of_many_is_that_of_its_noise(kind, latent):
    """The chunks of `sample` leave no seam; equal seeds, equal samples."""
    if kind == "autoregressive" and latent.code_values is None:
        return
    prior = disturbed(KINDS[kind](), latent)
    z = prior.sample(700, seed=3)
    assert z.shape == (700, latent.units) and z.dtype == tf.float32 and np.isfinite(z).all()
    uniform = tf.maximum(tf.random.stateless_uniform(z.shape, priors.stateless_seed(3)), 2.0**-24)
    np.testing.assert_allclose(z, prior.sample_from(uniform), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(z, prior.sample(700, seed=4))


# --- in a model


def tiny(latent, prior=None, **options):
    keras.utils.set_random_seed(5)
    encoder = networks.dense_encoder(SHAPE, latent.encoder_units, (6,))
    decoder = networks.dense_decoder(latent.units, SHAPE, (6,))
    for network in (encoder, decoder):
        network.set_weights([1.5 * np.random.normal(size=w.shape) for w in network.get_weights()])
    return DiscreteVAE(encoder, latent, decoder, prior=prior, seed=0, **options)


@pytest.mark.parametrize("latent", [BernoulliLatent(5), CategoricalLatent(3, 2), GaussianLatent(2)])
def test_uniform_is_the_latents_own_bit_for_bit(latent):
    prior = priors.Uniform().build_for(latent)
    q = latent.posterior(tf.random.stateless_normal((3, latent.encoder_units), (0, 1)))
    z = q.sample(seed=(0, 2))
    np.testing.assert_array_equal(prior.kl(q), latent.kl(q))
    np.testing.assert_array_equal(prior.log_prob(z), latent.prior().log_prob(z))
    seed = tf.constant([3, 0])
    np.testing.assert_array_equal(prior.sample(4, 3), latent.prior().sample(4, seed=seed)[:, 0])
    assert not prior.weights


def exact(model, kl_weight):
    """The loss of IMAGES and its gradient for all weights: sums over all codes, from the densities alone."""
    latent = model.latent
    z = latent.from_codes(latent.all_codes())
    weights = model.trainable_variables
    with tf.GradientTape() as tape:
        log_q = latent.posterior(model.encoder(IMAGES)).log_prob(z[:, None])
        log_p = model.log_likelihood_of(IMAGES)(z[:, None])
        log_prior = model.prior.log_prob(z)[:, None]
        each = tf.reduce_sum(tf.exp(log_q) * (log_p + kl_weight * (log_prior - log_q)), axis=0)
        loss = -tf.reduce_mean(each)
    return float(loss), flat(tape.gradient(loss, weights))


def flat(gradients):
    return np.concatenate([np.ravel(gradient) for gradient in gradients])


def trained_gradient(model, kl_weight):
    """A function from a seed to the gradient that train_step takes, for all weights."""
    weights = model.trainable_variables

    @tf.function(autograph=False)
    def gradient(seed):
        with tf.GradientTape() as tape:
            posterior = model.latent.posterior(model.encoder(IMAGES, training=True))
            estimate, kl = objective.terms(
                model._estimate, model.prior, posterior, model.log_likelihood_of(IMAGES, training=True), seed, kl_weight
            )
            loss = tf.reduce_mean(kl_weight * kl - estimate.surrogate)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        return tf.concat([tf.reshape(each, [-1]) for each in gradients], 0), tf.reduce_mean(kl - estimate.value)

    return gradient


ESTIMATORS = {
    "bits": ("ImportanceSampling:2", "LeaveOneOut:3", "DisARM", "ARMS:3", "Linearized+DisARM"),
    "variables": ("ImportanceSampling:2", "LeaveOneOut:3"),
}
CASES = [(latent, "autoregressive", name) for latent, names in ESTIMATORS.items() for name in names]
CASES += [("bits", "mixture", "DisARM"), ("variables", "factorized", "LeaveOneOut:3")]
RARE = ("ARMS:3", "LeaveOneOut:3")  # with bits: the estimators' own tests have them too


@pytest.mark.parametrize(
    ("latent", "kind", "estimator"),
    [pytest.param(*c, marks=[pytest.mark.all] if c[0] == "bits" and c[2] in RARE else []) for c in CASES],
)
def test_gradients_of_encoder_decoder_and_prior_are_unbiased(latent, kind, estimator):
    """Along 12 directions: all of encoder, decoder and prior, and random ones.

    Each mean over the draws lies within six standard errors of the sum over all codes: it fails by chance with
    probability 2e-9 for each. The value too.
    """
    latent = {"bits": BernoulliLatent(3), "variables": CategoricalLatent(3, 2)}[latent]
    prior = disturbed({**KINDS, "autoregressive": lambda: priors.Autoregressive((5,))}[kind](), latent)
    model = tiny(latent, prior, estimator=estimator)
    expected_loss, _ = exact(model, 1.0)
    _, expected = exact(model, 1.7)
    parts = [model.encoder.trainable_variables, model.decoder.trainable_variables, prior.trainable_variables]
    sizes = [sum(int(np.prod(w.shape)) for w in part) for part in parts]
    assert [id(w) for part in parts for w in part] == [id(w) for w in model.trainable_variables]
    of_part = np.repeat(range(3), sizes)
    random = np.random.default_rng(0).normal(size=(3, sum(sizes)))
    directions = np.stack([np.where(of_part == part, row, 0) for part in range(3) for row in [expected, *random]])
    gradient = trained_gradient(model, 1.7)
    draws, losses = zip(*(map(np.array, gradient(tf.constant([7, i]))) for i in range(600)), strict=True)
    for found, truth in ((np.array(draws) @ directions.T, directions @ expected), (np.array(losses), expected_loss)):
        error = found.std(axis=0, ddof=1) / np.sqrt(len(found)) + 1e-5 * (1 + np.abs(truth))
        assert (np.abs(found.mean(axis=0) - truth) < 6 * error).all()


@pytest.mark.parametrize("latent", [BernoulliLatent(5), CategoricalLatent(4, 2)], ids=["bits", "variables"])
def test_the_exact_gradient_with_an_autoregressive_prior(latent):
    model = tiny(latent, disturbed(priors.Autoregressive((6,)), latent), estimator="Enumerated")
    _, expected = exact(model, 2.5)
    found, loss = trained_gradient(model, 2.5)(tf.constant([0, 0]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loss, exact(model, 1.0)[0], rtol=1e-5)


def test_the_exact_likelihood_lies_above_the_bound_and_the_bound_above_the_elbo(monkeypatch):
    """At 12 bits; means over samples within six standard errors."""
    latent = BernoulliLatent(12)
    model = tiny(latent, disturbed(priors.Autoregressive((8,)), latent), estimator="Enumerated")
    z = latent.from_codes(latent.all_codes())
    log_joint = model.log_likelihood_of(IMAGES)(z[:, None]) + model.prior.log_prob(z)[:, None]
    ln_p = scipy.special.logsumexp(log_joint.numpy().astype(np.float64), axis=0)
    np.testing.assert_allclose(model.log_likelihood(IMAGES), ln_p, rtol=1e-5)
    elbo = model.elbo(IMAGES)
    monkeypatch.setattr(BernoulliLatent, "enumerable", False)
    bounds = np.stack([model.log_likelihood(IMAGES, num_samples=20, seed=i) for i in range(30)])
    error = 6 * bounds.std(axis=0, ddof=1) / np.sqrt(len(bounds)) + 1e-4
    assert (bounds.mean(axis=0) < ln_p + error).all() and (bounds.mean(axis=0) > elbo - error).all()
    assert (ln_p > elbo + 0.1).all()


@pytest.mark.parametrize(
    "kind", ["autoregressive", *(pytest.param(k, marks=pytest.mark.all) for k in KINDS if k[0] != "a")]
)
def test_a_model_is_saved_with_its_prior(kind, tmp_path):
    latent = CategoricalLatent(3, 2)
    model = tiny(latent, disturbed(KINDS[kind](), latent))
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    for method in (
        lambda m: m.elbo(IMAGES, seed=0),
        lambda m: m.generate(5, seed=0),
        lambda m: m.log_likelihood(IMAGES),
    ):
        np.testing.assert_array_equal(method(model), method(read))
    assert read.prior.get_config() == model.prior.get_config()


def test_fitting_a_prior_finds_the_codes():
    """Codes that all images share cost nothing once the prior knows them; logs add up; networks stand still."""
    latent = BernoulliLatent(4)
    model = tiny(latent, estimator="Enumerated")
    eta = tf.constant([9.0, -9.0, 9.0, 9.0])
    model.encoder.set_weights([0 * w for w in model.encoder.get_weights()])
    model.encoder.layers[-1].bias.assign(eta)
    before = model.elbo(IMAGES)
    learned = model.with_prior(priors.Autoregressive((8,)))
    np.testing.assert_allclose(learned.elbo(IMAGES), before, rtol=1e-5)  # it begins as the uniform one
    networks_before = [w.copy() for w in (*model.encoder.get_weights(), *model.decoder.get_weights())]
    epochs = []
    done = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(logs["loss"]))
    history = fit_prior(
        learned,
        np.repeat(IMAGES, 40, axis=0),
        epochs=40,
        batch_size=12,
        learning_rate=0.05,
        callbacks=[done],
        verbose=0,
    ).history
    assert history["loss"] == epochs and len(epochs) == 40
    assert history["loss"][-1] < 0.2 and (learned.elbo(IMAGES) > before + 2).all()
    for old, new in zip(networks_before, (*model.encoder.get_weights(), *model.decoder.get_weights()), strict=True):
        np.testing.assert_array_equal(old, new)
    learned.compile(keras.optimizers.SGD(1e-3))
    logs = learned.fit(IMAGES, verbose=0).history
    np.testing.assert_allclose(logs["loss"], np.subtract(logs["kl"], logs["log_likelihood"]), rtol=1e-5)
    again = tf.data.Dataset.from_tensor_slices(IMAGES).batch(2)
    assert len(fit_prior(learned, again, epochs=1, verbose=0).history["loss"]) == 1


@pytest.mark.parametrize("kind", ["factorized", pytest.param("autoregressive", marks=pytest.mark.all)])
def test_a_waiting_prior_learns_and_does_not_count(kind):
    """Encoder and decoder move as with the uniform prior, bit for bit, and the prior towards their codes."""
    latent, images = CategoricalLatent(3, 2), np.repeat(IMAGES, 4, axis=0)
    prior = priors.get(kind) if kind == "factorized" else priors.Autoregressive((5,))
    uniform, waiting = tiny(latent), tiny(latent, prior)
    waiting.encoder.set_weights(uniform.encoder.get_weights())
    waiting.decoder.set_weights(uniform.decoder.get_weights())
    for model in (uniform, waiting):
        model.compile(keras.optimizers.Adam(0.01))
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    uniform.fit(images, epochs=3, **options)
    waits = []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: waits.append(waiting.phase.prior_waits))
    before = waiting.prior.log_prob(latent.posterior(waiting.encoder(images)).mode())
    history = waiting.fit(images, epochs=3, callbacks=[callbacks.WaitingPrior(3), look], **options).history
    for one, other in ((uniform.encoder, waiting.encoder), (uniform.decoder, waiting.decoder)):
        for weight, same in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, same)
    after = waiting.prior.log_prob(latent.posterior(waiting.encoder(images)).mode())
    assert np.mean(after) > np.mean(before)
    np.testing.assert_allclose(history["loss"], np.subtract(history["kl"], history["log_likelihood"]), rtol=1e-5)
    # In two thirds of the epochs, and never after `fit`: then encoder and decoder go another way.
    waiting.fit(images, epochs=6, initial_epoch=2, callbacks=[callbacks.WaitingPrior(), look], **options)
    assert waits == [True] * 3 + [True, True, False, False] and not waiting.phase.prior_waits
    uniform.fit(images, epochs=4, **options)
    assert not np.array_equal(uniform.encoder.get_weights()[0], waiting.encoder.get_weights()[0])


@pytest.mark.all
def test_a_run_with_a_prior_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    """Stopped while the prior waits, in the fourth of nine steps; it waits for two of three epochs."""
    settings = {"dataset": "digits", "image_size": 4, "latent_dim": 4, "epochs": 3, "batch_size": 500, "seed": 1}
    settings |= {"prior": "autoregressive", "precision": "float32"}
    monkeypatch.setattr(zoo, "build", functools.partial(build_small, zoo.build))
    training.train(training.Config(**settings, run_dir=str(tmp_path / "whole")))
    stopped = training.Config(**settings, run_dir=str(tmp_path / "stopped"))
    on_train_batch_end = Recorder.on_train_batch_end

    def and_stop(self, batch, logs=None):
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        on_train_batch_end(self, batch, logs)

    with monkeypatch.context() as patch, pytest.raises(training.Interrupted):
        patch.setattr(Recorder, "on_train_batch_end", and_stop)
        training.train(stopped)
    training.train(stopped, resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")


def build_small(build, *args, prior, **options):
    """zoo.build with a smaller network for the prior."""
    return build(*args, prior=priors.Autoregressive((8,)) if prior == "autoregressive" else prior, **options)


EXPORTED = {
    "bits": (lambda: BernoulliLatent(9), "autoregressive"),
    "Gaussians": (lambda: GaussianLatent(3), "mixture"),
    "variables": (lambda: CategoricalLatent(4, 3), "autoregressive"),
    "categories": (lambda: CategoricalLatent(6), "factorized"),
}


@pytest.mark.all
@pytest.mark.parametrize("name", EXPORTED)
def test_exports_sample_and_score_with_the_prior(name, tmp_path):
    """The same noise gives the same codes in Keras, in the SavedModel and in LiteRT; score is that of this noise."""
    make, kind = EXPORTED[name]
    latent = make()
    model = tiny(latent, disturbed(KINDS[kind](), latent))
    seed = np.random.default_rng(0).integers(0, 2**31, (len(IMAGES), 2), np.int32)
    noise = signatures.uniforms(tf.constant(seed), latent.units)
    codes = latent.to_codes(model.prior.sample_from(noise)).numpy()
    q = latent.posterior(model.encoder(IMAGES))
    z = posteriors.of(q).sample_from(noise, "a test")
    kl = model.prior.kl(q)
    if kl is None:
        kl = -q.entropy() - model.prior.log_prob(z)
    served = tf.saved_model.load(str(export.saved_model(model, tmp_path / "model")))
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    lite = interpreter(model_path=str(export.litert(model, tmp_path / "model.tflite")), num_threads=1)
    for found in (
        served.signatures["generate"](seed=tf.constant(seed)),
        lite.get_signature_runner("generate")(noise=noise.numpy()),
    ):
        np.testing.assert_allclose(found["codes"], codes, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["images"], model.decode(codes), rtol=1e-3, atol=1e-4)
    for found in (
        served.signatures["score"](images=IMAGES, seed=tf.constant(seed)),
        lite.get_signature_runner("score")(images=IMAGES, noise=noise.numpy()),
    ):
        np.testing.assert_allclose(found["kl"], kl, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["elbo"], found["log_likelihood"] - found["kl"], rtol=1e-4, atol=1e-4)


@pytest.mark.all
@pytest.mark.parametrize(("quantize", "share"), [("float16", 0.99), ("int8", 0.9)])
def test_quantized_files_sample_the_autoregressive_prior(quantize, share, tmp_path):
    """The same noise gives nearly the same codes as in Keras: a bit differs only where its noise is near q."""
    latent = BernoulliLatent(9)
    model = tiny(latent, disturbed(KINDS["autoregressive"](), latent))
    noise = np.random.default_rng(0).uniform(0.01, 0.99, (400, latent.units)).astype(np.float32)
    codes = latent.to_codes(model.prior.sample_from(tf.constant(noise))).numpy()
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    calibration = {"calibration": np.random.default_rng(1).uniform(size=(50, *SHAPE))} if quantize == "int8" else {}
    path = export.litert(model, tmp_path / "model.tflite", quantize=quantize, **calibration)
    found = interpreter(model_path=str(path), num_threads=1).get_signature_runner("generate")(noise=noise)["codes"]
    assert (found == codes).mean() > share and len(np.unique(codes, axis=0)) > 30


def test_the_variance_of_the_gradient_is_that_of_both_terms_that_are_sampled():
    """Of one sample's score function, from the gradient of each of the 8 codes, in float64: within six standard errors.

    It fails by chance with probability 2e-9 at a seed. That of ln p(x|z) alone lies outside.
    """
    latent = BernoulliLatent(3)
    prior = disturbed(priors.Autoregressive((5,)), latent, scale=4.0)
    model, image, draws = tiny(latent, prior, estimator="ImportanceSampling"), IMAGES[:1], 2000
    z = latent.from_codes(latent.all_codes())[:, None]
    with tf.GradientTape() as tape:
        log_q = latent.posterior(model.encoder(image)).log_prob(z)[:, 0]
    of_each = tape.jacobian(log_q, model.encoder.trainable_variables)
    score = np.concatenate([np.reshape(part, (8, -1)) for part in of_each], axis=1).astype(np.float64)
    q, log_likelihood, log_prior = (
        np.float64(values).ravel() for values in (tf.exp(log_q), model.log_likelihood_of(image)(z), prior.log_prob(z))
    )

    def variance(f):
        gradients = f[:, None] * score
        squares = ((gradients - q @ gradients) ** 2).mean(axis=1)
        mean = q @ squares
        return mean, 6 * np.sqrt(q @ (squares - mean) ** 2 / draws)

    found = evaluation.gradient_variance(model, image, draws=draws)
    (expected, error), (without, _) = variance(log_likelihood + log_prior), variance(log_likelihood)
    assert abs(found - expected) < error < abs(without - expected)


def test_the_kl_of_each_unit_is_that_to_a_prior_of_independent_entries():
    """Against sums over the values of each variable, in float64; a prior without such parts has no such figure."""
    latent = CategoricalLatent(4, 3)
    model = tiny(latent, disturbed(priors.Factorized(), latent))
    log_q, log_p = (
        scipy.special.log_softmax(np.float64(eta).reshape(-1, 3, 4), axis=-1)
        for eta in (model.encoder(IMAGES), model.prior.eta)
    )
    expected = (np.exp(log_q) * (log_q - log_p)).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(evaluation.code_statistics(model, IMAGES)["kl_per_unit"], expected, rtol=1e-4)
    dependent = model.with_prior(disturbed(priors.Autoregressive((4,)), latent))
    assert "kl_per_unit" not in evaluation.code_statistics(dependent, IMAGES)


WRONG = {
    "another width": (
        lambda: tiny(BernoulliLatent(4), priors.Autoregressive((3,)).build_for(BernoulliLatent(3))),
        ("Autoregressive for BernoulliLatent with 3 codes of 2 values", "BernoulliLatent with 4", "give a new one"),
    ),
    "not made": (
        lambda: priors.Autoregressive().log_prob(tf.zeros((1, 3))),
        ("without a latent", "DiscreteVAE(prior=)"),
    ),
    "an unknown name": (lambda: zoo.build("fc_bvae", SHAPE, 3, prior="made"), ("prior is 'made'", "autoregressive")),
    "another object": (lambda: zoo.build("fc_bvae", SHAPE, 3, prior=7), ("prior is 7", "tf_isvae.priors")),
    "Gaussians": (lambda: tiny(GaussianLatent(2), "autoregressive"), ("GaussianLatent", "Mixture take any latent")),
    "no width": (lambda: priors.Autoregressive((0,)), ("Autoregressive: hidden is 0", "at least 1")),
    "no components": (lambda: priors.Mixture(0), ("Mixture: components is 0", "at least 1")),
    "no epochs to wait": (lambda: callbacks.WaitingPrior(0), ("WaitingPrior: epochs is 0", "positive")),
    "no samples": (lambda: disturbed(priors.Factorized(), BernoulliLatent(2)).sample(0, 1), ("n is 0", "at least 1")),
    "nothing to fit": (
        lambda: fit_prior(tiny(BernoulliLatent(2)), IMAGES),
        ("prior is Uniform", "with_prior('autoregressive')"),
    ),
    "NaN": (lambda: fit_prior(tiny(BernoulliLatent(2), "factorized"), IMAGES * np.nan), ("NaN", "[0, 1]")),
    "no epochs": (
        lambda: fit_prior(tiny(BernoulliLatent(2), "factorized"), IMAGES, epochs=0),
        ("epochs is 0", "at least 1"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_priors(name):
    call, parts = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    one_line(error, *parts)


# --- refine


def best_factorised(log_joint, blocks, starts=5):
    """The greatest ELBO (nats) of any factorised q over all codes: coordinate ascent in float64, from random starts.

    log_joint: ln p(x, z) as an array with one axis for each variable, of so many values.
    """
    rng, best = np.random.default_rng(0), -np.inf
    for _ in range(starts):
        q = [rng.dirichlet(np.ones(size)) for size in blocks]
        for _ in range(50):
            for v in range(len(blocks)):
                rest = log_joint
                for u in reversed(range(len(blocks))):
                    if u != v:
                        rest = np.tensordot(rest, q[u], axes=(u, 0))
                q[v] = scipy.special.softmax(rest)
        joint = functools.reduce(np.multiply.outer, q)
        best = max(best, float((joint * log_joint).sum() + scipy.special.entr(np.stack(q)).sum()))
    return best


@pytest.mark.parametrize(
    "latent",
    [
        pytest.param(BernoulliLatent(8), id="8 bits", marks=pytest.mark.all),
        pytest.param(CategoricalLatent(4, 3), id="3 variables of 4"),
    ],
)
def test_refine_ends_at_the_best_factorised_q(latent):
    model = tiny(latent, disturbed(priors.Autoregressive((6,)), latent, scale=0.2), estimator="Enumerated")
    # Of a strongly bent ln p(x, z) there are several optima, and a start leads to one of them.
    model.decoder.set_weights([0.4 * w for w in model.decoder.get_weights()])
    z = latent.from_codes(latent.all_codes())
    log_joint = model.log_likelihood_of(IMAGES)(z[:, None]) + model.prior.log_prob(z)[:, None]
    blocks = (latent.code_values,) * latent.code_units
    best = [best_factorised(each.astype(np.float64).reshape(blocks), blocks) for each in log_joint.numpy().T]
    amortised, refined = model.elbo(IMAGES), model.elbo(IMAGES, refine=300)
    assert (refined > amortised + 0.05).all()
    np.testing.assert_allclose(refined, best, atol=2e-3)
    np.testing.assert_array_equal(model.elbo(IMAGES, refine=0), amortised)
    assert model.encode(IMAGES, refine=5).shape == (len(IMAGES), latent.code_units)


@pytest.mark.parametrize(
    ("latent", "estimator"),
    [
        (BernoulliLatent(5), "DisARM"),
        pytest.param(GaussianLatent(2), "Reparameterized", marks=pytest.mark.all),
    ],
    ids=["bits", "real"],
)
def test_refine_with_samples(latent, estimator, monkeypatch):
    """As if the codes were too many, and of Gaussians: a greater ELBO, which the bound of the same q is above."""
    model = tiny(latent, estimator=estimator)
    monkeypatch.setattr(type(latent), "enumerable", False)
    elbo = [np.mean([model.elbo(IMAGES, seed=i, refine=refine) for i in range(40)], axis=0) for refine in (0, 100)]
    bound = model.log_likelihood(IMAGES, num_samples=2000, seed=0, refine=100)
    assert (elbo[1] > elbo[0]).all() and (elbo[1] < bound + 0.1).all()
    np.testing.assert_array_equal(model.encode(IMAGES, refine=20), model.encode(IMAGES, refine=20))


@pytest.mark.parametrize("refine", [-1, 1.5, True, "10"])
def test_wrong_refine(refine):
    model = tiny(BernoulliLatent(2))
    for call in (model.encode, model.elbo, model.log_likelihood):
        with pytest.raises(ValueError) as error:
            call(IMAGES, refine=refine)
        one_line(error, f"refine is {refine!r}", "integer of at least 0")


@pytest.mark.all
def test_the_script_gives_a_model_a_prior(script, tmp_path):
    zoo.build("fc_bvae", (4, 4, 1), 4, seed=0).save(tmp_path / "model.keras")
    options = ["--epochs", 1, "--joint-epochs", 1, "--drop-pixels", 0.2, "--refine", 2, "--first", 9]
    files = ["--to", tmp_path / "learned", "--figure", tmp_path / "samples.png"]
    status, output, errors = script(
        "learn_prior.py", tmp_path / "model.keras", "--dataset", "digits", *options, *files, "--held-out"
    )
    assert status == 0, errors
    assert (
        "-ELBO of the first 9" in output and "like one class, after" in output and (tmp_path / "samples.png").exists()
    )
    model = zoo.load(tmp_path / "learned")
    card = json.loads((tmp_path / "learned" / "metadata.json").read_text())
    assert card["model"]["prior"]["class"] == "Autoregressive" and "learned.keras" in card["keras"]
    assert card["model"]["parameters"] == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert "learn_prior.py" in (tmp_path / "learned" / "README.md").read_text()
    status, _, errors = script("learn_prior.py", tmp_path / "model.keras", "--drop-pixels", 1)
    assert status == 2
    one_line(errors, "--drop-pixels is 1.0", "below 1")


def test_the_settings_of_a_run_have_the_names_of_all_priors():
    assert priors.names() == recipes.PRIORS
