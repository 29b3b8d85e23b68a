"""model: training steps against NumPy, exact likelihoods against sums over every code, and everything users call."""

import json
import math
import random
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import needs_bfloat16, one_line

import tf_isvae.model
from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    callbacks,
    chunks,
    estimators,
    likelihoods,
    networks,
    zoo,
)
from tf_isvae.precision import in_precision, layers_in

SHAPE = (2, 2, 1)


@keras.saving.register_keras_serializable("test_model")
class Enumeration(estimators.Estimator):
    """E_q[ln p(x|z)] as a sum over every code: no noise, so that two runs may be compared to the last digits."""

    def __init__(self, codes):
        self.codes = codes

    def __call__(self, posterior, log_likelihood, seed=None):
        z = tf.constant(self.codes, tf.float32)[:, None]
        value = tf.reduce_sum(tf.exp(posterior.log_prob(z)) * log_likelihood(z), axis=0)
        return estimators.Estimate(value, value)

    def get_config(self):
        return {"codes": self.codes}


def every_z(latent):
    return np.asarray(latent.from_codes(latent.all_codes()))


def build(latent=None, hidden=(6,), weight_scale=1.0, exact=False, **kwargs):
    """A tiny VAE whose weights are large enough that its images differ; `exact` trains without noise."""
    latent = BernoulliLatent(3) if latent is None else latent
    if exact:
        kwargs["estimator"] = Enumeration(every_z(latent).tolist())
    encoder = networks.dense_encoder(SHAPE, latent.encoder_units, hidden)
    decoder = networks.dense_decoder(latent.units, SHAPE, hidden)
    rng = np.random.default_rng(1)
    for network in (encoder, decoder):
        network.set_weights([weight_scale * rng.normal(size=w.shape) for w in network.get_weights()])
    return DiscreteVAE(encoder, latent, decoder, **{"seed": 7, **kwargs})


def compiled(model=None, learning_rate=0.1, **kwargs):
    model = build(**kwargs) if model is None else model
    model.compile(keras.optimizers.SGD(learning_rate))
    return model


def random_images(n=6, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *SHAPE)).astype(np.float32)


def fit(model, images, **kwargs):
    return model.fit(images, **{"verbose": 0, "batch_size": 4, **kwargs}).history


# --- the model in float64 NumPy -------------------------------------------------------------------------------------


def forward(network, x):
    """A dense network (relu between its layers), in float64."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    weights = [w.astype(np.float64) for w in network.get_weights()]
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    for i, (kernel, bias) in enumerate(pairs):
        x = x @ kernel + bias
        if i < len(pairs) - 1:
            x = np.maximum(x, 0)
    return x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_q_all(model, images):
    """log q(z|x) of every code: (codes, images)."""
    eta, z, latent = forward(model.encoder, images), every_z(model.latent).astype(np.float64), model.latent
    if isinstance(latent, BernoulliLatent):
        return z @ eta.T - np.logaddexp(0, eta).sum(1)
    blocks = eta.reshape(len(eta), latent.num_variables, latent.categories)
    log_softmax = blocks - np.log(np.exp(blocks).sum(-1, keepdims=True))
    return z @ log_softmax.reshape(len(eta), -1).T


def log_p_all(model, images):
    """ln p(x|z) of every code: (codes, images)."""
    logits = forward(model.decoder, every_z(model.latent))
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    return logits @ x.T - np.logaddexp(0, logits).sum(1)[:, None]


def exact_terms(model, images):
    """E_q[ln p(x|z)] and the KL of each image."""
    log_q, log_p = log_q_all(model, images), log_p_all(model, images)
    q = np.exp(log_q)
    return (q * log_p).sum(0), (q * (log_q + np.log(len(q)))).sum(0)


def exact_log_likelihood(model, images):
    log_p = log_p_all(model, images)
    return np.log(np.mean(np.exp(log_p), axis=0))


# --- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_weight", [1.0, 3.0])
def test_one_sgd_step_by_hand(kl_weight):
    """Bernoulli latent, networks of one layer: the gradient of every weight in NumPy (eq. 17 and 20), and the logs,
    which ignore the weight of the KL term."""
    model = compiled(build(hidden=(), weight_scale=0.7, kl_weight=kl_weight), learning_rate=0.5)
    images = random_images()
    x = images.reshape(6, 4).astype(np.float64)
    encoder_kernel, encoder_bias, decoder_kernel, decoder_bias = before = [w.numpy() for w in model.trainable_variables]

    eta = x @ encoder_kernel + encoder_bias
    q = sigmoid(eta)
    z = model.latent.posterior(tf.constant(eta, tf.float32)).sample(1, seed=model.noise_seed(0))[0].numpy()
    logits = z @ decoder_kernel + decoder_bias
    log_p = (x * logits - np.logaddexp(0, logits)).sum(1)
    kl = (q * np.log(q) + (1 - q) * np.log(1 - q)).sum(1) + 3 * np.log(2)
    # dKL/d eta = q (1 - q) eta for a uniform prior.
    d_eta = (kl_weight * q * (1 - q) * eta - log_p[:, None] * (z - q)) / 6
    d_logits = -(x - sigmoid(logits)) / 6
    gradients = [x.T @ d_eta, d_eta.sum(0), z.T @ d_logits, d_logits.sum(0)]

    history = fit(model, images, batch_size=6, shuffle=False)
    for weight, old, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        np.testing.assert_allclose(weight.numpy(), old - 0.5 * gradient, atol=2e-6)
    np.testing.assert_allclose(history["log_likelihood"], [log_p.mean()], rtol=1e-5)
    np.testing.assert_allclose(history["kl"], [kl.mean()], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [(kl - log_p).mean()], rtol=1e-5)


def test_regulariser_losses_train_but_are_not_logged():
    """A penalty l |W|^2 on the user's encoder moves W by a further -2 l W per unit of learning rate."""
    penalty, rate, images = 0.05, 0.5, random_images()

    def step(regulariser):
        keras.utils.set_random_seed(0)
        encoder = keras.Sequential(
            [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3, kernel_regularizer=regulariser)]
        )
        decoder = networks.dense_decoder(3, SHAPE, hidden=())
        z = every_z(BernoulliLatent(3)).tolist()
        model = DiscreteVAE(encoder, BernoulliLatent(3), decoder, estimator=Enumeration(z), seed=0)
        before = encoder.get_weights()[0]
        history = fit(compiled(model, rate), images, batch_size=6)
        return before, encoder.get_weights()[0], history

    before, plain, history = step(None)
    _, regularised, regularised_history = step(keras.regularizers.L2(penalty))
    np.testing.assert_allclose(regularised - plain, -rate * 2 * penalty * before, atol=1e-6)
    assert regularised_history == history


@pytest.mark.all
@pytest.mark.parametrize(
    "policy, rounding", [pytest.param("mixed_bfloat16", 2**-8, marks=needs_bfloat16), ("float64", 2**-23)]
)
def test_regularisers_of_any_dtype(policy, rounding):
    """Penalties of a layer's kernel and of its outputs come in its dtypes; the loss is float32. An encoder of weights 0
    and constant outputs b: its outputs' penalty l |b|^2 moves b by a further -2 l b per unit of learning rate. Keras
    adds the mean of the penalty over the images; until 3.12, the sum."""
    penalty, rate, images = 0.05, 0.5, random_images()
    moved = []
    for regularised in (False, True):
        with layers_in(policy):
            options = {}
            if regularised:
                options = {f"{part}_regularizer": keras.regularizers.L2(penalty) for part in ("activity", "kernel")}
            dense = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones", **options)
            encoder = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
            decoder = networks.dense_decoder(3, SHAPE, hidden=())
        decoder.set_weights([0 * w for w in decoder.get_weights()])  # ln p(x|z) does not depend on z
        z = every_z(BernoulliLatent(3)).tolist()
        model = DiscreteVAE(encoder, BernoulliLatent(3), decoder, estimator=Enumeration(z), seed=0)
        history = fit(compiled(model, rate), images, batch_size=6)
        assert np.isfinite(history["loss"]).all()
        moved.append(dense.bias.numpy().astype(np.float64))
    layer = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones", activity_regularizer="l2")
    layer(np.zeros((len(images), 1)))
    times = round(float(sum(layer.losses)) / (0.01 * 3))  # 1, or until 3.12 the number of images
    assert times in (1, len(images))
    expected = np.full(3, -rate * 2 * penalty * times)
    np.testing.assert_allclose(moved[1] - moved[0], expected, rtol=20 * rounding)


def test_every_micro_batch_has_noise_of_its_own():
    """Four micro-batches of the same images: the update is the mean of the gradients with the noise of steps 0 to 3,
    and the next one has that of steps 4 to 7."""
    images, rate = tf.constant(random_images()), 0.5

    def gradient(model, step):
        with tf.GradientTape() as tape:
            posterior = model.latent.posterior(model.encoder(images))
            estimate = model.estimator(posterior, model.log_likelihood_of(images), model.noise_seed(step))
            loss = tf.reduce_mean(model.latent.kl(posterior) - estimate.surrogate)
        return [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]

    model = build()
    model.compile(keras.optimizers.SGD(rate, gradient_accumulation_steps=4))
    dataset = tf.data.Dataset.from_tensors(images).repeat(4)
    for first in (0, 4):
        before = [w.numpy() for w in model.trainable_variables]
        gradients = [gradient(model, first + t) for t in range(4)]
        assert np.abs(gradients[0][0] - gradients[1][0]).max() > 1e-3
        model.fit(dataset, verbose=0)
        for weight, old, *parts in zip(model.trainable_variables, before, *gradients, strict=True):
            np.testing.assert_allclose(weight.numpy(), old - rate * np.mean(parts, axis=0), atol=2e-6)


@pytest.mark.parametrize(
    "latent, likelihood",
    [
        (lambda: BernoulliLatent(3), likelihoods.Bernoulli()),
        pytest.param(lambda: CategoricalLatent(4), likelihoods.Bernoulli(), marks=pytest.mark.all),
        (lambda: CategoricalLatent(3, variables=2), likelihoods.Bernoulli()),
        pytest.param(lambda: CategoricalLatent(4), likelihoods.Gaussian(0.5), marks=pytest.mark.all),
    ],
    ids=["bits", "category", "categories", "gaussian likelihood"],
)
def test_fit_reduces_the_loss(latent, likelihood):
    """Two patterns: the loss falls below what their mean image gives, so the codes carry information. Fixed seed."""
    patterns = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], np.float32).reshape(2, *SHAPE)
    dataset = tf.data.Dataset.from_tensors(np.repeat(patterns, 32, axis=0)).repeat()
    model = build(latent(), likelihood=likelihood)
    model.compile(keras.optimizers.Adam(0.02))
    history = model.fit(dataset, steps_per_epoch=200, epochs=4, verbose=0).history
    np.testing.assert_allclose(np.array(history["kl"]) - history["log_likelihood"], history["loss"], atol=1e-5)
    assert history["loss"][-1] < history["loss"][0]
    is_bernoulli = isinstance(likelihood, likelihoods.Bernoulli)
    mean_image = np.full((1, *SHAPE), 0.0 if is_bernoulli else 0.5, np.float32)  # as the decoder's output
    assert history["loss"][-1] < -float(likelihood.log_prob(mean_image, patterns[:1])[0]) - 0.1


def test_a_gaussian_latent_trains():
    """The score-function gradient serves any latent; the paper's conventional VAE differs in the latent only."""
    model = compiled(build(GaussianLatent(2), weight_scale=0.3), 0.01)
    history = fit(model, random_images(64), batch_size=16, epochs=3)
    assert np.isfinite([history[key] for key in ("loss", "log_likelihood", "kl")]).all()


def test_logs_are_means_over_images_also_with_a_partial_batch():
    """10 images in batches of 4, 4, 2; a learning rate of 0 keeps the weights."""
    model, images = compiled(exact=True, learning_rate=0.0), random_images(10)
    log_p, kl = (terms.mean() for terms in exact_terms(model, images))
    history = fit(model, images, validation_data=images[:7])
    np.testing.assert_allclose(history["log_likelihood"], [log_p], rtol=1e-5)
    np.testing.assert_allclose(history["kl"], [kl], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [kl - log_p], rtol=1e-5)
    log_p, kl = (terms.mean() for terms in exact_terms(model, images[:7]))
    np.testing.assert_allclose(history["val_loss"], [kl - log_p], rtol=1e-5)
    np.testing.assert_allclose([history["val_kl"][0], history["val_log_likelihood"][0]], [kl, log_p], rtol=1e-5)


def test_validation_uses_the_weights_of_the_epochs_end():
    model = compiled(exact=True)
    history = fit(model, random_images(8), epochs=3, validation_data=random_images(5, seed=1))
    log_p, kl = exact_terms(model, random_images(5, seed=1))
    np.testing.assert_allclose(history["val_loss"][-1], (kl - log_p).mean(), rtol=1e-5)
    assert len(history["val_loss"]) == 3


def test_evaluate_is_the_loss_of_the_whole_set():
    model, images = compiled(exact=True), random_images(10)
    log_p, kl = exact_terms(model, images)
    logs = model.evaluate(images, batch_size=4, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "log_likelihood", "kl"}
    np.testing.assert_allclose(logs["loss"], (kl - log_p).mean(), rtol=1e-5)


def test_data_sets_with_labels_and_a_partial_batch():
    images = random_images(10)
    plain = compiled(exact=True)
    expected = fit(plain, images, shuffle=False, epochs=2)
    labelled = compiled(exact=True)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(10))).batch(4)
    history = labelled.fit(dataset, epochs=2, verbose=0, validation_data=dataset).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
    for a, b in zip(plain.trainable_variables, labelled.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.all
def test_same_seed_same_history():
    def history(**kwargs):
        keras.utils.set_random_seed(0)  # the order of the images
        return fit(compiled(**kwargs), random_images(12), epochs=3, validation_data=random_images(5))

    assert history(seed=3) == history(seed=3)
    assert history(seed=3)["loss"] != history(seed=4)["loss"]


@pytest.mark.all
def test_set_random_seed_fixes_a_model_without_a_seed():
    def run(seed):
        keras.utils.set_random_seed(seed)
        model = compiled(zoo.build("fc_bvae", SHAPE, 3))
        return fit(model, random_images(12), epochs=2)["loss"], model.generate(5).tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)
    random.seed(5)
    assert build(seed=None).seed != build(seed=None).seed


def test_every_step_and_every_batch_has_noise_of_its_own():
    """The same images, weights that do not move: only the noise can change the loss."""
    images = np.repeat(random_images(1), 32, axis=0)
    model = compiled(learning_rate=0.0)
    assert len(set(fit(model, images, batch_size=32, epochs=4)["loss"])) == 4
    halves = [model.evaluate(part, batch_size=16, verbose=0) for part in (images, images[:16])]
    assert halves[0] != halves[1]
    # A second evaluation repeats the first: figures of two epochs differ by their weights, not by their noise.
    assert model.evaluate(images, batch_size=16, verbose=0) == halves[0]


@pytest.mark.parametrize("seed", [-1, 2**40, *(pytest.param(n, marks=pytest.mark.all) for n in (0, 2**31))], ids=str)
def test_any_integer_is_a_seed(seed):
    model = build(seed=seed)
    assert model.seed == seed
    assert model.generate(2, seed=seed).shape == (2, *SHAPE)
    assert np.isfinite(fit(compiled(model), random_images())["loss"]).all()


# --- using a model --------------------------------------------------------------------------------------------------

LATENTS = {
    "bits": lambda: BernoulliLatent(3),
    "category": lambda: CategoricalLatent(5),
    "categories": lambda: CategoricalLatent(3, variables=2),
    "one bit": lambda: BernoulliLatent(1),
}


@pytest.fixture(params=list(LATENTS))
def model(request):
    return build(LATENTS[request.param]())


def decoded(model):
    """The mean image of every code, from NumPy: (codes, H, W, C)."""
    return sigmoid(forward(model.decoder, every_z(model.latent))).reshape(-1, *SHAPE)


@pytest.mark.parametrize("n", [1, 6, 2500])
def test_encode_and_decode(model, n):
    """2,500 is not a multiple of the chunk, 1,024."""
    images = random_images(n)
    codes = model.encode(images)
    assert isinstance(codes, np.ndarray) and codes.dtype == np.int32 and codes.shape == (n, model.latent.code_units)
    # Ties are decided by rounding: leave them out.
    log_q = np.sort(log_q_all(model, images), axis=0)
    clear = log_q[-1] - log_q[-2] > 1e-4
    expected = model.latent.all_codes()[log_q_all(model, images).argmax(0)]
    np.testing.assert_array_equal(codes[clear], expected[clear])

    result = model.decode(codes)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32 and result.shape == (n, *SHAPE)
    rows = (codes[:, None] == model.latent.all_codes()).all(-1).argmax(1)
    np.testing.assert_allclose(result, decoded(model)[rows], atol=1e-6)
    np.testing.assert_allclose(model(images), result, atol=1e-6)
    np.testing.assert_allclose(model.predict(images, verbose=0), result, atol=1e-6)


def index_of_images(model, images):
    distance = np.abs(images[:, None] - decoded(model)).max((-3, -2, -1))
    assert distance.min(1).max() < 1e-5  # every image is the decoded image of some code
    return distance.argmin(1)


def test_reconstruct_decodes_samples_of_the_posterior(model):
    """Frequencies over 4,000 equal images (in chunks) are those of q: |z| < 5 for 9 codes, false alarm < 6e-6."""
    image = random_images(1)
    result = model.reconstruct(np.repeat(image, 4000, axis=0), seed=1)
    assert result.dtype == np.float32 and result.shape == (4000, *SHAPE)
    rows = index_of_images(model, result)
    q = np.exp(log_q_all(model, image)[:, 0])
    counts = np.bincount(rows, minlength=len(q))
    assert np.all(np.abs(counts - 4000 * q) <= 5 * np.sqrt(4000 * q * (1 - q)) + 1e-3)
    # Every chunk has noise of its own.
    assert np.any(rows[:1024] != rows[1024:2048])


def test_generate_decodes_samples_of_the_prior(model):
    """Frequencies of 4,000 images are uniform: |z| < 5 for at most 9 codes, false alarm < 6e-6."""
    result = model.generate(4000, seed=2)
    assert result.dtype == np.float32 and result.shape == (4000, *SHAPE)
    assert result.min() >= 0 and result.max() <= 1
    codes = model.latent.num_codes
    counts = np.bincount(index_of_images(model, result), minlength=codes)
    assert np.all(np.abs(counts - 4000 / codes) <= 5 * np.sqrt(4000 / codes * (1 - 1 / codes)))


def test_elbo(model):
    """The mean over 4,000 equal images is E_q[ln p(x|z)] - KL: |z| < 5, false alarm < 6e-7."""
    image = random_images(1)
    result = model.elbo(np.repeat(image, 4000, axis=0), seed=3)
    assert result.dtype == np.float32 and result.shape == (4000,)
    log_p, kl = exact_terms(model, image)
    variance = np.exp(log_q_all(model, image)[:, 0]) @ (log_p_all(model, image)[:, 0] - log_p[0]) ** 2
    assert abs(result.mean() - (log_p[0] - kl[0])) < 5 * np.sqrt(variance / 4000) + 1e-5
    assert model.elbo(image).shape == (1,)


def test_elbo_with_an_exact_estimator():
    model, images = build(exact=True), random_images(9)
    log_p, kl = exact_terms(model, images)
    np.testing.assert_allclose(model.elbo(images), log_p - kl, rtol=1e-5)
    np.testing.assert_array_less(model.elbo(images), model.log_likelihood(images))


@pytest.mark.parametrize("n", [1, 9, 1030])
def test_log_likelihood_is_exact_if_codes_are_few(model, n):
    images = random_images(n)
    result = model.log_likelihood(images)
    assert result.dtype == np.float32 and result.shape == (n,)
    np.testing.assert_allclose(result, exact_log_likelihood(model, images), rtol=1e-5)


def test_log_likelihood_is_exact_up_to_4096_codes():
    model, images = build(BernoulliLatent(12)), random_images(3)
    np.testing.assert_allclose(
        model.log_likelihood(images, num_samples=1), exact_log_likelihood(model, images), rtol=1e-5
    )


@pytest.fixture
def no_enumeration(monkeypatch):
    monkeypatch.setattr(tf_isvae.latents, "MAX_ENUMERATED_CODES", 0)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_importance_weighted_bound_has_the_expectation_it_should(no_enumeration, num_samples):
    """With 2 bits the expectation of ln 1/K sum_k w_k is a sum over 4^K tuples; the mean over 4,000 equal images must
    agree: |z| < 5, false alarm < 6e-7. With K = 1 it is the ELBO."""
    model, image = build(BernoulliLatent(2)), random_images(1)
    log_q = log_q_all(model, image)[:, 0]
    log_w = log_p_all(model, image)[:, 0] - np.log(4) - log_q
    tuples = np.indices((4,) * num_samples).reshape(num_samples, -1)
    probabilities = np.exp(log_q[tuples].sum(0))
    bounds = np.log(np.mean(np.exp(log_w[tuples]), axis=0))
    expected = probabilities @ bounds
    result = model.log_likelihood(np.repeat(image, 4000, axis=0), num_samples=num_samples, seed=5)
    assert abs(result.mean() - expected) < 5 * np.sqrt(probabilities @ (bounds - expected) ** 2 / 4000) + 1e-5
    if num_samples == 1:
        log_p, kl = exact_terms(model, image)
        np.testing.assert_allclose(expected, log_p[0] - kl[0], rtol=1e-9)


def test_importance_weighted_bound_rises_to_the_exact_value(model, no_enumeration):
    """Means over 1,000 equal images. ln of a mean of K weights, relative variance v, has a standard deviation of about
    sqrt(v / K): the steps between these K are far wider than 5 standard errors. Equal if q is exact (v = 0)."""
    image = random_images(1)
    exact = exact_log_likelihood(model, image)[0]
    log_q = log_q_all(model, image)[:, 0]
    w = np.exp(log_p_all(model, image)[:, 0] - np.log(len(log_q)) - log_q)
    v = np.exp(log_q) @ w**2 / (np.exp(log_q) @ w) ** 2 - 1
    images = np.repeat(image, 1000, axis=0)
    means = [model.log_likelihood(images, num_samples=k, seed=k).mean() for k in (1, 8, 64)]
    slack = 5 * np.sqrt(v / np.array([1, 8, 64]) / 1000) + 1e-5
    assert np.all(means < exact + slack)
    assert means[0] < means[1] + slack[1] and means[1] < means[2] + slack[2]
    assert exact - means[2] < v / 64 + slack[2]  # the bias is about v / 2K


@pytest.mark.parametrize("num_samples", [1024, 2500])
def test_many_samples_are_put_together_from_chunks(no_enumeration, num_samples):
    """Standard deviation sqrt(v / K) by the delta method; 6 of them for 4 images, plus the bias v / K. The whole is far
    from what 2,500 - 2,048 = 452 samples, or a wrong share for the last chunk, would give."""
    model, images = build(weight_scale=0.7), random_images(4)
    log_q = log_q_all(model, images)
    w = np.exp(log_p_all(model, images) - np.log(8) - log_q)
    v = (np.exp(log_q) * w**2).sum(0) / (np.exp(log_q) * w).sum(0) ** 2 - 1
    result = model.log_likelihood(images, num_samples=num_samples, seed=1)
    assert np.all(np.abs(result - exact_log_likelihood(model, images)) < 6 * np.sqrt(v / num_samples) + v / num_samples)


@keras.saving.register_keras_serializable("test_model")
class CountRows(keras.layers.Layer):
    """Passes z on, and counts the rows that the decoder was given."""

    def build(self, input_shape):
        self.rows = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)

    def call(self, z):
        self.rows.assign(self.rows + tf.shape(z)[0])
        return z


@pytest.mark.parametrize("n, num_samples", [(3, 1), (3, 100), (1, 7), (2, 1500), (1100, 2)])
def test_the_number_of_samples_is_honoured(no_enumeration, n, num_samples):
    counter = CountRows()
    decoder = keras.Sequential([keras.Input((3,)), counter, keras.layers.Dense(4), keras.layers.Reshape(SHAPE)])
    model = DiscreteVAE(networks.dense_encoder(SHAPE, 3, ()), BernoulliLatent(3), decoder, seed=0)
    counter.rows.assign(0)
    result = model.log_likelihood(random_images(n), num_samples=num_samples)
    assert result.shape == (n,) and np.isfinite(result).all()
    assert int(counter.rows.numpy()) == n * num_samples


@pytest.mark.parametrize("method", ["reconstruct", "elbo", "log_likelihood"])
def test_seeds_of_methods(method, no_enumeration):
    model, images = build(), random_images(50)

    def call(seed):
        return getattr(model, method)(images, seed=seed)

    np.testing.assert_array_equal(call(1), call(1))
    assert np.any(call(1) != call(2))
    assert np.any(call(None) != call(None))


def test_seeds_of_generate():
    model = build()
    np.testing.assert_array_equal(model.generate(50, seed=1), model.generate(50, seed=1))
    assert np.any(model.generate(50, seed=1) != model.generate(50, seed=2))
    assert np.any(model.generate(50) != model.generate(50))


@pytest.mark.all
def test_gaussian_model_methods():
    model, images = build(GaussianLatent(2)), random_images(1030)
    codes = model.encode(images)
    assert codes.dtype == np.float32 and codes.shape == (1030, 2)
    np.testing.assert_allclose(codes, forward(model.encoder, images)[:, :2], atol=1e-5)
    np.testing.assert_allclose(model.decode(codes), model(images), atol=1e-6)
    assert model.generate(3, seed=0).shape == (3, *SHAPE)
    assert np.isfinite(model.elbo(images)).all()
    assert np.isfinite(model.log_likelihood(images[:5], num_samples=50)).all()


# --- bad input ------------------------------------------------------------------------------------------------------

GOOD = random_images(4)


@pytest.fixture(scope="module")
def ready():
    return compiled()


DECODER = lambda units, shape=SHAPE: networks.dense_decoder(units, shape, ())  # noqa: E731
BITS = lambda: BernoulliLatent(3)  # noqa: E731


@pytest.mark.parametrize("kind", ["subclass", "two inputs"])
def test_encoders_whose_shapes_keras_does_not_know(kind):
    class Subclass(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(3)

        def call(self, x):
            return self.layer(tf.reshape(x, (-1, 4)))

    if kind == "subclass":
        encoder = Subclass()
        encoder(GOOD)
    else:
        inputs = [keras.Input(SHAPE), keras.Input(SHAPE)]
        encoder = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs[0] + inputs[1])))
    with pytest.raises((TypeError, ValueError)) as error:
        DiscreteVAE(encoder, BITS(), DECODER(3))
    one_line(error, "encoder")


# --- precision and types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, bool])
def test_other_dtypes_of_images(ready, dtype):
    """Black and white images as anything: the same codes, likelihoods and training as float32."""
    images = (GOOD > 0.5).astype(np.float32)
    given = images.astype(dtype)
    np.testing.assert_array_equal(ready.encode(given), ready.encode(images))
    np.testing.assert_array_equal(ready.log_likelihood(given), ready.log_likelihood(images))

    def loss(x):
        model = build(exact=True)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        return fit(model, x, shuffle=False)["loss"]

    np.testing.assert_allclose(loss(given), loss(images), rtol=1e-6)


def test_lists_and_tensors_are_images_too(ready):
    expected = ready.encode(GOOD)
    np.testing.assert_array_equal(ready.encode(GOOD.tolist()), expected)
    np.testing.assert_array_equal(ready.encode(tf.constant(GOOD)), expected)
    assert np.isfinite(fit(compiled(), tf.constant(GOOD))["loss"]).all()


@needs_bfloat16
@pytest.mark.parametrize("name", [pytest.param("fc_bvae", marks=pytest.mark.all), "cnn_cvae"])
def test_mixed_precision(name):
    """bfloat16 products, float32 logs, within the 3 digits of bfloat16 of the same float32 model.

    Not on smaller images: oneDNN leaves the weights of a strided bfloat16 convolution that meet only the padding
    of a 1x1 grid with arbitrary gradients.
    """
    with layers_in("mixed_bfloat16"):
        model = zoo.build(name, (16, 16, 1), 4, seed=0)
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert model.encoder(np.zeros((1, 16, 16, 1), np.float32)).dtype == tf.bfloat16
    images = np.random.default_rng(0).uniform(size=(12, 16, 16, 1)).astype(np.float32)

    reference = zoo.build(name, (16, 16, 1), 4, seed=0)
    reference.set_weights(model.get_weights())
    np.testing.assert_allclose(model.log_likelihood(images), reference.log_likelihood(images), rtol=5e-3)
    assert model.log_likelihood(images).dtype == model.elbo(images).dtype == np.float32
    assert model.decode(model.encode(images)).dtype == np.float32

    start = model.get_weights()
    model.compile(keras.optimizers.Adam(1e-3))
    seen = []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(dict(logs)))
    history = fit(model, images, batch_size=5, epochs=2, callbacks=[record])
    assert len(seen) == 6 and all(np.isfinite(value) for logs in seen for value in logs.values())
    assert set(history) == {"loss", "log_likelihood", "kl"}
    assert all(tracker.dtype == "float32" for tracker in model.metrics)
    assert any(np.any(a != b) for a, b in zip(start, model.get_weights(), strict=True))
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.all
def test_jit_compile():
    """XLA gives the losses of the plain graph."""

    def history(jit):
        model = build(exact=True)
        model.compile(keras.optimizers.SGD(0.1), jit_compile=jit)
        return fit(model, random_images(8), shuffle=False, epochs=2)["loss"]

    np.testing.assert_allclose(history(True), history(False), rtol=1e-5)


@pytest.mark.all
def test_jit_compile_samples():
    model = build(CategoricalLatent(3, variables=2))
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    assert np.isfinite(fit(model, random_images(8), epochs=2)["loss"]).all()


# --- non-finite losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_batch", [2, 5])
def test_stop_on_non_finite_loss(bad_batch):
    """Batches of a repeating set, 3 steps per epoch; the NaN comes in epoch 1, step 3 or in epoch 2, step 3."""
    images = np.stack([random_images(4, seed=i) for i in range(6)])
    images[bad_batch, 0] = np.nan
    dataset = tf.data.Dataset.from_tensor_slices(images)
    model, reference = compiled(exact=True), compiled(exact=True)
    with pytest.raises(FloatingPointError) as error:
        model.fit(dataset, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[callbacks.StopOnNonFiniteLoss()])
    epoch = bad_batch // 3
    one_line(error, f"epoch {epoch + 1}, step 3", "nan")
    if epoch:
        reference.fit(dataset.take(3), verbose=0)
    for kept, good in zip(model.trainable_variables, reference.trainable_variables, strict=True):
        np.testing.assert_allclose(kept, good, atol=1e-7)


# --- saving ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, fresh_python):
    """What another process did: (a model, images, what it gave from the model's file)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    model, images = build(BernoulliLatent(20), estimator=estimators.ImportanceSampling(2)), random_images(10)
    model.compile(keras.optimizers.Adam(0.01))
    fit(model, images, epochs=2)
    model.save(folder / "m.keras")
    np.save(folder / "images.npy", images)
    done = fresh_python("tests/programs/load_and_continue.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return model, images, np.load(folder / "results.npz")


@pytest.mark.all
def test_keras_file_in_a_fresh_process(elsewhere):
    """Weights, optimizer state and noise: the loaded model goes on as the saved one would."""
    model, images, results = elsewhere
    assert results["iterations"] == model.optimizer.iterations.numpy() == 6
    moments = np.concatenate([v.numpy().ravel() for v in model.optimizer.variables[2:]])
    assert np.abs(moments).max() > 0
    np.testing.assert_array_equal(results["moments"], moments)
    np.testing.assert_array_equal(results["codes"], model.encode(images))
    np.testing.assert_allclose(results["reconstructed"], model.reconstruct(images, seed=1), atol=1e-6)
    np.testing.assert_allclose(results["elbo"], model.elbo(images, seed=1), rtol=1e-5)
    expected = model.log_likelihood(images, num_samples=20, seed=1)
    np.testing.assert_allclose(results["log_likelihood"], expected, rtol=1e-5)
    np.testing.assert_allclose(results["generated"], model.generate(7, seed=1), atol=1e-6)
    expected = fit(model, images, epochs=2, shuffle=False)["loss"]
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "latent, options",
    [
        (lambda: CategoricalLatent(3, variables=2), {"likelihood": likelihoods.Gaussian(0.3)}),
        (lambda: GaussianLatent(2), {"estimator": estimators.ImportanceSampling(3)}),
        (lambda: BernoulliLatent(3), {"exact": True, "name": "mine"}),
    ],
    ids=["categories", "gaussian", "own estimator"],
)
def test_round_trip_of_all_parts(tmp_path, latent, options):
    model, images = build(latent(), kl_weight=2.5, **options), random_images(5)
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    assert type(copy) is DiscreteVAE and copy.name == model.name and copy.seed == model.seed
    for part in ("latent", "estimator", "likelihood"):
        assert type(getattr(copy, part)) is type(getattr(model, part))
        assert getattr(copy, part).get_config() == getattr(model, part).get_config()
    assert float(copy.kl_weight.numpy()) == 2.5
    np.testing.assert_allclose(copy.elbo(images, seed=1), model.elbo(images, seed=1), rtol=1e-6)
    np.testing.assert_array_equal(copy.encode(images), model.encode(images))


def test_kl_weight_is_a_weight_and_in_the_config():
    model = build(kl_weight=2.5)
    assert float(model.kl_weight.numpy()) == model.get_config()["kl_weight"] == 2.5
    model.kl_weight.assign(4.0)
    assert float(DiscreteVAE.from_config(model.get_config()).kl_weight.numpy()) == 4.0


@pytest.mark.parametrize("kl_weight", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_bad_kl_weights(kl_weight):
    with pytest.raises(ValueError) as error:
        build(kl_weight=kl_weight)
    one_line(error, f"kl_weight is {kl_weight!r}", "positive number")


def test_files_from_before_kl_weight_was_an_argument(tmp_path):
    """Their config does not have it; their weights do."""
    model = build()
    model.kl_weight.assign(2.5)
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                config = json.loads(content)
                del config["config"]["kl_weight"]
                content = json.dumps(config)
            old.writestr(name, content)
    copy = keras.models.load_model(tmp_path / "old.keras")
    assert float(copy.kl_weight.numpy()) == 2.5
    np.testing.assert_array_equal(copy.elbo(GOOD, seed=1), model.elbo(GOOD, seed=1))


@needs_bfloat16
def test_mixed_precision_survives_saving(tmp_path):
    with layers_in("mixed_bfloat16"):
        model = build()
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    assert copy.dtype_policy.name == copy.encoder.layers[-1].dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(copy.log_likelihood(GOOD), model.log_likelihood(GOOD))


class NeverSaved(keras.layers.Layer):
    """A layer that Keras could not make again from a config."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@needs_bfloat16
def test_in_precision():
    """A network within a network is converted too; weights, noise and figures stay, and so does the model itself."""

    def networks_of(dtype):
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="inner", dtype=dtype)])
        flat = keras.layers.Flatten(dtype=dtype)
        encoder = keras.Sequential([keras.Input(SHAPE), flat, inner])
        return encoder, BernoulliLatent(3, dtype=dtype), networks.dense_decoder(3, SHAPE, (6,))

    with layers_in("mixed_bfloat16"):
        trained = DiscreteVAE(*networks_of(None), seed=7, estimator=estimators.DisARM(3))
    trained.kl_weight.assign(2.5)
    trained.generate(1)
    model = in_precision(trained, "float32")
    layers = (model, model.latent, *model.encoder.layers, *model.encoder.layers[-1].layers, *model.decoder.layers)
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    assert trained.encoder.layers[-1].layers[0].compute_dtype == "bfloat16"
    oracle = DiscreteVAE(*networks_of("float32"), seed=7, estimator=estimators.DisARM(3))
    oracle.set_weights(trained.get_weights())
    assert model.estimator.num_pairs == 3 and float(model.kl_weight.numpy()) == 2.5
    for name, options in (("encode", {}), ("reconstruct", {"seed": 1}), ("elbo", {"seed": 1})):
        np.testing.assert_array_equal(getattr(model, name)(GOOD, **options), getattr(oracle, name)(GOOD, **options))
    assert (
        model.seed_generator.state.numpy().tolist() == trained.seed_generator.state.numpy().tolist()
    )  # the next noise
    back = in_precision(model, "mixed_bfloat16")
    np.testing.assert_array_equal(back.elbo(GOOD, seed=1), trained.elbo(GOOD, seed=1))
    assert in_precision(model, "float32") is model and in_precision(trained, None) is trained
    with pytest.raises(ValueError, match="^precision is 'float16'; it must be one of float32, mixed_bfloat16"):
        in_precision(model, "float16")


def test_in_precision_of_layers_that_cannot_be_saved():
    encoder = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), NeverSaved(tf.nn.relu), keras.layers.Dense(3)]
    )
    model = DiscreteVAE(encoder, BernoulliLatent(3), networks.dense_decoder(3, SHAPE, (6,)))
    assert in_precision(model, "float32") is model


# --- several replicas -----------------------------------------------------------------------------------------------

DISTRIBUTED = {  # images, batch size, a regulariser
    "4 images, regularised": (4, 4, True),
    "4 and 1 images": (5, 4, False),
    "1 image": (1, 1, False),
    "4 and 3 images": (7, 4, False),
    "5 images": (5, 5, False),
}


@pytest.fixture(scope="module")
def two_replicas(apart):
    """What programs/models_on_two_replicas.py found in a process of its own, with two logical devices."""
    return apart("models_on_two_replicas", [*DISTRIBUTED][:3], devices=2)


@pytest.mark.all
@pytest.mark.parametrize("case", [*DISTRIBUTED][:3])
def test_two_replicas_step_as_one(two_replicas, case):
    """The same batches on one device and on two, also if a replica has fewer images, or none."""
    stepped_as_one(*two_replicas[case])


@pytest.mark.all
def test_two_replicas_step_as_one_with_other_batches(apart):
    results = apart("models_on_two_replicas", [*DISTRIBUTED][3:], False, devices=2)
    assert len(results) == 2
    for one, two in results.values():
        stepped_as_one(one, two)


def stepped_as_one(one, two):
    np.testing.assert_allclose(two["weights"], one["weights"], atol=1e-6)
    for logs in ("logs", "evaluated"):
        assert one[logs].keys() == two[logs].keys()
        for key, value in one[logs].items():
            assert math.isclose(two[logs][key], value, rel_tol=1e-5), (logs, key)


@pytest.mark.all
def test_replicas_draw_different_noise(two_replicas):
    first, second = two_replicas["seeds"]
    assert first != second
    assert first == two_replicas["seed of one"]


@pytest.mark.all
def test_two_replicas_with_noise_by_hand(two_replicas):
    """The mean of the gradients of both halves, each with the noise of its replica."""
    moved, expected = two_replicas["noisy"]
    assert two_replicas["halves differ"]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.all
def test_gradients_are_evaluated_inside_a_scope_as_outside(two_replicas):
    inside, outside = two_replicas["inside"], two_replicas["outside"]
    assert outside["variance"] > 0 and inside.keys() == outside.keys()
    for name in outside:
        np.testing.assert_allclose(inside[name], outside[name], rtol=1e-3, err_msg=name)
    assert two_replicas["annealing"] == 1


@pytest.mark.all
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm", "clipvalue", "gradient_accumulation_steps"])
def test_options_that_replicas_would_not_share_are_refused(two_replicas, option):
    """Keras would clip each replica's part, and cannot accumulate gradients in several."""
    one_line(two_replicas["refused"][option], f"the optimizer's {option} is ", "must be None with 2 replicas")


# --- calls that used to pass without a word -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["call", "predict", "a tensor", "a data set"])
def test_a_model_is_called_on_what_fit_accepts(ready, how):
    """The same line as from encode, for pixels of 0 to 255 and for another shape; what fits is computed as before."""
    call = {
        "call": ready,
        "predict": lambda images: ready.predict(images, verbose=0),
        "a tensor": lambda images: ready(tf.constant(images)),
        "a data set": lambda images: ready.predict(tf.data.Dataset.from_tensor_slices(images).batch(3), verbose=0),
    }[how]
    for wrong in (
        np.full((3, *SHAPE), 255, np.uint8),
        np.zeros((3, 5, 5, 1), np.float32),
        np.full((3, *SHAPE), np.nan),
    ):
        with pytest.raises(ValueError) as expected:
            ready.encode(wrong)
        with pytest.raises(ValueError) as error:
            call(wrong)
        one_line(error, str(expected.value))
    images = random_images(3)
    expected = sigmoid(forward(ready.decoder, ready.encode(images)))
    np.testing.assert_allclose(np.reshape(call(images), (3, -1)), expected, rtol=1e-5)


def test_a_model_is_still_a_part_of_others(ready):
    """Symbolic images, in a functional model and in a graph of one's own, pass the check of what has no values yet."""
    images = random_images(3)
    inputs = keras.Input(SHAPE)
    outer = keras.Model(inputs, ready(inputs))
    for values in (outer(images), tf.function(ready)(images), outer.predict(images, verbose=0)):
        np.testing.assert_allclose(values, ready(images), rtol=1e-6)


@pytest.mark.parametrize("given", [{"loss": "mse"}, {"metrics": ["mae"]}, {"loss_weights": [2.0]}])
def test_compile_refuses_what_training_would_ignore(given):
    with pytest.raises(ValueError) as error:
        build().compile("adam", **given)
    one_line(error, f"compile: {[*given][0]} is", "must be left out", "-ELBO")


@pytest.mark.all
def test_a_compiled_model_is_loaded_compiled(tmp_path, monkeypatch):
    """Also from a file of a version that let a loss pass, and ignored it."""
    model, images = compiled(exact=True), random_images()
    fit(model, images)
    model.save(tmp_path / "now.keras")
    config = model.get_compile_config()
    monkeypatch.setattr(model, "get_compile_config", lambda: {**config, "loss": "mse", "metrics": ["mae"]})
    model.save(tmp_path / "before.keras")
    history = fit(model, images, shuffle=False)
    for name in ("now", "before"):
        copy = keras.models.load_model(tmp_path / f"{name}.keras")
        assert copy.compiled and fit(copy, images, shuffle=False) == history


def test_an_estimator_that_returns_a_tensor_is_told_what_to_return():
    def mean_of_one(posterior, log_likelihood, seed=None):
        return tf.reduce_mean(log_likelihood(posterior.sample(1, seed=seed)), axis=0)

    model = compiled(estimator=mean_of_one)
    for call in (lambda: fit(model, random_images()), lambda: model.elbo(random_images())):
        with pytest.raises(TypeError) as error:
            call()
        one_line(error, "estimator mean_of_one returned a tensor of shape", "Estimate(value, surrogate)", "(batch,)")


def test_many_models_do_not_warn_of_retracing(caplog):
    """Each was used once. Before, the fifth printed a warning."""
    for _ in range(7):
        build().encode(random_images(2))
    assert not [record for record in caplog.records if "retracing" in record.getMessage()]


def test_the_summary_knows_every_shape():
    lines = []
    build(CategoricalLatent(3, 2)).summary(print_fn=lambda text, **_: lines.append(text))
    text = "".join(lines)
    assert "(None, 6)" in text and "?" not in text and "unbuilt" not in text


@pytest.mark.all
@pytest.mark.parametrize("method", ["encode", "reconstruct", "elbo", "log_likelihood"])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_a_data_set_gives_what_its_array_gives(method, batch_size, no_enumeration, monkeypatch):
    """The same seed, whatever the batches: bit for bit, even if chunks of 7 images and their batches differ."""
    monkeypatch.setattr(tf_isvae.model, "CHUNK", 7)
    images, labels = random_images(23), np.arange(23)
    options = {} if method == "encode" else {"seed": 3}
    if method == "log_likelihood":
        options["num_samples"] = 9  # in chunks of 7 and 2 samples
    call = getattr(build(), method)
    expected = call(images, **options)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    np.testing.assert_array_equal(call(data, **options), expected)
    np.testing.assert_array_equal(call(data.map(lambda images, labels: images), **options), expected)


def test_what_takes_long_shows_its_progress(monkeypatch, capfd):
    model, images = build(), random_images(3000)
    data = tf.data.Dataset.from_tensor_slices(images).batch(500)
    for given in (images, data):
        model.encode(given)
        assert capfd.readouterr().err == ""
    monkeypatch.setattr(chunks, "PATIENCE", 0.0)
    for given, shown in ((images, "0/3000"), (data, "0 images")):
        model.encode(given)
        assert shown in capfd.readouterr().err
    keras.config.disable_interactive_logging()
    try:
        model.encode(images)
    finally:
        keras.config.enable_interactive_logging()
    assert capfd.readouterr().err == ""
