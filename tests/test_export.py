"""export.saved_model: what a program without tf_isvae finds, seeds a row, versions that appear whole, cards."""

import hashlib
import importlib.util
import io
import json
import pickle
import shlex
import zipfile
from pathlib import Path

import keras
import markdown_it
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from helpers import ROOT, needs_bfloat16, one_line
from PIL import Image

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    datasets,
    estimators,
    export,
    likelihoods,
    networks,
    training,
    zoo,
)
from tf_isvae.export import formats, picture, serving, signatures
from tf_isvae.export.versions import new_version
from tf_isvae.precision import in_precision, layers_in

# DESIGN of the signatures, by hand: name -> (inputs, outputs) of (dtype, shape after the batch).
SEED = ("int32", [2])


def table(shape, width, eta, dtype="int32"):
    images, codes, row = ("float32", list(shape)), (dtype, [width]), ("float32", [])
    encode = ({"images": images}, {"codes": codes, "logits": ("float32", [eta])})
    png = {"encode_png": ({"image_bytes": ("string", []), "invert": ("bool", [])}, encode[1])}
    return {
        **(png if shape[-1] in (1, 3) else {}),
        "encode": encode,
        "serving_default": encode,
        "serve": encode,
        "decode": ({"codes": codes}, {"images": images, "logits": images}),
        "reconstruct": ({"images": images}, {"images": images, "codes": codes}),
        "generate": ({"seed": SEED}, {"images": images, "codes": codes}),
        "score": ({"images": images, "seed": SEED}, {"elbo": row, "log_likelihood": row, "kl": row}),
    }


def widened(model, factor=8.0):
    """Weights large enough that codes and images differ, and no logit lies close to 0."""
    for variable in model.weights:
        if "kernel" in variable.path:
            variable.assign(variable * factor)
    return model


def dense(latent, shape=(4, 3, 2), **kwargs):
    keras.utils.set_random_seed(1)
    encoder = networks.dense_encoder(shape, latent.encoder_units, (16,))
    return widened(DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, shape, (16,)), **kwargs), 2.0)


def build_bfloat16():
    with layers_in("mixed_bfloat16"):
        return dense(BernoulliLatent(6))


MODELS = {
    "bernoulli": (lambda: dense(BernoulliLatent(7)), table((4, 3, 2), 7, 7)),
    "categorical": (lambda: dense(CategoricalLatent(5, variables=3)), table((4, 3, 2), 3, 15)),
    "gaussian": (
        lambda: dense(GaussianLatent(4), likelihood=likelihoods.Gaussian(0.5)),
        table((4, 3, 2), 4, 8, "float32"),
    ),
    "bfloat16": (build_bfloat16, table((4, 3, 2), 6, 6)),
    "conv": (lambda: widened(zoo.build("cnn_cvae", (9, 7, 3), 5, likelihood="Bernoulli")), table((9, 7, 3), 1, 5)),
    "fc": (lambda: widened(zoo.build("fc_bvae", (28, 28, 1), 50)), table((28, 28, 1), 50, 50)),
}
BATCHES = (1, 3, 50)


def inputs_for(model, rows=BATCHES[-1]):
    rng = np.random.default_rng(0)
    if model.latent.code_values is None:
        codes = rng.normal(size=(rows, model.latent.code_units)).astype(np.float32)
    else:
        codes = rng.integers(0, model.latent.code_values, (rows, model.latent.code_units), np.int32)
    return {
        "images": rng.random((rows, *model.image_shape), np.float32),
        "codes": codes,
        "seed": rng.integers(-(2**31), 2**31, (rows, 2)).astype(np.int32),
        "image_bytes": np.array([png(rng.integers(0, 256, (11, 8, 3), np.uint8)) for _ in range(rows)]),
        "invert": np.arange(rows) % 2 == 1,
    }


def png(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory, fresh_python):
    """Every model exported, and what one process that cannot import tf_isvae found in all of them."""
    folder = tmp_path_factory.mktemp("served")
    models = {}
    for name, (build, _) in MODELS.items():
        models[name] = build()
        assert export.saved_model(models[name], folder / name) == folder / name / "1"
        np.savez(folder / f"{name}_inputs.npz", **inputs_for(models[name]))
    program = "tests/programs/run_saved_models.py"
    done = fresh_python(program, folder, json.dumps([*MODELS]), json.dumps(BATCHES), environment={"PYTHONPATH": None})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gradient" not in done.stderr, done.stderr  # TensorFlow warned of gradients that are not saved
    found = json.loads(done.stdout)
    outputs = {name: dict(np.load(folder / f"{name}_outputs.npz")) for name in MODELS}
    return models, folder, found, outputs


each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_signatures_are_those_of_the_table(served, name):
    """Names, dtypes and shapes; the batch is free everywhere; REST keeps names of two outputs and more only."""
    expected = {
        key: [{k: [dtype, [None, *shape]] for k, (dtype, shape) in side.items()} for side in sides]
        for key, sides in MODELS[name][1].items()
    }
    assert served[2][name] == expected
    assert all(len(outputs) >= 2 for _, outputs in served[2][name].values())


@each_model
def test_cards_say_what_is_computed_in(served, name):
    assert json.loads((served[1] / name / "metadata.json").read_text())["model"]["precision"] == "float32"


@pytest.mark.all
@needs_bfloat16
def test_a_model_trained_in_bfloat16_is_exported_in_float32(served, tmp_path):
    """The file computes what a model built in float32 with the same weights computes, bit for bit; unless asked."""
    models, folder, _, _ = served
    trained, same_weights = models["bfloat16"], dense(BernoulliLatent(6))
    same_weights.set_weights(trained.get_weights())
    assert trained.encoder.layers[-1].compute_dtype == "bfloat16"
    kept = export.saved_model(trained, tmp_path / "kept", precision=None)
    assert json.loads((tmp_path / "kept" / "metadata.json").read_text())["model"]["precision"] == "mixed_bfloat16"
    differ = 0
    for key, graph in signatures.signatures(same_weights).items():
        given = {spec: tf.constant(inputs_for(trained)[spec]) for spec in signatures.inputs(graph)}
        expected = graph(*given.values())
        for path in (folder / "bfloat16" / "1", kept):
            found = tf.saved_model.load(str(path)).signatures[key](**given)
            equal = [np.array_equal(found[name], expected[name]) for name in expected]
            assert path == kept or all(equal)
            differ += not all(equal)
    assert differ


@each_model
def test_served_results_are_the_models(served, name):
    """Codes exactly; images and logits as far as another batch size and fused operations let them."""
    models, _, _, outputs = served
    model, given, found = models[name], inputs_for(models[name]), outputs[name]
    model = in_precision(model, "float32")
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    for n in BATCHES:
        images, codes = given["images"][:n], given["codes"][:n]
        same = np.testing.assert_array_equal
        if model.latent.code_values is None:
            same = lambda a, b: np.testing.assert_allclose(a, b, **tolerance)  # noqa: E731
        for key in ("encode", "serving_default", "reconstruct"):
            same(found[f"{key}/{n}/codes"], model.encode(images))
        eta = np.asarray(model.encoder(images), np.float32)
        np.testing.assert_allclose(found[f"encode/{n}/logits"], eta, **tolerance)
        np.testing.assert_allclose(found[f"decode/{n}/images"], model.decode(codes), **tolerance)
        output = model.decoder(model.latent.from_codes(codes))
        np.testing.assert_allclose(found[f"decode/{n}/logits"], np.asarray(output, np.float32), **tolerance)
        for key in ("reconstruct", "generate"):
            images_of_codes = model.decode(found[f"{key}/{n}/codes"])
            np.testing.assert_allclose(found[f"{key}/{n}/images"], images_of_codes, **tolerance)
        elbo, kl = found[f"score/{n}/elbo"], found[f"score/{n}/kl"]
        np.testing.assert_allclose(kl, model.latent.kl(model.latent.posterior(eta)), **tolerance)
        np.testing.assert_allclose(elbo, found[f"score/{n}/log_likelihood"] - kl, rtol=1e-5, atol=1e-4)
        assert found[f"score/{n}/elbo"].shape == (n,) and np.isfinite(elbo).all()


@pytest.mark.parametrize("name", ["fc", "conv"])
def test_encode_png_is_encode_of_what_a_folder_holds(served, name, tmp_path):
    """Grey, colour and transparent PNGs and a JPEG, of other sizes: as datasets.load reads the same files."""
    models, folder, _, _ = served
    rng, model = np.random.default_rng(1), models[name]
    shapes = ((28, 28), (9, 7, 3), (40, 31, 4), (16, 50))
    contents = [png(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]
    contents.append(png(rng.integers(0, 256, (40, 30, 3), np.uint8), "JPEG"))
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.png").write_bytes(content)
    height, width, channels = model.image_shape
    data = datasets.load(tmp_path, "train", batch_size=9, image_size=(height, width), channels=channels)
    images = next(iter(data)).numpy()
    encode_png = tf.saved_model.load(str(folder / name / "1")).signatures["encode_png"]
    for inverted in (False, True):
        found = encode_png(image_bytes=tf.constant(contents), invert=tf.fill((len(contents),), inverted))
        given = 1 - images if inverted else images
        np.testing.assert_allclose(found["logits"], model.encoder(given), rtol=1e-3, atol=2e-3)
        np.testing.assert_array_equal(found["codes"], model.encode(given))
    assert not np.allclose(model.encoder(images), model.encoder(1 - images), atol=0.1)
    for bad in (b"", b"GIF89a", contents[0][:60]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            encode_png(image_bytes=tf.constant([contents[0], bad]), invert=tf.constant([False, False]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image_bytes have 5 rows and invert 1"):
        encode_png(image_bytes=tf.constant(contents), invert=tf.constant([True]))


@each_model
def test_keras_finds_the_endpoint(served, name):
    """keras.layers.TFSMLayer calls "serve" if it is not told another; its weights are those of the encoder."""
    models, folder, _, _ = served
    model, images = models[name], inputs_for(models[name], 3)["images"]
    inputs = keras.Input(model.image_shape)
    layer = keras.layers.TFSMLayer(str(folder / name / "1"))
    codes = keras.Model(inputs, layer(inputs)).predict(images, verbose=0)["codes"]
    np.testing.assert_allclose(codes, in_precision(model, "float32").encode(images), rtol=1e-4, atol=1e-4)
    assert sum(int(np.prod(weight.shape)) for weight in layer.weights) == model.encoder.count_params()


def test_a_score_has_a_gradient(served):
    """Of the operations themselves, with respect to an image, against differences of the score (float32: to 1%)."""
    models, folder, _, _ = served
    given = inputs_for(models["bernoulli"], 1)
    model = tf.saved_model.load(str(folder / "bernoulli" / "1"))
    images, seed = tf.constant(0.25 + 0.5 * given["images"]), tf.constant(given["seed"])

    def score(images):
        return tf.reduce_sum(model.signatures["score"](images=images, seed=seed)["log_likelihood"])

    with tf.GradientTape() as tape:
        tape.watch(images)
        value = score(images)
    direction = np.random.default_rng(0).choice([-1.0, 1.0], images.shape).astype(np.float32)
    difference = (score(images + 0.01 * direction) - score(images - 0.01 * direction)) / 0.02
    assert float(tf.reduce_sum(tape.gradient(value, images) * direction)) == pytest.approx(float(difference), rel=0.01)


@each_model
def test_a_rows_seed_alone_determines_its_sample(served, name):
    """The same row gives the same codes in any batch and at any place in it; other rows other codes."""
    models, folder, _, outputs = served
    codes = outputs[name][f"generate/{BATCHES[-1]}/codes"]
    # The processor's vector instructions and the rest of a row may round a logarithm differently.
    tolerance = 1e-6 if name == "gaussian" else 0
    for n in BATCHES:
        np.testing.assert_allclose(outputs[name][f"generate/{n}/codes"], codes[:n], rtol=tolerance, atol=tolerance)
    generate = tf.saved_model.load(str(folder / name / "1")).signatures["generate"]
    seed = inputs_for(models[name])["seed"]
    reversed_codes = generate(seed=tf.constant(seed[::-1].copy()))["codes"]
    np.testing.assert_allclose(reversed_codes, codes[::-1], rtol=tolerance, atol=tolerance)
    if name == "fc":  # 2^50 codes: equal ones among 50 have probability 1e-12
        assert len(np.unique(codes, axis=0)) == len(codes)


def ask_as_a_server(version, signature, **given):
    """The outputs by a session, whatever the shapes: a server does not compare them with the signature's."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        feeds = {tf.compat.v1.placeholder(value.dtype): value for value in given.values()}
        names = {f"{signature}_{name}:0": tensor for name, tensor in zip(given, feeds, strict=True)}
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version), input_map=names)
        outputs = meta_graph.signature_def[signature].outputs
        return session.run({name: tensor.name for name, tensor in outputs.items()}, feeds)


def changed(values, value, place=(2, 1)):
    """A copy with one value changed, in a row of which nothing else is special."""
    values = values.copy()
    values[place] = value
    return values


BAD_IMAGES = {"nan": np.nan, "inf": np.inf, "above": np.float32(1 + 2**-23), "below": -1e-9}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("signature", ["encode", "serving_default", "reconstruct", "score"])
def test_images_outside_the_range_are_refused(served, signature, bad):
    """One pixel among thousands, at the first place, the last or between."""
    models, folder, _, _ = served
    loaded = tf.saved_model.load(str(folder / "fc" / "1")).signatures[signature]
    given = inputs_for(models["fc"])
    for place in ((0, 0, 0, 0), (7, 13, 21, 0), (-1, -1, -1, -1)):
        feed = {name: tf.constant(given[name]) for name in loaded.structured_input_signature[1]}
        assert loaded(**feed)
        feed["images"] = tf.constant(changed(given["images"], BAD_IMAGES[bad], place))
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"images have values from .*; they must be in \[0, 1\]"
        ):
            loaded(**feed)


@pytest.mark.parametrize(
    "name, bad, accepted",
    [
        ("bernoulli", (-1, 2), "from 0 to 1"),
        ("categorical", (-1, 5), "from 0 to 4"),
        ("gaussian", (np.nan, np.inf, -np.inf), "finite numbers"),
    ],
)
def test_codes_outside_the_range_are_refused(served, name, bad, accepted):
    models, folder, _, _ = served
    decode = tf.saved_model.load(str(folder / name / "1")).signatures["decode"]
    codes = inputs_for(models[name])["codes"]
    for value in bad:
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"codes have values from .*; they must be {accepted}"):
            decode(codes=tf.constant(changed(codes, value)))


def test_other_shapes_are_refused(served):
    """Also those of as many values, which a reshape would take."""
    models, folder, _, _ = served
    version = folder / "bernoulli" / "1"
    good = inputs_for(models["bernoulli"], 4)
    np.testing.assert_array_equal(
        ask_as_a_server(version, "encode", images=good["images"])["codes"], models["bernoulli"].encode(good["images"])
    )
    for signature, name, shape in (
        ("encode", "images", (4, 3, 4, 2)),
        ("encode", "images", (4, 12, 2)),
        ("reconstruct", "images", (96,)),
        ("decode", "codes", (4, 8)),
        ("decode", "codes", (7,)),
        ("generate", "seed", (2, 4)),
        ("generate", "seed", ()),
    ):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=rf"{name}.* \[.*\] is not compatible with expected shape"
        ):
            ask_as_a_server(version, signature, **{name: np.zeros(shape, good[name].dtype)})
    with pytest.raises(tf.errors.InvalidArgumentError, match="images have 4 rows and seed 3"):
        ask_as_a_server(version, "score", images=good["images"], seed=good["seed"][:3])


@each_model
def test_no_rows_give_no_rows(served, name):
    models, folder, found, _ = served
    for key, signature in tf.saved_model.load(str(folder / name / "1")).signatures.items():
        given = {
            name: tf.zeros((0, *spec.shape[1:]), spec.dtype)
            for name, spec in signature.structured_input_signature[1].items()
        }
        outputs = {name: [value.dtype.name, [None, *value.shape[1:]]] for name, value in signature(**given).items()}
        assert outputs == found[name][key][1]
        assert all(value.shape[0] == 0 for value in signature(**given).values())


@each_model
def test_weights_are_stored_once(served, name):
    models, folder, _, _ = served
    parameters = models[name].encoder.count_params() + models[name].decoder.count_params()
    version = folder / name / "1"
    variables = sum(path.stat().st_size for path in (version / "variables").iterdir())
    # The index names the tensors, about 100 bytes each.
    assert variables <= 1.05 * 4 * parameters + 2000
    if name == "fc":
        total = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
        assert total <= 1.05 * 4 * parameters + (version / "saved_model.pb").stat().st_size
        assert (version / "saved_model.pb").stat().st_size < 300_000


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_nothing_of_this_machine_is_inside(served, name):
    folder = served[1] / name
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(ROOT).encode() not in content and str(folder).encode() not in content, path


# --- Random numbers.


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_against_the_known_answers_of_random123(counter, key, expected):
    pair = lambda values: tuple(tf.constant(value, tf.uint32) for value in values)  # noqa: E731
    assert tuple(int(value) for value in signatures.threefry(pair(key), pair(counter))) == expected


@pytest.mark.parametrize("width", [1, 2, 7])
def test_uniforms(width):
    """Kolmogorov-Smirnov on every column, and independence of neighbours; each test errs with probability 1e-6."""
    seed = np.stack([np.arange(20_000), np.zeros(20_000)], axis=1).astype(np.int32)  # the poorest seeds of all
    values = signatures.uniforms(tf.constant(seed), width).numpy()
    assert values.shape == (20_000, width) and values.min() > 0 and values.max() < 1
    for column in values.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-6
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) * len(column) ** 0.5 < 4.9
    correlations = np.corrcoef(values.T).reshape(width, width)[np.triu_indices(width, 1)]
    assert (np.abs(correlations) * len(values) ** 0.5 < 5.5).all()


@pytest.mark.all
def test_generated_codes_follow_the_prior():
    """10,000 rows against the prior's frequencies or distribution; each comparison errs with probability 1e-6."""
    rows = 10_000
    seed = tf.constant(np.random.default_rng(0).integers(0, 2**31, (rows, 2)), tf.int32)
    for latent in (BernoulliLatent(7), CategoricalLatent(5, variables=3), GaussianLatent(4)):
        graph = signatures.signatures(dense(latent))["generate"]
        codes = graph(seed)["codes"].numpy()
        for column in codes.T:
            if latent.code_values is None:
                pvalue = scipy.stats.kstest(column, "norm").pvalue
            else:
                pvalue = scipy.stats.chisquare(np.bincount(column, minlength=latent.code_values)).pvalue
            assert pvalue > 1e-6


@pytest.mark.parametrize("latent", [BernoulliLatent(3), CategoricalLatent(3, variables=2)], ids=lambda x: x.name)
def test_scores_average_to_the_enumerated_elbo(latent):
    """4,000 seeds for each of 2 images, against sums over every code; error probability 2e-6 (5 standard errors)."""
    model = dense(latent)
    rng = np.random.default_rng(0)
    images = rng.random((2, *model.image_shape), np.float32)
    z = latent.from_codes(latent.all_codes())
    q = latent.posterior(model.encoder(images))
    probability = np.exp(q.log_prob(z[:, None]))
    expected = (probability * model.log_likelihood_of(images)(z[:, None]).numpy()).sum(axis=0)
    np.testing.assert_allclose(probability.sum(axis=0), 1, rtol=1e-5)
    seed = tf.constant(rng.integers(0, 2**31, (8000, 2)), tf.int32)
    found = signatures.signatures(model)["score"](tf.repeat(images, 4000, axis=0), seed)
    samples = found["log_likelihood"].numpy().reshape(2, 4000)
    assert (samples.std(axis=1) > 0).all()
    assert (np.abs(samples.mean(axis=1) - expected) < 5 * samples.std(axis=1) / 4000**0.5).all()


class TFPLatent(BernoulliLatent):
    """Bits whose posterior is TFP's own."""

    def posterior(self, logits):
        bits = tfp.distributions.Bernoulli(logits=tf.cast(logits, tf.float32), dtype=tf.float32)
        return tfp.distributions.Independent(bits, 1)


@pytest.mark.all
def test_a_latent_of_ones_own_is_exported(tmp_path):
    """What needs no samples, in every format; it was refused as a whole."""
    model = dense(TFPLatent(5))
    images = np.random.default_rng(0).random((40, *model.image_shape), np.float32)
    export.to_folder(model, tmp_path / "own", ["litert-float32", "litert-int8"], calibration=images)
    export.saved_model(model, tmp_path / "own")  # with a picture of samples
    loaded = tf.saved_model.load(str(tmp_path / "own" / "2")).signatures
    assert set(loaded) == {"encode", "serving_default", "serve", "decode", "reconstruct"}
    np.testing.assert_array_equal(loaded["encode"](images=tf.constant(images))["codes"], model.encode(images))
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    for name in ("own.tflite", "own_int8.tflite"):
        encode = interpreter.Interpreter(str(tmp_path / "own" / name), num_threads=1).get_signature_runner("encode")
        assert (encode(images=images)["codes"] == model.encode(images)).mean() > 0.9


# --- Versions.


@pytest.fixture(scope="module")
def tiny():
    return dense(BernoulliLatent(2), (2, 2, 1))


@pytest.mark.all
def test_versions_go_up_and_leftovers_go_away(tiny, tmp_path):
    folder = tmp_path / "models" / "tiny"
    for name in ("7", "notes", "10.bak", "unfinished-mine", f"unfinished-{'0' * 32}"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("kept")
    (folder / f".{'a' * 32}.json").write_text("half a card")
    assert export.saved_model(tiny, folder) == folder / "8"
    assert export.saved_model(tiny, str(folder)) == folder / "9"
    kept = {"7", "8", "9", "notes", "10.bak", "unfinished-mine", "README.md", "metadata.json", "picture.png"}
    assert {path.name for path in folder.iterdir()} == kept
    assert json.loads((folder / "metadata.json").read_text())["version"] == 9


def test_an_export_that_fails_leaves_nothing(tiny, tmp_path):
    folder = tmp_path / "models"
    with new_version(folder) as staging:
        # Another export, begun while this one lasts, leaves its directory alone.
        assert export.saved_model(tiny, folder).name == "1" and staging.is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "README.md", "metadata.json", "picture.png"]
    (tmp_path / "file").write_text("kept")
    for wrong in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(OSError):
            export.saved_model(tiny, wrong)
    with pytest.raises(TypeError, match="must be a DiscreteVAE"):
        export.saved_model(tiny.encoder, tmp_path / "other")
    assert not (tmp_path / "other").exists() and (tmp_path / "file").read_text() == "kept"


def test_files_of_others_are_not_overwritten(tiny, tmp_path):
    for name, text in (("README.md", "# My project"), ("metadata.json", "{}"), ("picture.png", "")):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(FileExistsError, match="of another kind; choose another folder"):
            export.saved_model(tiny, folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == text


@pytest.mark.all
def test_two_at_once_and_twenty_killed(tmp_path, apart):
    """Two processes export at once; then 20 are killed at random moments of their writing: whole versions only."""
    codes, at_once, unfinished, names = apart("killed_exports", tmp_path / "models")
    assert codes == [0, 0] and at_once == [*"123456", "README.md", "metadata.json", "picture.png"]
    print(f"{unfinished} of 20 were killed while they wrote")
    assert unfinished >= 3, "hardly any export was killed while it wrote: the test shows nothing"
    versions = [name for name in names if name.isdecimal()]
    assert sorted(map(int, versions)) == list(range(1, len(versions) + 1))
    files = {"fingerprint.pb", "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"}
    if serving.available():
        files.add("assets.extra/tf_serving_warmup_requests")
    for name in versions:
        version = tmp_path / "models" / name
        assert {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()} == files
        reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
        assert all(
            np.isfinite(reader.get_tensor(key)).all() for key in reader.get_variable_to_shape_map() if "/V" in key
        )
    tf.saved_model.load(str(tmp_path / "models" / versions[-1]))
    # Only the last one killed may have left something behind: an unfinished version, or a file of the card.
    assert len(set(names) - set(versions) - {"README.md", "metadata.json", "picture.png"}) <= 1


# --- Cards.


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory as training writes it, with a model of 8x8 images."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    folder.mkdir()
    zoo.build("fc_bvae", (8, 8, 1), 4, estimator=estimators.DisARM(), seed=0).save(folder / "model.keras")
    config = {
        "model": "fc_bvae",
        "dataset": "/home/somebody/my digits.npz",
        "recipe": "best",
        "latent_dim": 4,
        "image_size": [8, 8],
        "binarize": None,
        "run_dir": "/home/somebody/runs",
        "data_dir": "/home/somebody/data",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"val_loss": 12.25, "epochs": 3}))
    return folder


def test_the_card(run_dir, tmp_path):
    source = training.read_trained(run_dir)
    folder = tmp_path / "digits"
    version = export.saved_model(source.model, folder, source.config, source.metrics)
    card = json.loads((folder / "metadata.json").read_text())
    assert (card["name"], card["version"], card["metrics"]) == ("digits", 1, {"val_loss": 12.25, "epochs": 3})
    given = "python scripts/train.py --model fc_bvae --dataset 'my digits.npz' --recipe best --latent-dim 4 "
    # Then what settings meant that its config.json is too old to have.
    assert card["training"]["command"].startswith(given) and card["training"]["command"].endswith("--image-size 8x8")
    parameters = 64 * 1024 + 1024 + 1024 * 4 + 4 + 4 * 1024 + 1024 + 1024 * 64 + 64
    assert card["model"]["parameters"] == parameters
    assert card["model"]["estimator"] == {"class": "DisARM", "config": {"num_pairs": 1}}
    assert card["signatures"]["score"]["inputs"] == {"images": "float32 (n, 8, 8, 1)", "seed": "int32 (n, 2)"}
    assert card["packages"]["tensorflow"] == tf.__version__
    written = {str(path.relative_to(version)): path for path in version.rglob("*") if path.is_file()}
    assert card["files"].keys() == written.keys()
    text = (folder / "README.md").read_text()
    for name, path in written.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert card["files"][name] == {"bytes": path.stat().st_size, "sha256": digest}
        assert f"| 1/{name} | {path.stat().st_size} | {digest} |" in text
    assert (
        "# digits, version 1" in text
        and "| val_loss | 12.25 | test | -ELBO, nats an image |" in text
        and card["training"]["command"] in text
    )
    assert "The SavedModel refuses NaN, values outside the range" in text and "LiteRT has no assertions" in text
    assert "somebody" not in text + json.dumps(card)


@pytest.mark.all
@pytest.mark.parametrize(
    "dataset, shown",
    [
        ("emnist/letters:3.1.0", "emnist/letters:3.1.0"),
        ("../of mine/digits.npz", "digits.npz"),
        ("a\n\n```\n# Not a heading\n", "a ``` # Not a heading"),
        ("``| cell |\n| --- | <b>", "``| cell | | --- | <b>"),
    ],
)
def test_a_name_cannot_leave_its_place_on_the_card(tiny, tmp_path, dataset, shown):
    """The card as a Markdown reader of others' (markdown-it, with tables as on GitHub) finds it."""
    folder = tmp_path / "# a `folder` | of *mine*"
    config = {"model": "fc_bvae", "dataset": dataset, "recipe": "best"}
    metrics = {"val_loss": 1.5, "test_ln_p_kind": "`d | e\n\n# f", "of one's own": 3}
    export.saved_model(tiny, folder, config, metrics, warmup=False)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse((folder / "README.md").read_text())
    headings = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(part.content for part in heading.children) for heading in headings]
    sections = ["Model", "Training", "Figures", "Use", "Signatures", "Files", "Licence", "Packages"]
    assert texts == ["# a `folder` | of *mine*, version 1", *sections]
    block, *snippets = [token.content for token in tokens if token.type == "fence"]
    assert len(snippets) == 2  # there are no files in other formats
    (name,) = [option for option in shlex.split(block) if option in (dataset, Path(dataset).name)]
    assert block == f"python scripts/train.py --model fc_bvae --dataset {shlex.quote(name)} --recipe best\n"
    spans = [part.content for token in tokens for part in token.children or () if part.type == "code_inline"]
    assert shown in spans
    rows, cells = [], []
    for i, token in enumerate(tokens):
        if token.type in ("th_open", "td_open"):
            cells.append("".join(part.content for part in tokens[i + 1].children))
        elif token.type == "tr_close":
            rows.append(tuple(cells))
            cells = []
    assert ("test_ln_p_kind", "`d | e # f", "test", "which of the two") in rows and ("precision", "float32") in rows
    assert ("val_loss", "1.5", "test", "-ELBO, nats an image") in rows
    assert {len(row) for row in rows} == {2, 3, 4} and "one's own" not in {row[0] for row in rows}


@pytest.mark.all
def test_the_picture_of_a_card(tmp_path):
    """Images and what the model makes of them, enlarged by a whole factor, in rows; else samples of the model."""
    model = dense(BernoulliLatent(2), (6, 5, 3))
    graphs = signatures.signatures(model)
    images = np.random.default_rng(0).random((12, 6, 5, 3), np.float32)
    content, shows, ground = picture.draw(model, graphs, images)
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape == (2 * 64 - 4, 10 * 54 - 4, 3) and "codes decoded" in shows and ground is None
    decoded = model.decode(model.encode(images[:10]))
    for row, shown in enumerate((images[:10], decoded)):
        for column in (0, 9):
            tile = pixels[64 * row : 64 * row + 60, 54 * column : 54 * column + 50]
            np.testing.assert_allclose(tile[::10, ::10] / 255, shown[column], atol=0.6 / 255)
            assert (tile == tile[::10, ::10].repeat(10, 0).repeat(10, 1)).all()
    samples, shows, _ = picture.draw(model, graphs, None)
    assert "Samples" in shows and np.asarray(Image.open(io.BytesIO(samples))).shape == (60, 10 * 54 - 4, 3)
    digit = np.zeros((1, 5, 5, 1))
    digit[0, 1:4, 2] = 1
    assert (picture.ground(digit), picture.ground(1 - digit)) == ("light on dark", "dark on light")
    export.saved_model(
        model, tmp_path / "dark", examples=images * 0.01 + np.pad(np.ones((4, 3, 3)), [(1, 1), (1, 1), (0, 0)]) * 0.9
    )
    (line,) = [line for line in (tmp_path / "dark" / "README.md").read_text().splitlines() if "Expects" in line]
    assert line == "Expects images of shape (6, 5, 3) with values in [0, 1], light on dark, as in this picture."


def test_a_row_is_all_that_a_format_takes(run_dir, tmp_path, script, monkeypatch):
    """The script has its option, and the card its files."""

    def write(model, path):
        path.write_text(" ".join(weight.path for weight in model.weights))

    monkeypatch.setitem(formats.FORMATS, "text-names", formats.Format("_names.txt", write))
    assert script("export.py", run_dir, "--to", "out", "--text", "names")[0] == 0
    content = (tmp_path / "out" / "out_names.txt").read_bytes()
    assert b"kernel" in content
    card = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert card["text"] == {"out_names.txt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert f"| out_names.txt | {len(content)} |" in (tmp_path / "out" / "README.md").read_text()


def test_what_to_folder_refuses(tiny, tmp_path):
    images = np.zeros((2, 2, 2, 1), np.float32)
    for given, options, words in (
        (["onnx"], {}, "format is 'onnx'; it must be one of keras, litert-float32"),
        (["litert-int8"], {}, "calibration images are missing; they must be given for litert-int8"),
        (["keras"], {"calibration": images}, "calibration images are given; they must be given for litert-int8"),
    ):
        with pytest.raises(ValueError) as error:
            export.to_folder(tiny, tmp_path / "out", given, **options)
        one_line(error.value, words)
    assert not (tmp_path / "out").exists()


# --- What is exported: files that are damaged, altered or of another kind.


def rewrite(source, target, **members):
    """A copy of a .keras file with some members replaced, or left out (None)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        contents = {name: old.read(name) for name in old.namelist()}
        for name, content in {**contents, **members}.items():
            if content is not None:
                new.writestr(name, content)
    return target


def test_a_run_and_a_file_give_the_same_model(run_dir):
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    one, other = training.read_trained(run_dir), training.read_trained(str(run_dir / "model.keras"))
    np.testing.assert_array_equal(one.model.encode(images), other.model.encode(images))
    assert one.config["model"] == "fc_bvae" and (other.config, other.metrics) == (None, None)


def test_what_is_missing(tmp_path, run_dir):
    for path in (tmp_path / "none.keras", tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            training.read_trained(path)
        one_line(error, str(path), "a run")
    bad = tmp_path / "run"
    bad.mkdir()
    (bad / "model.keras").write_bytes((run_dir / "model.keras").read_bytes())
    for text in ("{", "[1]"):
        (bad / "config.json").write_text(text)
        with pytest.raises(ValueError) as error:
            training.read_trained(bad)
        one_line(error, "config.json")


def test_truncated_anywhere(run_dir, tmp_path):
    content = (run_dir / "model.keras").read_bytes()
    path = tmp_path / "model.keras"
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError) as error:
            training.read_trained(path)
        one_line(error, str(path), "damaged")


def test_altered_bytes(run_dir, tmp_path):
    """One flipped byte at 40 places: refused with one line, or without any effect on the model."""
    content = (run_dir / "model.keras").read_bytes()
    weights = training.read_trained(run_dir).model.get_weights()
    path = tmp_path / "model.keras"
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 40):
        altered = bytearray(content)
        altered[place] ^= 0xFF
        path.write_bytes(altered)
        try:
            found = training.read_trained(path).model.get_weights()
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert all((a == b).all() for a, b in zip(weights, found, strict=True))
    assert refused > 30


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_other_kinds(run_dir, tmp_path):
    model = run_dir / "model.keras"
    config = zipfile.ZipFile(model).read("config.json").decode()
    lambda_layer = config.replace('"class_name": "Flatten"', '"class_name": "Lambda"', 1)
    assert lambda_layer != config
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    (tmp_path / "pickle.keras").write_bytes(bomb)
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    cases = {
        "other.keras": "DiscreteVAE",
        "pickle.keras": "damaged, or of another kind",
        "model.h5": "not a .keras file",
        rewrite(model, tmp_path / "outside.keras", **{"../outside": "x"}): "../outside",
        rewrite(model, tmp_path / "weights.keras", **{"model.weights.h5": bomb}): "damaged, or of another kind",
        rewrite(model, tmp_path / "without.keras", **{"model.weights.h5": None}): "DiscreteVAE",
        rewrite(model, tmp_path / "lambda.keras", **{"config.json": lambda_layer}): "Lambda",
        rewrite(model, tmp_path / "json.keras", **{"config.json": "{"}): "damaged",
        rewrite(model, tmp_path / "list.keras", **{"config.json": "[]"}): "something else",
        rewrite(
            model,
            tmp_path / "sizes.keras",
            **{"config.json": config.replace('"units": 4', '"units": 5')},
        ): "cannot be loaded",
        rewrite(
            model,
            tmp_path / "module.keras",
            **{"config.json": config.replace('"module": "keras.layers"', '"module": "os"')},
        ): "cannot be loaded",
    }
    for name, word in cases.items():
        with pytest.raises(ValueError) as error:
            training.read_trained(tmp_path / name)
        one_line(error, str(tmp_path / name), word)
    assert not (tmp_path / "exploded").exists() and not (tmp_path.parent / "outside").exists()


# --- The script.


@pytest.mark.all
def test_the_script(script, run_dir, tmp_path):
    status, output, errors = script("export.py", run_dir)
    folder = tmp_path / "exported_models" / "a run"
    assert (status, errors) == (0, "")
    names = [str((folder / name).relative_to(tmp_path)) for name in ("1", "README.md", "metadata.json", "picture.png")]
    assert output.splitlines() == names
    again = script("export.py", run_dir / "model.keras", "--to", folder.relative_to(tmp_path))
    assert again == (0, output.replace("/1", "/2"), "")
    assert tf.saved_model.load(str(folder / "2")).signatures["encode"] is not None


@pytest.mark.all
@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed")
def test_the_script_with_litert(script, run_dir, tmp_path):
    arguments = [run_dir / "model.keras", "--to", "out", "--litert", "float32", "int8", "--calibration", "digits"]
    status, output, errors = script("export.py", *arguments)
    assert (status, errors) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "1",
        "README.md",
        "metadata.json",
        "picture.png",
        "out.tflite",
        "out_int8.tflite",
    }
    card = json.loads((tmp_path / "out" / "metadata.json").read_text())
    for name in ("out.tflite", "out_int8.tflite"):
        digest = hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        assert card["litert"][name]["sha256"] == digest
