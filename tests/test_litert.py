"""export.litert: parity with the model, built-in operations, and files that are run before they are kept."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from helpers import needs_bfloat16

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    datasets,
    export,
    likelihoods,
    networks,
    zoo,
)
from tf_isvae.export.litert import _analysis, _operations
from tf_isvae.precision import layers_in

Interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed").Interpreter

# The least share of equal bits, and the greatest change of the mean ELBO, as a share of it.
PARITY = {None: (0.999, 5e-4), "float16": (0.995, 5e-3), "int8": (0.99, 0.02)}


@pytest.fixture(scope="module")
def images():
    """300 images to calibrate on, and 700 others, of the size that the shipped models take."""
    both = [
        next(iter(datasets.load("digits", split, batch_size=size, image_size=(28, 28)))).numpy()
        for split, size in (("train", 1000), ("test", 300))
    ]
    return both[0][:300], np.concatenate([both[0][300:], both[1]])


@pytest.fixture(scope="module", params=["cnn_bvae_mnist", pytest.param("fc_bvae_mnist", marks=pytest.mark.all)])
def trained(request):
    if request.param not in zoo.names():
        pytest.skip("exported_models/ is not here")
    return zoo.load(request.param)


@pytest.fixture(
    scope="module", params=[None, *(pytest.param(kind, marks=pytest.mark.all) for kind in ("float16", "int8"))], ids=str
)
def converted(request, trained, images, tmp_path_factory):
    """(model, quantize, path, interpreter); the interpreter is of a file that must be whole on its own."""
    path = tmp_path_factory.mktemp("litert") / "new" / "model.tflite"
    calibration = images[0] if request.param == "int8" else None
    assert export.litert(trained, path, request.param, calibration) == path
    assert [file.name for file in path.parent.iterdir()] == ["model.tflite"]
    return trained, request.param, path, Interpreter(model_path=str(path), num_threads=1)


def run(interpreter, signature, **inputs):
    return interpreter.get_signature_runner(signature)(**inputs)


def tiny(latent, shape=(3, 5, 2), **kwargs):
    keras.utils.set_random_seed(1)
    encoder = networks.dense_encoder(shape, latent.encoder_units, (8,))
    return DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, shape, (8,)), **kwargs)


def score_by_hand(model, images, noise):
    """log p(x|z) and KL of a Bernoulli latent and likelihood in NumPy, with the noise as the file takes it."""
    eta = np.asarray(model.encoder(images), np.float64)
    q = scipy.special.expit(eta)
    z = (noise < q).astype(np.float32)
    logits = np.asarray(model.decoder(z), np.float64)
    log_likelihood = (images * logits - np.logaddexp(0, logits)).reshape(len(images), -1).sum(axis=1)
    entropy = np.logaddexp(0, -eta) * q + np.logaddexp(0, eta) * (1 - q)
    return log_likelihood, (np.log(2) - entropy).sum(axis=1)


# --- Parity.


def test_parity_of_codes(converted, images):
    model, quantize, _, interpreter = converted
    test = images[1]
    codes = model.encode(test)
    assert 0.02 < codes.mean() < 0.98 and len(np.unique(codes, axis=0)) > 300
    for signature in ("encode", "reconstruct"):
        found = run(interpreter, signature, images=test)["codes"]
        agree = (found == codes).mean()
        print(f"{model.name} {quantize} {signature}: {agree:.5f} of the bits equal")
        assert found.dtype == np.int32 and agree >= PARITY[quantize][0]


def test_parity_of_the_elbo(converted, images):
    """Same noise in both: the loss in nats is that of the arithmetic, not of another sample."""
    model, quantize, _, interpreter = converted
    test = images[1]
    noise = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (len(test), 50)).astype(np.float32)
    log_likelihood, kl = score_by_hand(model, test, noise)
    found = run(interpreter, "score", images=test, noise=noise)
    np.testing.assert_allclose(found["elbo"], found["log_likelihood"] - found["kl"], rtol=1e-5)
    loss = (log_likelihood - kl).mean() - found["elbo"].mean()
    print(f"{model.name} {quantize}: {loss:.4f} nats lost")
    assert abs(loss) < PARITY[quantize][1] * -(log_likelihood - kl).mean()
    if quantize is None:
        np.testing.assert_allclose(found["kl"], kl, rtol=1e-3, atol=1e-3)


def test_parity_of_images(converted):
    model, quantize, _, interpreter = converted
    codes = np.random.default_rng(0).integers(0, 2, (40, 50), np.int32)
    found = run(interpreter, "decode", codes=codes)
    error = np.abs(found["images"] - model.decode(codes))
    assert error.mean() < {None: 1e-5, "float16": 1e-3, "int8": 0.02}[quantize]
    np.testing.assert_allclose(found["images"], scipy.special.expit(found["logits"]), atol=1e-5)
    noise = np.random.default_rng(1).uniform(0.01, 0.99, (40, 50)).astype(np.float32)
    generated = run(interpreter, "generate", noise=noise)
    np.testing.assert_array_equal(generated["codes"], noise < 0.5)
    error = np.abs(generated["images"] - model.decode(generated["codes"]))
    assert error.mean() < {None: 1e-5, "float16": 1e-3, "int8": 0.02}[quantize]


def test_size_and_operations(converted):
    """Weights once, in their precision; no operation that needs another library."""
    model, quantize, path, interpreter = converted
    parameters = model.encoder.count_params() + model.decoder.count_params()
    graph = 200_000  # five signatures; in int8 each has its own biases and scales
    if quantize == "int8":  # the last layer of the encoder stays in float32
        graph += 4 * model.encoder.layers[-1].count_params()
    assert path.stat().st_size <= {None: 4, "float16": 2, "int8": 1.1}[quantize] * parameters + graph
    names = _operations(_analysis(path.read_bytes()))
    assert "FULLY_CONNECTED" in names and not any("flex" in name.lower() or "CUSTOM" in name for name in names)
    if quantize == "int8":
        weights = [t for t in interpreter.get_tensor_details() if np.prod(t["shape"]) > 1000 and len(t["shape"]) > 1]
        kinds = {t["dtype"] for t in weights if t["quantization_parameters"]["scales"].size > 1}
        assert kinds == {np.int8}


def test_no_rows_give_no_rows(converted):
    """Also between calls with rows: the interpreter's tensors are resized each time."""
    interpreter = converted[3]
    for signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)
        shapes = {key: tuple(tensor["shape"][1:]) for key, tensor in runner.get_output_details().items()}
        for rows in (1, 0, 2):
            given = {
                key: np.zeros((rows, *tensor["shape"][1:]), tensor["dtype"])
                for key, tensor in runner.get_input_details().items()
            }
            assert {key: value.shape for key, value in runner(**given).items()} == {
                key: (rows, *shape) for key, shape in shapes.items()
            }


@pytest.mark.all
def test_an_encoder_without_biases_keeps_its_last_layer_in_float32(tmp_path):
    """Biases that are all 0 are left out of the file, and the operation looks different."""
    model = zoo.build("fc_bvae", (8, 8, 1), 50)
    images = np.random.default_rng(0).random((100, 8, 8, 1), np.float32)
    path = export.litert(model, tmp_path / "model.tflite", "int8", images)
    text = _analysis(path.read_bytes())
    assert "shape:[50, 1024], type:FLOAT32" in text and "shape:[50, 1024], type:INT8" not in text
    assert "shape:[1024, 64], type:INT8" in text  # the layer before it


# --- Every kind of model.


def random_images(rows):
    return np.random.default_rng(0).random((rows, 3, 5, 2), np.float32)


@pytest.fixture(
    scope="module",
    params=[BernoulliLatent(6), CategoricalLatent(20, variables=2), GaussianLatent(4)],
    ids=lambda latent: latent.name,
)
def any_latent(request):
    return tiny(request.param, likelihood=likelihoods.Gaussian(0.7))


@pytest.fixture(scope="module")
def in_float32(any_latent, tmp_path_factory):
    path = export.litert(any_latent, tmp_path_factory.mktemp("litert") / "m.tflite")
    return Interpreter(model_path=str(path))


def test_sampling_and_names(any_latent, in_float32):
    """Samples, the names of inputs and outputs, and the KL of the score."""
    images, noise = random_images(30), sampling_and_names(any_latent.latent, in_float32)
    found = run(in_float32, "score", images=images, noise=noise[:30])
    kl = any_latent.latent.kl(any_latent.latent.posterior(any_latent.encoder(images)))
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-3, atol=1e-4)


@pytest.mark.all
def test_sampling_and_names_in_int8(any_latent, tmp_path):
    path = export.litert(any_latent, tmp_path / "m.tflite", "int8", random_images(30))
    sampling_and_names(any_latent.latent, Interpreter(model_path=str(path)))


def sampling_and_names(latent, interpreter):
    """Codes of uniform noise follow the prior, also in int8 (5 standard errors; 8 bits of noise would fail)."""
    assert interpreter.get_signature_list() == {
        "encode": {"inputs": ["images"], "outputs": ["codes", "logits"]},
        "decode": {"inputs": ["codes"], "outputs": ["images", "logits"]},
        "reconstruct": {"inputs": ["images"], "outputs": ["codes", "images"]},
        "generate": {"inputs": ["noise"], "outputs": ["codes", "images"]},
        "score": {"inputs": ["images", "noise"], "outputs": ["elbo", "kl", "log_likelihood"]},
    }
    rows = 4000
    noise = np.random.default_rng(1).uniform(1e-6, 1 - 1e-6, (rows, latent.units)).astype(np.float32)
    codes = run(interpreter, "generate", noise=noise)["codes"]
    assert codes.shape == (rows, latent.code_units)
    if latent.code_values is None:
        np.testing.assert_allclose(codes, scipy.special.ndtri(noise.astype(np.float64)), atol=1e-4)
    else:
        p = 1 / latent.code_values
        for column in codes.T:
            frequencies = np.bincount(column, minlength=latent.code_values) / rows
            assert (np.abs(frequencies - p) < 5 * (p * (1 - p) / rows) ** 0.5).all()
    return noise


def test_logits_of_any_size(tmp_path):
    """LiteRT writes softplus as ln(1 + e^x), which is infinite from 89 on."""
    model = tiny(BernoulliLatent(6))
    for variable in model.weights:
        variable.assign(variable * 40)
    rng = np.random.default_rng(0)
    images = rng.random((50, *model.image_shape), np.float32)
    noise = rng.uniform(0.01, 0.99, (50, 6)).astype(np.float32)
    logits = model.decoder(model.latent.from_codes(model.encode(images)))
    assert np.abs(logits).max() > 200 and np.abs(model.encoder(images)).max() > 200
    interpreter = Interpreter(model_path=str(export.litert(model, tmp_path / "m.tflite")))
    log_likelihood, kl = score_by_hand(model, images, noise)
    found = run(interpreter, "score", images=images, noise=noise)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["log_likelihood"], log_likelihood, rtol=1e-4)


@pytest.mark.parametrize(
    "latent, etas",
    [
        (CategoricalLatent(2), [[500, 0], [400, 500], [-500, -90]]),
        pytest.param(CategoricalLatent(2, variables=2), [[-500, -500, 70, 61]], marks=pytest.mark.all),
        (CategoricalLatent(3, variables=2), [[500, 1e4, -1e4, -3e5, 3e5, 0]]),
        (BernoulliLatent(3), [[500, -1e5, 0.5]]),
        pytest.param(GaussianLatent(2), [[0, 3, 500, -500]], marks=pytest.mark.all),
    ],
    ids=["pairs", "two pairs", "categories", "bits", "gaussian"],
)
def test_the_kl_of_extreme_logits_of_every_kind(latent, etas, tmp_path):
    """An encoder that gives these eta for the images whose only pixel is the first, the second and so on: the KL in
    closed form, float64."""
    shape = (1, len(etas), 1)
    encoder = networks.dense_encoder(shape, latent.encoder_units, ())
    encoder.layers[-1].set_weights([np.array(etas, np.float32), np.zeros(latent.encoder_units)])
    model = DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, shape, ()))
    etas = np.array(etas, np.float64)
    if isinstance(latent, GaussianLatent):
        mean, scale = etas[:, :2], np.logaddexp(0, etas[:, 2:]) + 1e-6
        expected = (0.5 * (scale**2 + mean**2 - 1) - np.log(scale)).sum(axis=1)
    elif isinstance(latent, BernoulliLatent):
        q = scipy.special.expit(etas)
        expected = (np.log(2) - scipy.special.entr(q) - scipy.special.entr(1 - q)).sum(axis=1)
    else:
        q = scipy.special.softmax(etas.reshape(len(etas), latent.num_variables, -1), axis=-1)
        expected = (np.log(latent.categories) - scipy.special.entr(q).sum(axis=-1)).sum(axis=1)
    interpreter = Interpreter(model_path=str(export.litert(model, tmp_path / "m.tflite")))
    noise = np.random.default_rng(0).uniform(0.01, 0.99, (len(etas), latent.units)).astype(np.float32)
    images = np.eye(len(etas), dtype=np.float32).reshape(-1, *shape)
    found = run(interpreter, "score", images=images, noise=noise)
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.all
@needs_bfloat16
def test_a_model_in_bfloat16(images, tmp_path):
    """LiteRT computes in float32 with the same weights: bits differ only if a logit is about 0."""
    with layers_in("mixed_bfloat16"):
        model = zoo.build("cnn_bvae", images[1].shape[1:], 8)
    interpreter = Interpreter(model_path=str(export.litert(model, tmp_path / "m.tflite")))
    found = run(interpreter, "encode", images=images[1][:200])
    eta = np.asarray(model.encoder(images[1][:200]), np.float32)
    np.testing.assert_allclose(found["logits"], eta, atol=0.02)
    clear = np.abs(eta) > 0.02
    np.testing.assert_array_equal(found["codes"][clear], (eta > 0)[clear])


def test_bad_input_is_taken_for_the_nearest_that_is_good(any_latent, in_float32):
    """NaN for 0. The outputs are those of the clipped input, bit for bit."""
    model, interpreter = any_latent, in_float32
    rng = np.random.default_rng(0)
    values = model.latent.code_values
    images = rng.random((9, *model.image_shape), np.float32)
    noise = rng.uniform(0.01, 0.99, (9, model.latent.units)).astype(np.float32)
    if values is None:
        codes = rng.normal(size=(9, model.latent.code_units)).astype(np.float32)
        codes[0, 0], codes[1, 1] = np.nan, 1e30
        good_codes = np.nan_to_num(codes, nan=0)
    else:
        codes = rng.integers(0, values, (9, model.latent.code_units)).astype(np.int32)
        codes[0, 0], codes[1, 1], codes[2, 0] = -7, values, 2**31 - 1
        good_codes = np.clip(codes, 0, values - 1)
    for place, value in enumerate([np.nan, np.inf, -np.inf, 255, -1, 1.001, -1e-9]):
        images[place, 1, 2, 1] = value
        noise[place, 1] = value
    good_images = np.clip(np.nan_to_num(images, nan=0), 0, 1)
    good_noise = np.clip(np.nan_to_num(noise, nan=0), 2.0**-24, 1 - 2.0**-24).astype(np.float32)
    for signature, bad, good in (
        ("encode", {"images": images}, {"images": good_images}),
        ("reconstruct", {"images": images}, {"images": good_images}),
        ("score", {"images": images, "noise": noise}, {"images": good_images, "noise": good_noise}),
        ("generate", {"noise": noise}, {"noise": good_noise}),
        ("decode", {"codes": codes}, {"codes": good_codes}),
    ):
        found, expected = run(interpreter, signature, **bad), run(interpreter, signature, **good)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{signature} {key}")
            assert np.isfinite(value[3:]).all()


# --- What is refused.


@pytest.mark.all
def test_a_file_that_does_not_work_is_not_kept(tmp_path):
    """Weights that are not finite; the file that is there stays."""
    model = tiny(BernoulliLatent(2))
    path = tmp_path / "m.tflite"
    path.write_text("kept")
    model.decoder.weights[0].assign(np.full(model.decoder.weights[0].shape, np.nan))
    with pytest.raises(RuntimeError, match="not finite"):
        export.litert(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.tflite"] and path.read_text() == "kept"


@keras.saving.register_keras_serializable("test_litert")
class InverseErf(keras.layers.Layer):
    """An operation that LiteRT does not have."""

    def call(self, inputs):
        return tf.math.erfinv(inputs)


def test_what_builtins_cannot_express(tmp_path):
    encoder = keras.Sequential([keras.Input((3, 5, 2)), keras.layers.Flatten(), InverseErf(), keras.layers.Dense(2)])
    model = DiscreteVAE(encoder, BernoulliLatent(2), networks.dense_decoder(2, (3, 5, 2), (4,)))
    with pytest.raises(ValueError, match="built-in operations cannot express this model") as error:
        export.litert(model, tmp_path / "m.tflite")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
