"""Wrong calls of everything public: one line with what was given and what is accepted, and no file written."""

import dataclasses
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import one_line
from PIL import Image

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    callbacks,
    datasets,
    estimators,
    evaluation,
    export,
    likelihoods,
    networks,
    plotting,
    training,
    zoo,
)
from tf_isvae.training.settings import Flag, Integer, Kind, OneOf, Positive, Share, Size

SHAPE = (2, 2, 1)
GOOD = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype(np.float32)
RAGGED = [[0.5], [0.5, 0.5]]
NOT_COUNTS = (0, -1, True, 1.5, "3", None)


def tiny(latent, **options):
    encoder = networks.dense_encoder(SHAPE, latent.encoder_units, ())
    return DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, SHAPE, ()), **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What the calls are made with: models, and files that are only read."""
    files = tmp_path_factory.mktemp("files")
    model, real = tiny(BernoulliLatent(3)), tiny(GaussianLatent(2))
    model.compile(keras.optimizers.SGD(0.1))
    (files / "empty").mkdir()
    (files / "run").mkdir()
    (files / "run" / "model.keras").write_bytes(b"")
    (files / "run" / "config.json").write_text("{")
    (files / "project").mkdir()
    (files / "project" / "README.md").write_text("kept")
    (files / "notes.txt").write_text("kept")
    model.save(files / "model.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(files / "other.keras")
    for name, arrays in {
        "good": {"images": np.zeros((5, 8, 8), np.uint8)},
        "two": {"first": GOOD, "second": GOOD},
        "labels": {"images": GOOD, "labels": np.arange(3)},
        "grey": {"images": np.full((2, 3, 3), 255.0)},
    }.items():
        np.savez(files / f"{name}.npz", **arrays)
    (files / "broken.npz").write_bytes((files / "good.npz").read_bytes()[:100])
    for name, shapes in {"sizes": [(2, 3), (4, 5)], "colours": [(2, 3), (2, 3, 3)]}.items():
        (files / name).mkdir()
        for i, shape in enumerate(shapes):
            Image.fromarray(np.zeros(shape, np.uint8)).save(files / name / f"{i}.png")
    return types.SimpleNamespace(model=model, real=real, files=files)


def contents(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in Path(folder).rglob("*")}


def frozen(model, function):
    model.encoder.trainable = False
    try:
        function(model)
    finally:
        model.encoder.trainable = True


# --- Public functions. (function, what the text says was given, what it says is accepted or to be done)


def counts(make, name, minimum=1, wrong=NOT_COUNTS):
    """`make` takes only integers of at least `minimum`."""
    values = [minimum - 1 if value == 0 and value is not False else value for value in wrong]
    return [
        (lambda my, value=value: make(my, value), f"{name} is {value!r}", f"integer of at least {minimum}")
        for value in values
    ]


IMAGES = {  # kind: (images, what was given, what is accepted)
    "no channel": (GOOD[..., 0], "(4, 2, 2)", "(n, 2, 2, 1)"),
    "other size": (np.zeros((4, 3, 2, 1)), "(4, 3, 2, 1)", "(n, 2, 2, 1)"),
    "one image": (GOOD[0], "(2, 2, 1)", "(n, 2, 2, 1)"),
    "empty": (GOOD[:0], "(0, 2, 2, 1)", "at least 1"),
    "nan": (np.where(np.arange(4)[:, None, None, None] == 0, np.nan, GOOD), "NaN", "[0, 1]"),
    "infinite": (GOOD + np.inf, "infinite", "[0, 1]"),
    "0 to 255": (np.uint8(255 * GOOD), "from", "[0, 1]: divide by 255"),
    "negative": (GOOD - 0.5, "from -", "[0, 1]"),
    "text": (np.full((4, *SHAPE), "a"), "dtype <U1", "numbers in [0, 1]"),
    "objects": (np.full((4, *SHAPE), None), "dtype object", "numbers in [0, 1]"),
    "complex": (GOOD + 1j, "complex", "numbers in [0, 1]"),
    "nothing": (None, "", "in [0, 1]"),
    "ragged": (RAGGED, "list of parts of different lengths", "must be an array (n,"),
}
METHODS = ("encode", "reconstruct", "elbo", "log_likelihood", "fit", "evaluate")
CODES = {
    "too large": (np.full((2, 3), 2), "from 2 to 2", "0 to 1"),
    "negative": (np.full((2, 3), -1), "from -1 to -1", "0 to 1"),
    "one code": (np.zeros(3, int), "(3,)", "(n, 3)"),
    "too wide": (np.zeros((2, 4), int), "(2, 4)", "(n, 3)"),
    "empty": (np.zeros((0, 3), int), "(0, 3)", "(n, 3)"),
    "real": (np.zeros((2, 3)), "float64", "integers from 0 to 1"),
    "text": (np.full((2, 3), "a"), "dtype <U1", "integers from 0 to 1"),
    "ragged": (RAGGED, "different lengths", "(n, 3)"),
}


def encoder(units, shape=SHAPE):
    return networks.dense_encoder(shape, units, ())


def decoder(units, shape=SHAPE):
    return networks.dense_decoder(units, shape, ())


def two_inputs():
    inputs = [keras.Input(SHAPE), keras.Input(SHAPE)]
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs[0] + inputs[1])))


def batches(images):
    return tf.data.Dataset.from_tensor_slices(images).batch(2)


def parts(make, *words):
    return (lambda my: DiscreteVAE(*make()), *words)


def load(source, **options):
    """datasets.load of an array, or of a file by its name."""

    def call(my):
        return datasets.load(
            my.files / source if isinstance(source, str) else source, **{"batch_size": 2, "data_dir": my.tmp, **options}
        )

    return call


def settings(**changes):
    def call(my):
        small = {"dataset": "digits", "image_size": (8, 8), "epochs": 1, "run_dir": str(my.tmp / "run")}
        return training.train(training.Config(**{**small, **changes}))

    return call


def wrong_settings(text=False):
    """(name, value, what is accepted) for each setting of a run; `text`: values as a command line can give them."""
    for field in dataclasses.fields(training.Config):
        kind, values = field.metadata["kind"], []
        if isinstance(kind, Integer):
            values, accepted = [kind.minimum - 1, True, 1.5, "x"], f"integer of at least {kind.minimum}"
            values += [] if kind.below is None else [kind.below]
        elif isinstance(kind, Positive):
            values, accepted = [0, -1.0, True, "fast", float("nan"), float("inf")], "must be a positive number"
        elif isinstance(kind, OneOf):
            values, accepted = ["neither", 7, [kind.choices[0]]], f"one of {', '.join(map(str, kind.choices))}"
        elif isinstance(kind, Size):
            values, accepted = [0, -3, 2.5, True, "x", "8x0", "1x2x3", (8,)], "integer of at least 1, or two of them"
        elif isinstance(kind, Share):
            values, accepted = [1, -0.1, True, False, "much", float("nan")], "must be a share, above 0 and below 1"
            values += [] if kind.or_none else [0]
        elif isinstance(kind, Flag):
            values, accepted = ([] if text else [1, "yes"]), "must be True or False"
        elif type(kind) is Kind:
            values, accepted = ([] if text else [3]), "text or a path"
        else:
            assert field.name in ("model", "estimator", "first_estimator", "likelihood"), (
                f"{field.name} needs rows of its own, in CALLS and COMMANDS"
            )
        yield from ((field.name, value, accepted) for value in values if not text or type(value) in (int, float, str))


ARRAY = np.zeros((4, 5, 6), np.uint8)
POSTERIOR = lambda latent: latent.posterior(tf.zeros((2, latent.encoder_units)))  # noqa: E731


def estimate(estimator, latent):
    return lambda my: estimator(POSTERIOR(latent), lambda z: tf.reduce_sum(z, -1), tf.constant([0, 1]))


CALLS = {
    "latents": [
        *counts(lambda my, n: BernoulliLatent(n), "BernoulliLatent: units"),
        *counts(lambda my, n: GaussianLatent(n), "GaussianLatent: units"),
        *counts(lambda my, n: CategoricalLatent(n), "CategoricalLatent: categories"),
        *counts(lambda my, n: CategoricalLatent(2, n), "CategoricalLatent: variables"),
        (lambda my: GaussianLatent(2).all_codes(), "GaussianLatent has real-valued codes", "cannot be enumerated"),
    ],
    "likelihoods": [
        (lambda my, scale=scale: likelihoods.Gaussian(scale), f"scale is {scale!r}", "positive number")
        for scale in (0, -1.0, float("nan"), float("inf"), "1", None, True)
    ],
    "estimators": [
        *counts(lambda my, n: estimators.ImportanceSampling(n), "ImportanceSampling: num_samples"),
        *counts(lambda my, n: estimators.LeaveOneOut(n), "LeaveOneOut: num_samples", 2),
        *counts(lambda my, n: estimators.ARMS(n), "ARMS: num_samples", 2),
        *counts(lambda my, n: estimators.DisARM(n), "DisARM: num_pairs"),
        *counts(lambda my, n: estimators.Reparameterized(n), "Reparameterized: num_samples"),
        *counts(lambda my, n: estimators.StraightThrough(n), "StraightThrough: num_samples"),
        *counts(lambda my, n: estimators.ReinMax(n), "ReinMax: num_samples"),
        (lambda my: estimators.ImportanceSampling(proposal=3), "proposal is 3", "function from the posterior"),
        (estimate(estimators.DisARM(), CategoricalLatent(3)), "posterior is OneHots", "it must be Bits"),
        (estimate(estimators.ARMS(), CategoricalLatent(3)), "posterior is OneHots", "it must be Bits"),
        (estimate(estimators.DisARM(), GaussianLatent(3)), "DisARM: the posterior is Gaussian", "it must be Bits"),
        (estimate(estimators.Enumerated(), GaussianLatent(3)), "Enumerated: the posterior is Gaussian", "discrete"),
        (estimate(estimators.Enumerated(), BernoulliLatent(13)), "8192 codes", "at most 4096: use LeaveOneOut"),
        (estimate(estimators.Enumerated(), CategoricalLatent(5, 6)), "15625 codes", "at most 4096"),
        (estimate(estimators.StraightThrough(), GaussianLatent(3)), "posterior is Gaussian", "it must be discrete"),
        (estimate(estimators.ReinMax(), GaussianLatent(3)), "posterior is Gaussian", "it must be discrete"),
        (estimate(estimators.Reparameterized(), BernoulliLatent(3)), "posterior is Bits", "of a GaussianLatent"),
    ],
    "networks": [
        *(
            (lambda my, make=make, shape=shape: make(shape), f"image_shape is {shape!r}", "three positive integers")
            for shape in (
                (28, 28),
                (28, 28, 0),
                (-1, 28, 1),
                (28, 28, 1.0),
                (None, 28, 1),
                (2, 2, 2, 2),
                28,
                None,
                "abc",
            )
            for make in (
                lambda shape: networks.dense_encoder(shape, 3),
                lambda shape: networks.dense_decoder(3, shape),
                lambda shape: networks.conv_encoder(shape, 3),
                lambda shape: networks.conv_decoder(3, shape),
            )
        ),
        *counts(lambda my, n: networks.dense_encoder(SHAPE, n), "units"),
        *counts(lambda my, n: networks.dense_decoder(n, SHAPE), "units"),
        *counts(lambda my, n: networks.conv_encoder(SHAPE, n), "units"),
        *counts(lambda my, n: networks.conv_decoder(n, SHAPE), "units"),
        *counts(lambda my, n: networks.dense_encoder(SHAPE, 3, (n,)), "a width in hidden"),
        (lambda my: networks.dense_decoder(3, SHAPE, 5), "hidden is 5", "sequence of integers"),
        (lambda my: networks.start_at_mean(my.model.decoder, np.zeros((2, 3, 1))), "(2, 3, 1)", "(2, 2, 1)"),
        (lambda my: networks.start_at_mean(my.model.decoder, GOOD[0] * np.nan), "NaN", "[0, 1]"),
    ],
    "images": [
        (lambda my, method=method, images=images: getattr(my.model, method)(images), *words)
        for images, *words in IMAGES.values()
        for method in METHODS
    ],
    "codes": [
        *((lambda my, codes=codes: my.model.decode(codes), *words) for codes, *words in CODES.values()),
        (lambda my: my.real.decode(np.zeros((2, 3))), "(2, 3)", "(n, 2)"),
        (lambda my: my.real.decode(np.full((2, 2), np.nan)), "float64", "finite numbers"),
        (lambda my: my.real.decode(np.full((2, 2), "a")), "<U1", "finite numbers"),
        (lambda my: my.real.decode(np.full((2, 2), 1j)), "complex128", "finite numbers"),
    ],
    "model": [
        parts(lambda: (encoder(4), BernoulliLatent(3), decoder(3)), "encoder's output has shape (4,)", "(3,)"),
        parts(lambda: (encoder(3), BernoulliLatent(3), decoder(4)), "decoder's input has shape (4,)", "(3,)"),
        parts(
            lambda: (encoder(3), BernoulliLatent(3), decoder(3, (2, 3, 1))),
            "decoder's output has shape (2, 3, 1)",
            SHAPE,
        ),
        parts(lambda: (encoder(3), GaussianLatent(3), decoder(3)), "encoder's output has shape (3,)", "(6,)"),
        parts(
            lambda: (keras.Sequential([keras.layers.Dense(3)]), BernoulliLatent(3), decoder(3)),
            "encoder has no input shape",
            "keras.Input",
        ),
        parts(
            lambda: (encoder(3), BernoulliLatent(3), keras.Sequential([keras.layers.Dense(4)])),
            "decoder has no input shape",
            "keras.Input",
        ),
        parts(lambda: (encoder(3), 3, decoder(3)), "latent is 3", "BernoulliLatent"),
        parts(lambda: (encoder(3), BernoulliLatent, decoder(3)), "latent is <class", "must be a BernoulliLatent"),
        parts(lambda: (keras.layers.Dense(3), BernoulliLatent(3), decoder(3)), "encoder is <Dense", "keras.Model"),
        parts(lambda: (encoder(3), BernoulliLatent(3), len), "decoder is <built-in", "keras.Model"),
        parts(lambda: (two_inputs(), BernoulliLatent(3), decoder(3)), "encoder is a Functional", "one input"),
        parts(
            lambda: (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), BernoulliLatent(3), decoder(3)),
            "(None, 4)",
            "(None, H, W, C)",
        ),
        *(
            (
                lambda my, part=part, value=value: tiny(BernoulliLatent(3), **{part: value}),
                f"{part} is {value!r}",
                words,
            )
            for part, words, values in (
                ("estimator", "estimators", (3, estimators.DisARM)),
                ("estimator", "ImportanceSampling", ("bernoulli", "ARMS:1.5")),
                ("likelihood", "object of tf_isvae.likelihoods", (3, likelihoods.Bernoulli)),
                ("likelihood", "subclass of likelihoods.Likelihood with `log_prob` and `mean`", (2.5,)),
                ("likelihood", "Gaussian:SCALE", ("bernoulli", "Bernoulli:1", "Gaussian:pixel", "Gaussian:nan")),
                ("seed", "integer", ("a", 1.5, True)),
            )
            for value in values
        ),
        (
            lambda my: tiny(CategoricalLatent(3), estimator=estimators.DisARM()),
            "DisARM: the posterior is OneHots",
            "it must be Bits",
        ),
        (
            lambda my: tiny(BernoulliLatent(3), estimator=estimators.Reparameterized()),
            "posterior is Bits",
            "GaussianLatent",
        ),
        (lambda my: tiny(BernoulliLatent(13), estimator=estimators.Enumerated()), "8192 codes", "at most 4096"),
        *counts(lambda my, n: my.model.generate(n), "generate: n"),
        *counts(lambda my, n: my.model.log_likelihood(GOOD, n), "log_likelihood: num_samples"),
        *(
            (lambda my, method=method, seed=seed: method(my.model, seed), f"seed is {seed!r}", "integer")
            for seed in ("a", 1.5, True)
            for method in (
                lambda model, seed: model.generate(2, seed),
                lambda model, seed: model.reconstruct(GOOD, seed),
                lambda model, seed: model.elbo(GOOD, seed),
                lambda model, seed: model.log_likelihood(GOOD, 2, seed),
            )
        ),
        *(
            (lambda my, method=method, data=data: getattr(my.model, method)(data()), *words)
            for method in ("encode", "reconstruct", "elbo", "log_likelihood")
            for data, *words in (
                (lambda: batches(IMAGES["nan"][0]), "NaN", "[0, 1]"),
                (lambda: batches(GOOD).take(0), "without any batch", "at least 1"),
                (lambda: batches(GOOD).repeat(), "without an end", "take(batches)"),
                (lambda: batches(np.concatenate([GOOD, GOOD + 1])), "to 1.9", "[0, 1]"),
            )
        ),
        *(
            (lambda my, method=method, kind=kind: getattr(my.model, method)(batches(IMAGES[kind][0])), *words)
            for method in ("fit", "evaluate")
            for kind, *words in (
                ("no channel", "(2, 2, 2)", "(n, 2, 2, 1)"),
                ("nan", "NaN", "[0, 1]"),
                ("0 to 255", "from", "divide by 255"),
                ("empty", "without any batch", "at least 1"),
            )
        ),
        (lambda my: my.model.fit(batches({"image": GOOD})), "a dict of image", "map(lambda"),
        (lambda my: my.model.evaluate(batches({"image": GOOD})), "a dict of image", "map(lambda"),
        (lambda my: my.model.fit({"image": GOOD}), "a dict of image", "map(lambda"),
        (lambda my: my.model.fit("mnist"), "'mnist'", "data set"),
        (lambda my: my.model.fit(GOOD, batch_size=0), "batch_size is 0", "integer of at least 1"),
        (lambda my: my.model.fit(GOOD, epochs=1.5), "epochs is 1.5", "integer of at least 1"),
        (lambda my: my.model.fit(GOOD, validation_data=np.uint8(255 * GOOD)), "validation images", "divide by 255"),
        (lambda my: my.model.fit(GOOD, sample_weight=np.ones(4)), "sample_weight", "leave it out"),
        (lambda my: my.model.fit(GOOD, class_weight={0: 1.0}), "class_weight", "leave it out"),
        (lambda my: my.model.fit(batches((GOOD, np.zeros(4), np.ones(4)))), "sample_weight", "leave it out"),
        (lambda my: my.model.evaluate(batches((GOOD, np.zeros(4), np.ones(4)))), "sample_weight", "leave it out"),
        (lambda my: my.real.fit(GOOD), "compile", "compile()"),
    ],
    "zoo": [
        *(
            (
                lambda my, name=name: zoo.build(name),
                f"no model is called {name!r}",
                "fc_bvae, fc_cvae, cnn_bvae, cnn_cvae",
            )
            for name in ("FC_BVAE", "", None, 3, ["fc_bvae"])
        ),
        (lambda my: zoo.build("fc_bvea"), "'fc_bvea'", "Did you mean 'fc_bvae'?"),
        (lambda my: zoo.build("cnn-cvae"), "'cnn-cvae'", "Did you mean 'cnn_cvae'?"),
        *counts(
            lambda my, n: zoo.build("cnn_cvae", latent_dim=n), "latent_dim", wrong=(0, -3, 2.5, True, "x", "1x2x3")
        ),
        *counts(lambda my, n: zoo.build("fc_bvae", latent_dim=n), "latent_dim", wrong=(0, -3, 2.5, True)),
        (lambda my: zoo.build("fc_bvae", latent_dim="24x4"), "BernoulliLatent: units is (24, 4)", "integer"),
        (lambda my: zoo.build("cnn_bvae", (28, 28)), "image_shape is (28, 28)", "three positive integers"),
        (lambda my: zoo.build("fc_cvae", (28, 28)), "image_shape is (28, 28)", "three positive integers"),
        (lambda my: zoo.build("fc_bvae", SHAPE, 3, seed=0.5), "seed is 0.5", "integer"),
        (lambda my: zoo.build("fc_cvae", SHAPE, 3, estimator=estimators.ARMS()), "posterior is OneHots", "ARMS: "),
    ],
    "datasets": [
        *(
            (load(ARRAY, **arguments), given, accepted)
            for arguments, given, accepted in (
                ({"batch_size": 0}, "batch_size is 0", "integer of at least 1"),
                ({"batch_size": -3}, "batch_size is -3", "at least 1"),
                ({"batch_size": 2.0}, "batch_size is 2.0", "integer"),
                ({"batch_size": True}, "batch_size is True", "integer"),
                ({"batch_size": "8"}, "batch_size is '8'", "integer"),
                ({"batch_size": 2**63}, "batch_size is 9223372036854775808", "less than 2^63"),
                ({"seed": -1}, "seed is -1", "at least 0"),
                ({"seed": 1.5}, "seed is 1.5", "integer"),
                ({"seed": 2**63}, "seed is 9223372036854775808", "less than 2^63"),
                ({"epochs": 0}, "epochs is 0", "at least 1"),
                ({"epochs": 3, "start": -1}, "start is -1", "at least 0"),
                ({"start": 1}, "start is 1", "0 without epochs"),
                ({"binarize": "yes"}, "binarize is 'yes'", "None, static, dynamic"),
                ({"binarize": True}, "binarize is True", "static"),
                ({"binarize": ["static"]}, "binarize is ['static']", "static"),
                ({"channels": 2}, "channels is 2", "one of None, 1, 3"),
                ({"channels": True}, "channels is True", "one of None, 1, 3"),
                ({"channels": "1"}, "channels is '1'", "one of None, 1, 3"),
                ({"image_size": 0}, "image_size is 0", "at least 1"),
                ({"image_size": (28,)}, "image_size is (28,)", "(H, W)"),
                ({"image_size": (28, 28, 1)}, "image_size is (28, 28, 1)", "(H, W)"),
                ({"image_size": 28.0}, "image_size is 28.0", "integer"),
                ({"image_size": "28"}, "image_size is '28'", "integer"),
                ({"image_size": 2**31}, "image_size is 2147483648", "less than 2^31"),
                ({"split": None}, "split is None", '"train"'),
                ({"split": "test"}, "'test'", 'has: "train"'),
                ({"labels": True}, "labels is True", "no labels"),
            )
        ),
        *(
            (load(array), given, accepted)
            for array, given, accepted in (
                (np.zeros((3, 4), np.uint8), "(3, 4)", "(n, H, W)"),
                (np.zeros((3, 4, 5, 1, 1), np.uint8), "(3, 4, 5, 1, 1)", "(n, H, W, C)"),
                (np.zeros((), np.uint8), "shape ()", "(n, H, W)"),
                (np.zeros((0, 4, 5), np.uint8), "(0, 4, 5)", "at least 1"),
                (np.zeros((3, 4, 0), np.uint8), "(3, 4, 0)", "at least 1"),
                (np.zeros((3, 4, 5), np.int64), "int64", "uint8 in 0..255"),
                (np.zeros((3, 4, 5), bool), "bool", "uint8 in 0..255"),
                (np.zeros((3, 4, 5), complex), "complex128", "uint8 in 0..255"),
                (np.full((3, 4, 5), "a"), "<U1", "uint8 in 0..255"),
                (np.full((3, 4, 5), None), "object", "uint8 in 0..255"),
                (np.full((3, 4, 5), np.nan), "NaN", "[0, 1]"),
                (np.where(np.arange(60).reshape(3, 4, 5) == 59, np.inf, 0.5), "infinite", "[0, 1]"),
                (np.full((3, 4, 5), 255.0), "255", "divide by 255"),
                (np.full((3, 4, 5), 256.0), "256", "rescale them"),
                (np.full((3, 4, 5), -0.1), "-0.1", "rescale them"),
                (np.full((3, 4, 5), 1.000001), "1.000001", "[0, 1]"),
                (3, "source is a int", "NumPy array"),
                ([[1, 2]], "source is a list", "folder of images"),
                ({"a": 1}, "source is a dict", "NumPy array"),
                (b"mnist", "source is a bytes", "NumPy array"),
            )
        ),
        (load(np.zeros((2, 3, 3, 4), np.uint8), channels=1), "4 channels", "only 1 and 3"),
        (load("missing.npz"), "missing.npz does not exist", "give the path"),
        (load("notes.txt"), "notes.txt; it must be", ".npz"),
        (load("empty"), "holds no images", ".png, .jpg or .jpeg"),
        (load("broken.npz"), "broken.npz is not a whole .npz file", "zip"),
        (load("two.npz"), '"first" and "second"', "x_train"),
        (load("labels.npz", labels=True), "shape (3,)", "one for each of the 4 images"),
        (load("grey.npz"), "from 255 to 255", "divide by 255"),
        (load("good.npz", split="test"), "'test'", 'has: "train"'),
        (load("good.npz", labels=True), "labels is True", "no labels"),
        (load("sizes"), "different sizes", "image_size=(H, W)"),
        (load("colours"), "different numbers of channels", "channels=1 or 3"),
        (load("colours", channels=1, labels=True), "labels is True", "no labels"),
        *(
            (lambda my, name=name: datasets.load(name, batch_size=2, data_dir=my.tmp), repr(name), accepted)
            for name, accepted in (
                ("mnits", 'Did you mean "mnist"'),
                ("digit", '"digits"'),
                ("fashion-mnist", 'Did you mean "fashion_mnist"'),
                ("", "known are"),
                ("no such data set", "known are"),
                ("mnist:9.9.9", "is not a data set of TFDS"),
                ("mnist/config", "is not a data set of TFDS"),
                ("imdb_reviews", "no 8-bit images"),
            )
        ),
        (lambda my: datasets.load("mnist", batch_size=2, data_dir=3), "data_dir is 3", "path of a folder"),
        (lambda my: datasets.load("digits", "validation", batch_size=2), "'validation'", '"train" and "test"'),
    ],
    "evaluation": [
        *counts(lambda my, n: evaluation.gradient_variance(my.model, GOOD, n), "gradient_variance: draws", 2),
        *counts(lambda my, n: evaluation.estimator_bias(my.model, GOOD, draws=n), "estimator_bias: draws", 2),
        (lambda my: evaluation.gradient_variance(3, GOOD), "model is 3", "DiscreteVAE"),
        (lambda my: evaluation.estimator_bias("m", GOOD), "model is 'm'", "DiscreteVAE"),
        (lambda my: evaluation.gradient_variance(my.model, GOOD[..., 0]), "(4, 2, 2)", "(n, 2, 2, 1)"),
        (lambda my: evaluation.gradient_variance(my.model, GOOD, 2, "DisARM"), "estimator is 'DisARM'", "estimators"),
        (lambda my: evaluation.gradient_variance(my.model, GOOD, 2, seed=0.5), "seed is 0.5", "integer"),
        (lambda my: evaluation.estimator_bias(my.model, GOOD, reference=4), "estimator is 4", "estimators"),
        (
            lambda my: evaluation.estimator_bias(my.model, GOOD, estimators.Reparameterized(), draws=2),
            "posterior is Bits",
            "GaussianLatent",
        ),
        (lambda my: evaluation.code_statistics(3, GOOD), "model is 3", "DiscreteVAE"),
        (lambda my: evaluation.code_statistics(my.model, GOOD[0]), "(2, 2, 1)", "(n, 2, 2, 1)"),
        (lambda my: evaluation.code_statistics(my.model, batches(GOOD[:0])), "without any batch", "at least 1"),
        *(
            (lambda my, f=f: frozen(my.model, lambda model: f(model, GOOD, draws=2)), "no trainable weights", "= True")
            for f in (evaluation.gradient_variance, evaluation.estimator_bias)
        ),
        *((lambda my, n=n: zoo.load(n), f"name is {n!r}", "zoo.names()") for n in ("", None, 3)),
        (lambda my: evaluation.clustering(np.zeros((4, 2)), np.zeros(3)), "(4, 2) and (3,)", "one label"),
        (lambda my: evaluation.clustering(np.zeros((6, 2)), np.zeros(3)), "(6, 2) and (3,)", "one label"),
        (lambda my: evaluation.clustering([], []), "(0,) and (0,)", "at least 1"),
        (lambda my: evaluation.clustering([1, 2], [[1], [2]]), "(2,) and (2, 1)", "(n,)"),
        *(
            (lambda my, given=given: evaluation.retrieval(*given), *words)
            for given, *words in (
                ((np.zeros((4, 2)), np.zeros(3), np.zeros((1, 2)), [0]), "(4, 2) and (3,)", "(n, bits) and (n,)"),
                ((np.zeros((4, 2)), np.zeros(4), np.zeros((1, 3)), [0]), "(1, 3)", "2 bits"),
                ((np.zeros((4, 2)), np.zeros(4), np.zeros((0, 2)), []), "(0, 2) and (0,)", "at least 1"),
                ((np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(4)), "(4,) and (4,)", "(n, bits)"),
                ((np.full((4, 2), 7), np.zeros(4), np.zeros((1, 2)), [0]), "from 7 to 7", "0 and 1"),
            )
        ),
        *counts(
            lambda my, n: evaluation.retrieval(np.zeros((4, 2)), np.zeros(4), np.zeros((1, 2)), [0], n),
            "retrieval: top",
        ),
    ],
    "callbacks": [
        *(
            (lambda my, a=a, b=b: callbacks.KLAnnealing(a, b), f"KLAnnealing: {name} is {value!r}", "positive number")
            for a, b, name, value in (
                (0, 1, "start", 0),
                (-1, 1, "start", -1),
                ("3", 1, "start", "3"),
                (True, 1, "start", True),
                (2, 0, "epochs", 0),
                (2, float("nan"), "epochs", float("nan")),
            )
        ),
    ],
    "plotting": [
        *(
            (lambda my, draw=draw, name=name: draw(my.tmp / name), given, accepted)
            for draw in (
                lambda path: plotting.training_curves({"epoch": [1], "loss": [1.0]}, path),
                lambda path: plotting.reconstructions(GOOD, GOOD, path),
                lambda path: plotting.image_grid(GOOD, path),
                lambda path: plotting.image_rows({"one": GOOD, "other": GOOD}, path),
            )
            for name, given, accepted in (
                ("figure.pdf", "figure.pdf", "must end in .png"),
                ("missing/figure.png", "missing/figure.png", "in a folder that exists: create"),
            )
        ),
        *(
            (lambda my, draw=draw, images=images: draw(images, my.tmp / "grid.png"), given, accepted)
            for draw in (plotting.image_grid, lambda images, path: plotting.reconstructions(images, images, path))
            for images, given, accepted in (
                (np.zeros((2, 28, 28)), "(2, 28, 28)", "(n, H, W, C)"),
                (np.zeros((0, 28, 28, 1)), "(0, 28, 28, 1)", "at least 1"),
                (np.full((1, 2, 2, 1), 255, np.uint8), "from 255 to 255", "divide by 255"),
                (np.full((1, 2, 2, 1), np.nan), "NaN", "[0, 1]"),
                (np.zeros((9999, 1, 1, 1)), "9999 images in 10 columns", "draw fewer"),
                (np.full((1, 2, 2, 1), "a"), "dtype <U1", "[0, 1]"),
                (np.full((1, 2, 2, 1), 1j), "dtype complex128", "[0, 1]"),
            )
        ),
        (
            lambda my: plotting.reconstructions(GOOD, GOOD[:2], my.tmp / "a.png"),
            "(2, 2, 2, 1)",
            "one reconstruction of the same size",
        ),
        (lambda my: plotting.image_rows({}, my.tmp / "a.png"), "rows have {}", "at least one row"),
        (
            lambda my: plotting.image_rows({"one": GOOD, "other": GOOD[:2]}, my.tmp / "a.png"),
            "{'one': 4, 'other': 2}",
            "the same number",
        ),
        *counts(lambda my, n: plotting.image_grid(GOOD, my.tmp / "a.png", columns=n), "columns"),
        *(
            (lambda my, run=run: plotting.training_curves(run, my.tmp / "a.png"), given, accepted)
            for run, given, accepted in (
                ({"loss": [1.0]}, "(columns ['loss'])", "must have `epoch`"),
                ({"epoch": [], "loss": []}, "no epochs", "must have `epoch`"),
                ({"epoch": [1, 2], "loss": [1.0]}, "1 numbers in 'loss' for 2 epochs", "one number per epoch"),
                ({"epoch": [1, 2], "loss": [2.0, 1.0], "val_kl": [1.0]}, "1 numbers in 'kl'", "one number per epoch"),
                ({"epoch": [1], "accuracy": [1.0]}, "['accuracy', 'epoch']", "one of loss"),
                ({"epoch": [1], "loss": ["low"]}, "'low'", "numbers"),
                ([1.0, 2.0], "history is a list", "mapping"),
            )
        ),
        (lambda my: plotting.compare_curves({}, my.tmp / "a.png"), "histories are 0", "one or more with `epoch`"),
    ],
    "training": [
        *((settings(**{name: value}), f"{name} is {value!r}", accepted) for name, value, accepted in wrong_settings()),
        *(
            (settings(**changes), given, accepted)
            for changes, given, accepted in (
                ({"model": "vae"}, "'vae'", "fc_bvae"),
                ({"model": None}, "None", "fc_bvae"),
                ({"estimator": "Magic"}, "'Magic'", "ImportanceSampling"),
                ({"likelihood": "Magic"}, "'Magic'", "DiscretizedLogistic:pixel"),
                ({"likelihood": "Gaussian:-1"}, "'Gaussian:-1'", "Gaussian:SCALE"),
                ({"likelihood": {"class_name": "x"}}, "class_name", "serialised form of a likelihood"),
                ({"first_estimator": "Magic"}, "'Magic'", "ImportanceSampling"),
                ({"model": "fc_cvae", "first_estimator": "DisARM"}, "posterior is OneHots", "it must be Bits"),
                ({"model": "fc_hvae", "prior": "uniform", "warm_epochs": 3}, "warm_epochs is 3", "only clusters"),
                ({"estimator": "Estimator"}, "'Estimator'", "ImportanceSampling"),
                ({"estimator": "Reparameterized"}, "posterior is Bits", "of a GaussianLatent"),
                ({"estimator": "Enumerated"}, "codes", "at most 4096"),
                ({"model": "fc_cvae", "estimator": "DisARM"}, "posterior is OneHots", "it must be Bits"),
                ({"latent_dim": (24, 4)}, "BernoulliLatent: units is (24, 4)", "integer of at least 1"),
                ({"batch_size": 2**63}, "9223372036854775808", "less than 2^63"),
                ({"dataset": "mnits"}, "'mnits'", "Did you mean"),
            )
        ),
        (lambda my: training.train({"model": "fc_bvae"}), "config is a dict", "training.Config"),
        (lambda my: training.stored_config(None), "give run_dir", "directory of the run"),
        (
            lambda my: training.stored_config(str(my.files / "nothing")),
            "nothing holds no run",
            "config.json is missing",
        ),
        (lambda my: training.stored_config(str(my.files / "empty")), "empty holds no run", "config.json is missing"),
        (lambda my: training.stored_config(str(my.files / "run")), "config.json is not", "JSON"),
        (
            lambda my: training.train(training.Config(dataset="digits", run_dir=str(my.files / "project"))),
            "project already holds",
            "choose a new directory",
        ),
        (
            lambda my: training.train(training.Config(dataset="digits", run_dir=str(my.files / "notes.txt"))),
            "notes.txt already holds",
            "choose a new directory",
        ),
        (
            lambda my: training.train(
                training.Config(dataset="digits", image_size=(8, 8), run_dir=str(my.files / "notes.txt" / "run"))
            ),
            "notes.txt/run cannot be written",
            "choose another",
        ),
    ],
    "export": [
        (lambda my: export.saved_model("m", my.tmp / "m"), "model is 'm'", "DiscreteVAE"),
        (lambda my: export.saved_model(my.model, my.files / "notes.txt"), "notes.txt is a file", "must be a folder"),
        (lambda my: export.saved_model(my.model, my.files / "project"), "project holds a README.md", "another folder"),
        (lambda my: export.saved_model(my.model, my.tmp / "m", config=[1]), "config is [1]", "dict"),
        (lambda my: export.saved_model(my.model, my.tmp / "m", metrics="good"), "metrics is 'good'", "dict"),
        (lambda my: export.litert("m", my.tmp / "m.tflite"), "model is 'm'", "DiscreteVAE"),
        *(
            (lambda my, given=given: export.litert(my.model, **{"path": my.tmp / "m.tflite", **given}), *words)
            for given, *words in (
                ({"quantize": "int4"}, "quantize is 'int4'", "one of None, float16, int8"),
                ({"quantize": 8}, "quantize is 8", "one of None, float16, int8"),
                ({"quantize": ["int8"]}, "quantize is ['int8']", "one of None, float16, int8"),
                ({"quantize": "int8"}, "calibration images are missing", "quantize='int8'"),
                ({"calibration": GOOD}, "calibration images are given", "for nothing else"),
                (
                    {"quantize": "int8", "calibration": GOOD[..., 0]},
                    "calibration images have shape (4, 2, 2)",
                    "(n, 2,",
                ),
                ({"quantize": "int8", "calibration": np.full((3, *SHAPE), 255)}, "to 255", "divide by 255"),
            )
        ),
        (lambda my: export.litert(my.model, my.tmp), "is a directory", "name of a file"),
        (lambda my: training.read_trained(my.files / "nothing"), "nothing does not exist", "directory of a run"),
        (lambda my: training.read_trained(my.files / "empty"), "empty holds no trained model", "directory of a run"),
        (
            lambda my: training.read_trained(my.files / "notes.txt"),
            "notes.txt is not a .keras file",
            "DiscreteVAE.save",
        ),
        (lambda my: training.read_trained(my.files / "other.keras"), "other.keras holds", "DiscreteVAE.save"),
        (lambda my: training.read_trained(my.files / "run"), "config.json cannot be read as JSON", "JSON"),
        (lambda my: training.read_trained(3), "int", "PathLike"),
        (lambda my: export.to_folder(my.model, my.tmp / "x", ["onnx"]), "format is 'onnx'", "keras, litert-float32"),
        (lambda my: export.to_folder(my.model, my.tmp / "x", ["litert-int8"]), "are missing", "litert-int8"),
        (lambda my: export.saved_model(my.model, my.tmp / "x", precision="half"), "precision is 'half'", "float32"),
        (lambda my: export.serving_config(my.files / "empty"), "empty holds no models", "export some"),
        (lambda my: export.serving_config(my.files / "nothing"), "nothing holds no models", "export some"),
        (lambda my: export.serving_config(my.files, "models"), "base_path is 'models'", "absolute path"),
    ],
}
ROWS = [(group, i, *row) for group, rows in CALLS.items() for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "call, words", [pytest.param(call, words, id=f"{group} {i}: {words[0]}") for group, i, call, *words in ROWS]
)
def test_a_wrong_call(shared, tmp_path, monkeypatch, call, words):
    monkeypatch.chdir(tmp_path)
    before = contents(shared.files)
    shared.tmp = tmp_path
    with pytest.raises((ValueError, TypeError, OSError)) as error:
        call(shared)
    one_line(str(error.value), *words)
    assert contents(shared.files, tmp_path) == before


# --- Scripts: the arguments, and what standard error says was given and is accepted.

TRAIN = "train.py --dataset digits --epochs 1 --image-size 8"
EXPORT = "export.py FILES/model.keras"
COMMANDS = [
    (f"{TRAIN} --model vae", "'vae'", "fc_bvae"),
    (f"{TRAIN} --dataset mnits", "'mnits'", "Did you mean"),
    (f"{TRAIN} --dataset ./missing", "missing does not exist", "give the path"),
    (f"{TRAIN} --dataset FILES/broken.npz", "broken.npz is not a whole", "zip"),
    (f"{TRAIN} --dataset FILES/two.npz", '"first" and "second"', "x_train"),
    (f"{TRAIN} --dataset FILES/empty", "empty holds no images", ".png"),
    *(
        (f"{TRAIN} {training.option(name)} {value}", f"{name} is", accepted)
        for name, value, accepted in wrong_settings(text=True)
    ),
    (f"{TRAIN} --estimator Magic", "'Magic'", "DisARM"),
    (f"{TRAIN} --first-estimator Magic", "'Magic'", "DisARM"),
    (f"{TRAIN} --likelihood Magic", "'Magic'", "Gaussian:SCALE"),
    (f"{TRAIN} --estimator Reparameterized", "Reparameterized: the posterior is Bits", "GaussianLatent"),
    (f"{TRAIN} --model fc_cvae --estimator DisARM", "DisARM: the posterior is OneHots", "BernoulliLatent"),
    (f"{TRAIN} --estimator Enumerated", "codes", "at most 4096"),
    (f"{TRAIN} --batch-size 99999999999999999999", "99999999999999999999", "less than 2^63"),
    (f"{TRAIN} --start-at-mean yes", "unrecognized arguments: yes", "--help"),
    (f"{TRAIN} --colour red", "unrecognized arguments: --colour red", "--help"),
    (f"{TRAIN} --epoch 3", "unrecognized arguments: --epoch 3", "--help"),
    (f"{TRAIN} stray", "unrecognized arguments: stray", "--help"),
    (f"{TRAIN} --epochs", "--epochs", "expected one argument"),
    (f"{TRAIN} --resume", "to resume", "give run_dir"),
    (f"{TRAIN} --resume --run-dir nothing", "nothing holds no run", "config.json is missing"),
    (f"{TRAIN} --resume --run-dir FILES/run", "config.json is not", "JSON"),
    (f"{TRAIN} --run-dir FILES/notes.txt", "notes.txt already holds", "choose a new directory"),
    (f"{TRAIN} --run-dir FILES/notes.txt/run", "notes.txt/run cannot be written", "choose another"),
    (f"{TRAIN} --run-dir FILES/project", "project already holds", "choose a new directory"),
    (f"{TRAIN} --run-dir /proc/run", "/proc/run cannot be written", "choose another"),
    ("compare_estimators.py --steps 10 --evaluate-every 3", "--steps is 10", "multiple of --evaluate-every, 3"),
    ("compare_estimators.py --steps 0", "--steps is 0", "integer of at least 1"),
    ("compare_estimators.py --evaluate-every 0", "--evaluate-every is 0", "integer of at least 1"),
    ("compare_estimators.py --steps x", "'x'", "--steps"),
    ("compare_estimators.py --seed -1", "--seed is -1", "integer of at least 0"),
    ("compare_estimators.py --estimators Foo", "'Foo'", "NAME:COUNT"),
    ("compare_estimators.py --estimators disarm", "'disarm'", "NAME:COUNT"),
    ("compare_estimators.py --estimators DisARM:x", "'DisARM:x'", "NAME:COUNT"),
    ("compare_estimators.py --estimators DisARM:²", "'DisARM:²'", "NAME:COUNT"),
    ("compare_estimators.py --estimators DisARM:-1", "'DisARM:-1'", "NAME:COUNT"),
    ("compare_estimators.py --estimators DisARM:0", "num_pairs is 0", "integer of at least 1"),
    ("compare_estimators.py --estimators Enumerated:3", "'Enumerated:3'", "takes no count"),
    ("compare_estimators.py --estimators DisARM Enumerated", "codes", "at most 4096"),
    ("compare_estimators.py --estimators Reparameterized", "Reparameterized: the posterior is Bits", "GaussianLatent"),
    ("compare_estimators.py --run-dir FILES/notes.txt", "notes.txt; it must be writable", "choose another"),
    ("compare_estimators.py --categorical 24", "--categorical is 24", "VARIABLESxCATEGORIES"),
    ("compare_estimators.py --categorical 24x0", "--categorical is '24x0'", "two of them, such as 24x4"),
    ("compare_estimators.py --learning-rate 0", "--learning-rate is 0.0", "positive number"),
    ("compare_estimators.py --optimizer SGD", "'SGD'", "RAdam"),
    ("compare_estimators.py --estimators DisARM:1:2", "'DisARM:1:2'", "takes no second number"),
    ("compare_estimators.py --precision float16", "'float16'", "mixed_bfloat16"),
    ("compare_estimators.py --foo", "unrecognized arguments: --foo", "--help"),
    ("benchmark.py --models vae", "'vae'", "fc_bvae"),
    ("benchmark.py --models fc_bvae vae --export", "'vae'", "fc_bvae"),
    ("gpu_check.py --models vae", "'vae'", "fc_bvae"),
    ("gpu_check.py --timed-steps 0", "--timed-steps is 0", "integer of at least 1"),
    ("benchmark.py stray", "unrecognized arguments: stray", "--help"),
    (
        "evaluate.py FILES/model.keras --dataset digits --to no/folder/e.json",
        "--to is no/folder/e.json",
        "choose another",
    ),
    ("export.py", "required: source", "--help"),
    ("export.py nothing", "nothing does not exist", "directory of a run"),
    ("export.py FILES/notes.txt", "notes.txt is not a .keras file", "DiscreteVAE.save"),
    ("export.py FILES/other.keras", "other.keras holds", "DiscreteVAE.save"),
    ("export.py FILES/empty", "empty holds no trained model", "directory of a run"),
    (f"{EXPORT} --litert float64", "'float64'", "'int8'"),
    (f"{EXPORT} --litert", "--litert", "expected at least one argument"),
    (f"{EXPORT} --litert int8", "int8 needs images", "--calibration"),
    (f"{EXPORT} --litert int8 --calibration mnits", "'mnits'", "Did you mean"),
    (f"{EXPORT} --calibration digits", "--calibration digits", "--litert int8"),
    (f"{EXPORT} --to FILES/notes.txt", "notes.txt is a file", "must be a folder"),
    (f"{EXPORT} --to FILES/project", "README.md", "choose another folder"),
    (f"{EXPORT} --format onnx", "unrecognized arguments: --format onnx", "--help"),
]


@pytest.mark.parametrize("command, given, accepted", COMMANDS, ids=[command for command, *_ in COMMANDS])
def test_a_wrong_command(shared, script, tmp_path, command, given, accepted):
    before = contents(shared.files)
    name, *arguments = command.replace("FILES", str(shared.files)).split()
    status, output, errors = script(name, *arguments)
    assert status == 2 and (output == "" or name == "train.py" and output.endswith(": starting TensorFlow\n"))
    assert errors.startswith(f"{name}: error: ") and errors.endswith("\n")
    one_line(errors[:-1], given, accepted)
    assert contents(shared.files, tmp_path) == before


def test_there_are_many():
    assert len(ROWS) + len(COMMANDS) > 400
