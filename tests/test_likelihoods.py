"""likelihoods: against TFP's densities in float64."""

import gc

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp
from ai_edge_litert.interpreter import Interpreter

from tf_isvae import BernoulliLatent, DiscreteVAE, evaluation, export, likelihoods, networks, zoo

tfd = tfp.distributions

BOTH = [likelihoods.Bernoulli(), likelihoods.Gaussian(), likelihoods.Gaussian(0.3)]


def name(likelihood):
    return f"{type(likelihood).__name__}{likelihood.get_config() or ''}"


def exact(likelihood, output, images):
    """ln p by TFP in float64, summed over pixels."""
    output, images = np.asarray(output, np.float64), np.asarray(images, np.float64)
    if isinstance(likelihood, likelihoods.Bernoulli):
        p = tfd.Bernoulli(logits=output, dtype=tf.float64)
    else:
        p = tfd.Normal(output, np.float64(likelihood.scale))
    return p.log_prob(images).numpy().sum((-3, -2, -1))


@pytest.fixture(params=[(1, 1, 1), (3, 2, 1), (4, 4, 3), (67, 1, 1), (28, 28, 1)], ids=str)
def arrays(request):
    rng = np.random.default_rng(0)
    output = rng.normal(scale=4.0, size=(5, *request.param)).astype(np.float32)
    images = rng.uniform(size=(5, *request.param)).astype(np.float32)
    images[0] = 0.0
    images[1] = 1.0
    return output, images


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_log_prob_against_tfp(likelihood, arrays):
    output, images = arrays
    result = likelihood.log_prob(output, images)
    assert result.dtype == tf.float32 and result.shape == (5,)
    np.testing.assert_allclose(result, exact(likelihood, output, images), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_leading_axes_are_samples(likelihood, arrays):
    output, images = arrays
    many = np.stack([output, -output, 0 * output])
    result = likelihood.log_prob(many, images)
    assert result.shape == (3, 5)
    np.testing.assert_allclose(result, exact(likelihood, many, images), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_log_prob_of_each_pair(likelihood, arrays):
    output, images = arrays
    output = output[:3]
    result = likelihood.log_prob_of_each(output, images)
    assert result.shape == (3, 5)
    np.testing.assert_allclose(result, exact(likelihood, output[:, None], images[None]), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_both_forms_have_the_same_gradient(likelihood, arrays):
    output, images = tf.constant(arrays[0][:3]), arrays[1]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(output)
        of_each = tf.reduce_sum(likelihood.log_prob_of_each(output, images))
        one_by_one = tf.reduce_sum(likelihood.log_prob(tf.repeat(output[:, None], 5, axis=1), images))
    np.testing.assert_allclose(tape.gradient(of_each, output), tape.gradient(one_by_one, output), rtol=1e-4, atol=1e-4)


def test_bernoulli_gradient_is_x_minus_x_hat(arrays):
    output, images = tf.constant(arrays[0]), arrays[1]
    with tf.GradientTape() as tape:
        tape.watch(output)
        value = likelihoods.Bernoulli().log_prob(output, images)
    expected = images - 1 / (1 + np.exp(-output.numpy().astype(np.float64)))
    np.testing.assert_allclose(tape.gradient(value, output), expected, atol=1e-6)


def test_bernoulli_gradient_with_respect_to_the_images_is_the_logits(arrays):
    """ln p is linear in x; several samples for each image add up."""
    output, images = np.stack([arrays[0], 2 * arrays[0]]), tf.constant(arrays[1])
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = likelihoods.Bernoulli().log_prob(output, images)
    np.testing.assert_allclose(tape.gradient(value, images), output.sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "images"),
    [
        ((3, 1, 2, 2, 1), (5, 2, 2, 1)),
        ((1, 2, 2, 1), (5, 2, 2, 1)),
        ((5, 2, 2, 1), (1, 2, 2, 1)),
        ((2, 2, 1), (5, 2, 2, 1)),
    ],
)
def test_bernoulli_gradients_of_arguments_that_broadcast(output, images):
    """Each is summed over the axes that the other one has."""
    rng = np.random.default_rng(0)
    output, images = rng.normal(size=output).astype(np.float32), rng.uniform(size=images).astype(np.float32)
    to_output = images - 1 / (1 + np.exp(-output))
    expected = []
    for of, by in ((to_output, output), (output + 0 * images, images)):
        leading = tuple(range(of.ndim - by.ndim))
        ones = tuple(i + len(leading) for i, n in enumerate(by.shape) if n == 1)
        expected.append(of.sum(leading + ones, keepdims=True).reshape(by.shape))
    given = (tf.constant(output), tf.constant(images))
    with tf.GradientTape() as tape:
        tape.watch(given)
        value = likelihoods.Bernoulli().log_prob(*given)
    for gradient, by_hand in zip(tape.gradient(value, given), expected, strict=True):
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.all
def test_models_are_freed_after_use():
    """tf.custom_gradient keeps what surrounds it alive; that must not be the graph of a model."""

    def graphs():
        gc.collect()
        return sum(isinstance(thing, tf.__internal__.FuncGraph) for thing in gc.get_objects())

    def use():
        model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=13)
        images = np.zeros((2, 8, 8, 1), np.float32)
        model.elbo(images, seed=0)
        model.log_likelihood(images, 2, seed=0)
        evaluation.gradient_variance(model, images, draws=2)

    use()
    before = graphs()
    use()
    assert graphs() <= before


def test_bernoulli_has_a_second_derivative(arrays):
    output = tf.constant(arrays[0])
    with tf.GradientTape() as outer:
        outer.watch(output)
        with tf.GradientTape() as inner:
            inner.watch(output)
            value = likelihoods.Bernoulli().log_prob(output, arrays[1])
        first = inner.gradient(value, output)
    x_hat = 1 / (1 + np.exp(-arrays[0].astype(np.float64)))
    np.testing.assert_allclose(outer.gradient(first, output), -x_hat * (1 - x_hat), atol=1e-6)


def test_bernoulli_of_many_undecided_pixels_does_not_underflow():
    """A product of probabilities of 1/2 would, from 149 pixels on: 128 * 128 ln 2 nats."""
    output, images = tf.zeros((1, 128, 128, 1)), np.full((1, 128, 128, 1), 0.5, np.float32)
    np.testing.assert_allclose(likelihoods.Bernoulli().log_prob(output, images), [-(128**2) * np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("pixel", [0.0, 0.5, 1.0])
def test_extreme_logits_are_finite(logit, pixel):
    output, images = tf.fill((1, 2, 1, 1), logit), np.full((1, 2, 1, 1), pixel, np.float32)
    with tf.GradientTape() as tape:
        tape.watch(output)
        value = likelihoods.Bernoulli().log_prob(output, images)
    expected = 2 * (pixel * logit - max(logit, 0.0))  # ln(1 + e^l) is max(l, 0) up to 1e-43
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    np.testing.assert_allclose(likelihoods.Bernoulli().log_prob_of_each(output, images), [[expected]], rtol=1e-6)
    assert np.isfinite(tape.gradient(value, output)).all()


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_mean_is_an_image(likelihood):
    output = tf.constant([-1e4, -3.0, 0.0, 0.25, 2.0, 1e4])[:, None, None, None]
    mean = likelihood.mean(output)
    assert mean.shape == output.shape and mean.dtype == tf.float32
    if isinstance(likelihood, likelihoods.Bernoulli):
        expected = [0.0, 1 / (1 + np.exp(3.0)), 0.5, 1 / (1 + np.exp(-0.25)), 1 / (1 + np.exp(-2.0)), 1.0]
    else:
        expected = [0.0, 0.0, 0.0, 0.25, 1.0, 1.0]
    np.testing.assert_allclose(mean.numpy().ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("likelihood", BOTH, ids=name)
def test_half_precision_outputs_are_summed_in_float32(likelihood):
    """784 pixels: a sum in bfloat16 (8 bits) would be off by whole nats."""
    rng = np.random.default_rng(1)
    output = tf.cast(rng.normal(size=(2, 28, 28, 1)), tf.bfloat16)
    images = rng.uniform(size=(2, 28, 28, 1)).astype(np.float32)
    rounded = tf.cast(output, tf.float64).numpy()
    for result in (
        likelihood.log_prob(output, images),
        tf.linalg.diag_part(likelihood.log_prob_of_each(output, images)),
    ):
        assert result.dtype == tf.float32
        np.testing.assert_allclose(result, exact(likelihood, rounded, images), rtol=1e-5)
    assert likelihood.mean(output).dtype == tf.float32


@pytest.mark.parametrize(
    "likelihood", [*BOTH, likelihoods.Gaussian("channel"), likelihoods.DiscretizedLogistic("pixel")], ids=name
)
def test_serialisation(likelihood):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
    assert type(copy) is type(likelihood) and copy.get_config() == likelihood.get_config()


# --- learned scales, and the 256 levels -------------------------------------------------------------------------------


LEARNED = [likelihoods.Gaussian("channel"), *(likelihoods.DiscretizedLogistic(scale) for scale in likelihoods.SCALES)]


def mean_and_scale(likelihood, output):
    """What the docstrings say of the decoder's output, in float64: m, and s between its bounds."""
    first, second = np.split(np.asarray(output, np.float64), 2, axis=-1)
    if likelihood.scale == "channel":
        second = second.mean((-3, -2), keepdims=True)
    is_gaussian = isinstance(likelihood, likelihoods.Gaussian)
    least, at_0 = (1 / (255 * np.sqrt(2 * np.pi)), 0.2) if is_gaussian else (1 / 2550, 0.1)
    share = scipy.special.expit(second + scipy.special.logit(np.log(at_0 / least) / np.log(1 / least)))
    return first if is_gaussian else scipy.special.expit(first), least * (1 / least) ** share


def exact_learned(likelihood, output, images):
    """ln p by TFP in float64, of outputs and images that broadcast."""
    mean, scale = mean_and_scale(likelihood, output)
    images = np.asarray(images, np.float64)
    if isinstance(likelihood, likelihoods.Gaussian):
        density = tfd.Normal(mean, scale).log_prob(images)
    else:
        logistic = tfd.Logistic(255 * mean - 0.5, 255 * scale)
        levels = tfd.QuantizedDistribution(logistic, low=np.float64(0), high=np.float64(255))
        density = levels.log_prob(np.rint(255 * images))
    return (density + np.zeros_like(images)).numpy().sum((-3, -2, -1))


@pytest.fixture(params=[(1, 1, 1), (3, 2, 1), (4, 5, 3)], ids=str)
def outputs_and_images(request):
    *grid, channels = request.param
    rng = np.random.default_rng(0)
    output = rng.normal(size=(5, *grid, 2 * channels)).astype(np.float32)
    images = (rng.integers(0, 256, (6, *grid, channels)) / 255).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    return output, images


@pytest.mark.parametrize("likelihood", LEARNED, ids=name)
def test_learned_scales_against_tfp(likelihood, outputs_and_images):
    """Both forms, and their gradients, which are those of the differences."""
    output, images = outputs_and_images
    expected = exact_learned(likelihood, output[:, None], images)
    pairs = tf.constant(output)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pairs)
        one_by_one = likelihood.log_prob(pairs[:, None], images)
        of_each = likelihood.log_prob_of_each(pairs, images)
    for result in (one_by_one, of_each):
        assert result.dtype == tf.float32 and result.shape == (5, 6)
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-4)
    gradient = tape.gradient(one_by_one, pairs)
    np.testing.assert_allclose(tape.gradient(of_each, pairs), gradient, rtol=1e-3, atol=1e-3)
    direction = np.random.default_rng(1).normal(size=output.shape)
    step = 1e-6
    ends = [exact_learned(likelihood, (output + k * step * direction)[:, None], images).sum() for k in (-1, 1)]
    assert (gradient * direction).numpy().sum() == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("likelihood", LEARNED[1:], ids=name)
@pytest.mark.parametrize("logit", [-50.0, -6.0, -0.3, 0.0, 2.0, 50.0])
@pytest.mark.parametrize("raw", [-50.0, -3.0, 0.0, 50.0])
def test_the_probabilities_of_the_levels_sum_to_1(likelihood, logit, raw):
    levels = (np.arange(256) / 255).astype(np.float32).reshape(256, 1, 1, 1)
    log_p = likelihood.log_prob(tf.constant([logit, raw], tf.float32, (1, 1, 1, 2)), levels).numpy().astype(np.float64)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-4)
    # Images between two levels are those of the nearest.
    np.testing.assert_array_equal(likelihood.log_prob(tf.fill((1, 1, 1, 2), 0.1), np.clip(levels + 0.001, 0, 1)),
                                  likelihood.log_prob(tf.fill((1, 1, 1, 2), 0.1), levels))  # fmt: skip


@pytest.mark.parametrize("likelihood", LEARNED, ids=name)
@pytest.mark.parametrize("output", [(a, b) for a in (-1e4, -20.0, 0.0, 20.0, 1e4) for b in (-1e4, 0.0, 1e4)], ids=str)
def test_learned_scales_at_extremes(likelihood, output):
    """No overflow, and no NaN: a pixel that is most improbable costs many nats, not infinitely many."""
    images = np.array([0.0, 1 / 255, 0.5, 1.0], np.float32).reshape(4, 1, 1, 1)
    output = tf.constant(output, tf.float32, (1, 1, 1, 2))
    for function in (likelihood.log_prob, likelihood.log_prob_of_each):
        with tf.GradientTape() as tape:
            tape.watch(output)
            value = function(output, images)
        assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, output)).all()


def test_bits_per_dimension():
    """Of 12 values: all levels alike are 8 bits each; a density of 1 gives each of 256 levels 1/255 of the range."""
    logistic, gaussian = likelihoods.DiscretizedLogistic(), likelihoods.Gaussian(0.1)
    assert logistic.bits_per_dimension(-12 * np.log(256), 12) == pytest.approx(8)
    assert gaussian.bits_per_dimension(0.0, 12) == pytest.approx(np.log2(255))
    assert likelihoods.Bernoulli().bits_per_dimension(-5.0, 12) is None


def test_names_of_likelihoods():
    texts = (
        "Bernoulli",
        "Gaussian:0.25",
        "Gaussian:channel",
        "DiscretizedLogistic:channel",
        "DiscretizedLogistic:pixel",
    )
    for text in texts:
        assert likelihoods.name_of(likelihoods.get(text)) == text
    assert likelihoods.get("Gaussian").scale == 1.0 and likelihoods.get("DiscretizedLogistic").scale == "channel"
    given = likelihoods.Gaussian(2)
    assert likelihoods.get(given) is given
    with pytest.raises(ValueError, match="must be one of tf_isvae.likelihoods"):
        likelihoods.name_of(Logistic())


@pytest.mark.all
@pytest.mark.parametrize("likelihood", LEARNED, ids=name)
def test_exports_score_as_the_density_does(likelihood, tmp_path):
    """With an encoder whose bits are certain, the sample that `score` takes is the mode, whatever its noise."""
    model = zoo.build("fc_bvae", (4, 4, 3), 3, likelihood=likelihood, seed=0)
    bias = np.array([60.0, -60.0, 60.0], np.float32)
    model.encoder.layers[-1].set_weights([np.zeros((1024, 3)), bias])
    images = (np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)) / 255).astype(np.float32)
    output = model.decoder(np.array([[1.0, 0, 1]])).numpy()
    expected = exact_learned(likelihood, output, images)
    loaded = tf.saved_model.load(str(export.saved_model(model, tmp_path / "m", warmup=False)))
    score = loaded.signatures["score"](images=tf.constant(images), seed=tf.zeros((5, 2), tf.int32))
    np.testing.assert_allclose(score["log_likelihood"], expected, rtol=1e-4)
    interpreter = Interpreter(str(export.litert(model, tmp_path / "m.tflite")))
    noise = np.random.default_rng(0).uniform(0.1, 0.9, (5, 3)).astype(np.float32)
    score = interpreter.get_signature_runner("score")(images=images, noise=noise)
    np.testing.assert_allclose(score["log_likelihood"], expected, rtol=1e-4)
    np.testing.assert_allclose(score["elbo"], expected - 3 * np.log(2), rtol=1e-4)  # 3 certain bits


# --- a likelihood of one's own, with two decoder outputs a channel ----------------------------------------------------


@keras.saving.register_keras_serializable("test_likelihoods")
class Logistic(likelihoods.Likelihood):
    """Pixels with a logistic density: the decoder gives the logit of the mean, and the logarithm of the scale."""

    def __init__(self, scale=0.1):
        self.scale = scale

    def output_channels(self, channels):
        return 2 * channels

    def log_prob(self, output, images):
        mean, log_scale = tf.split(tf.cast(output, tf.float32), 2, axis=-1)
        y = (images - tf.sigmoid(mean)) * tf.exp(-log_scale)
        return tf.reduce_sum(-y - 2 * tf.nn.softplus(-y) - log_scale, axis=(-3, -2, -1))

    def mean(self, output):
        return tf.sigmoid(tf.split(tf.cast(output, tf.float32), 2, axis=-1)[0])

    def output_of_mean(self, images):
        logits = likelihoods.Bernoulli().output_of_mean(images)
        return np.concatenate([logits, np.full_like(logits, np.log(self.scale))], axis=-1)

    def get_config(self):
        return {"scale": self.scale}


def test_every_pair_by_broadcasting(arrays):
    """What the base class makes of `log_prob`, against TFP's density of every pair."""
    output, images = np.concatenate(arrays, axis=-1)[:3], arrays[1]
    result = Logistic().log_prob_of_each(output, images)
    mean, log_scale = np.split(output.astype(np.float64)[:, None], 2, axis=-1)
    expected = tfd.Logistic(1 / (1 + np.exp(-mean)), np.exp(log_scale)).log_prob(images.astype(np.float64))
    assert result.shape == (3, 5)
    np.testing.assert_allclose(result, expected.numpy().sum((-3, -2, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fc_bvae", pytest.param("fc_cvae", marks=pytest.mark.all), "cnn_bvae"])
def test_two_outputs_a_channel_train_and_reconstruct(name, tmp_path):
    """Nothing but the likelihood knows of them: a model of the zoo is built, begins at the mean image, takes a step,
    gives images, and is saved with it."""
    images = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)
    model = zoo.build(name, (8, 8, 3), 4, likelihood=Logistic(), seed=0)
    assert model.decoder.output_shape == (None, 8, 8, 6)
    networks.start_at_mean(model.decoder, images.mean(axis=0), model.likelihood)
    model.compile("sgd")
    before = model.get_weights()
    history = model.fit(images, batch_size=6, verbose=0).history
    assert np.isfinite([history[key] for key in ("loss", "log_likelihood", "kl")]).all()
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))
    for made in (model.reconstruct(images, seed=0), model.generate(2, seed=0), model(images).numpy()):
        assert made.shape[1:] == (8, 8, 3) and made.min() >= 0 and made.max() <= 1
    # Exact by a sum over all codes, each with every image; at least the bound by sampling, in the mean.
    assert model.log_likelihood(images).shape == (6,)
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(copy.elbo(images, seed=1), model.elbo(images, seed=1), rtol=1e-5)


def test_two_outputs_a_channel_in_a_saved_model(tmp_path):
    model = zoo.build("fc_bvae", (4, 4, 1), 3, likelihood=Logistic(), seed=0)
    loaded = tf.saved_model.load(str(export.saved_model(model, tmp_path / "m", warmup=False)))
    codes = model.latent.all_codes()
    decoded = loaded.signatures["decode"](codes=tf.constant(codes))
    assert decoded["logits"].shape == (8, 4, 4, 2)
    np.testing.assert_allclose(decoded["images"], model.decode(codes), atol=1e-6)
    images = np.random.default_rng(0).uniform(size=(5, 4, 4, 1)).astype(np.float32)
    score = loaded.signatures["score"](images=tf.constant(images), seed=tf.zeros((5, 2), tf.int32))
    np.testing.assert_allclose(score["elbo"], score["log_likelihood"] - score["kl"], rtol=1e-5)


def test_a_decoder_for_another_likelihood_is_refused():
    encoder = networks.dense_encoder((4, 4, 1), 3)
    for outputs, likelihood in ((1, Logistic()), (2, likelihoods.Bernoulli())):
        decoder = networks.dense_decoder(3, (4, 4, outputs))
        with pytest.raises(ValueError, match=r"decoder's output has shape \(4, 4, \d\); .* must be \(4, 4, \d\)"):
            DiscreteVAE(encoder, BernoulliLatent(3), decoder, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", [*BOTH, *LEARNED, Logistic()], ids=name)
def test_the_output_of_a_mean_image(likelihood):
    """`mean` takes it back, if the image is not quite black or white."""
    images = np.random.default_rng(0).uniform(0.02, 0.98, (3, 4, 5, 2)).astype(np.float32)
    output = likelihood.output_of_mean(images)
    assert output.shape == (3, 4, 5, likelihood.output_channels(2))
    np.testing.assert_allclose(likelihood.mean(output), images, atol=1e-5)
    assert np.isfinite(likelihood.output_of_mean(np.array([[0.0, 1.0]]))).all()


@pytest.mark.parametrize("method", ["log_prob", "mean", "output_of_mean"])
def test_what_a_likelihood_must_define(method):
    arguments = (None, None) if method == "log_prob" else (None,)
    with pytest.raises(NotImplementedError, match=f"Likelihood must define {method}"):
        getattr(likelihoods.Likelihood(), method)(*arguments)
