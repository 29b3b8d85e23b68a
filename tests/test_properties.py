"""Properties that hold for any shape, type, size and pair of parts: a clear error of one line, or the right result."""

import dataclasses
import math
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import one_line
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_isvae import (
    BernoulliLatent,
    CategoricalLatent,
    DiscreteVAE,
    GaussianLatent,
    checks,
    datasets,
    estimators,
    files,
    networks,
    training,
    zoo,
)
from tf_isvae.chunks import parts_of

# The same examples in every run, and as many as the suite has time for.
few = settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
many = settings(few, max_examples=100)

sizes = st.integers(1, 5)
shapes = st.tuples(sizes, sizes, st.integers(1, 3))
latents = st.one_of(
    st.builds(BernoulliLatent, sizes),
    st.builds(CategoricalLatent, sizes, st.integers(1, 3)),
    st.builds(GaussianLatent, sizes),
)
counts = st.integers(2, 3)
others = {estimators.Enumerated, estimators.Linearized, estimators.Hybrid}
# The package's own: other tests define estimators too.
known = [getattr(estimators, name) for name in estimators.names()]
every_estimator = st.one_of(
    *(st.builds(cls, counts) for cls in known if cls not in others),
    st.builds(estimators.Enumerated),
    *(st.builds(cls, st.builds(estimators.LeaveOneOut, counts)) for cls in (estimators.Linearized, estimators.Hybrid)),
)
arrays = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes(),
        hnp.complex_number_dtypes(), hnp.unicode_string_dtypes(max_len=2), hnp.datetime64_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
)  # fmt: skip


@many
@given(
    st.one_of(
        st.integers(), st.floats(), st.booleans(), st.text("a1²\n"), st.none(), hnp.from_dtype(np.dtype(np.int16))
    )
)
def test_counts_are_positive_integers_and_nothing_else(value):
    if isinstance(value, (int, np.int16)) and not isinstance(value, bool) and value >= 1:
        assert checks.integer("n", value) == int(value) and type(checks.integer("n", value)) is int
        return
    with pytest.raises(ValueError) as error:
        checks.integer("n", value)
    one_line(error.value)
    assert repr(value) in str(error.value)


@many
@given(arrays, shapes)
def test_images_are_taken_as_they_are_or_refused(array, shape):
    try:
        images = checks.images("images", array, shape)
    except (ValueError, TypeError) as error:
        one_line(error)
        # Refused for a reason.
        fits = array.dtype.kind in "fiub" and array.shape[1:] == shape and len(array)
        assert not fits or not ((array >= 0) & (array <= 1)).all()
    else:
        assert images.dtype == np.float32 and images.shape == array.shape
        np.testing.assert_array_equal(images, array.astype(np.float32))


@settings(few, max_examples=25)
@given(arrays, st.integers(-1, 4), st.one_of(st.none(), st.integers(-1, 3)))
def test_any_array_as_a_data_set(array, batch_size, seed):
    """Every image once, in batches of the size asked for, as NumPy makes them; or a refusal before the first batch."""
    try:
        dataset = datasets.load(array, batch_size=batch_size, seed=seed)
    except (ValueError, TypeError) as error:
        one_line(error)
        fits = array.ndim in (3, 4) and array.size and batch_size > 0 and (seed is None or seed >= 0)
        in_range = array.dtype.kind == "f" and ((array >= 0) & (array <= 1)).all()
        assert not (fits and (array.dtype == np.uint8 or in_range))
        return
    batches = list(dataset.as_numpy_iterator())
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    found = np.concatenate(batches)
    expected = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    assert found.dtype == np.float32 and found.shape == (*array.shape, 1)[:4]
    flat, expected = found.reshape(len(found), -1), expected.reshape(len(array), -1)
    if seed is None:
        np.testing.assert_allclose(flat, expected, rtol=1e-6)
    else:
        np.testing.assert_allclose(sorted(flat.tolist()), sorted(expected.tolist()), rtol=1e-6)


@few
@given(latents, st.data())
def test_codes_go_to_z_and_back(latent, data):
    rows = data.draw(st.integers(0, 4))
    values = 2**20 if latent.code_values is None else latent.code_values
    elements = st.integers(0, values - 1)
    codes = data.draw(hnp.arrays(latent.code_dtype, (rows, latent.code_units), elements=elements))
    z = latent.from_codes(codes)
    assert z.shape == (rows, latent.units) and z.dtype == tf.float32
    np.testing.assert_array_equal(latent.to_codes(z), codes)
    copy = type(latent).from_config(latent.get_config())
    assert copy.get_config() == latent.get_config() and copy.num_codes == latent.num_codes


@few
@given(every_estimator)
def test_estimators_go_to_a_config_and_back(estimator):
    copy = type(estimator).from_config(estimator.get_config())
    assert copy.get_config() == estimator.get_config()


def build(latent, shape, **options):
    encoder = networks.dense_encoder(shape, latent.encoder_units, ())
    return DiscreteVAE(encoder, latent, networks.dense_decoder(latent.units, shape, ()), **options)


@settings(few, max_examples=12)
@given(latents, every_estimator, shapes, st.integers(1, 4))
def test_any_pair_of_latent_and_estimator_trains_or_is_refused(latent, estimator, shape, batch):
    """Refused when the model is built; otherwise a step has a finite loss, moves finite weights, and is logged."""
    try:
        model = build(latent, shape, estimator=estimator, seed=0)
    except (TypeError, ValueError) as error:
        one_line(error)
        discrete, kind = not isinstance(latent, GaussianLatent), type(estimator).__name__
        bits = isinstance(latent, BernoulliLatent)
        takes = {"ImportanceSampling": True, "LeaveOneOut": True, "DisARM": bits, "ARMS": bits}
        takes |= {"Reparameterized": not discrete, "Hybrid": False}
        assert not takes.get(kind, discrete)
        return
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    images = np.random.default_rng(batch).uniform(size=(batch, *shape)).astype(np.float32)
    logs = {name: float(value) for name, value in model.train_step(tf.constant(images)).items()}
    assert all(map(math.isfinite, logs.values())) and logs["kl"] > -1e-5
    assert math.isclose(logs["loss"], logs["kl"] - logs["log_likelihood"], rel_tol=1e-5, abs_tol=1e-5)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)  # there is nothing to gain from graphs that run once
    yield
    tf.config.run_functions_eagerly(False)


@settings(few, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(zoo.MODELS)), shapes, sizes, st.integers(1, 3))
def test_any_model_of_the_zoo_encodes_decodes_and_is_saved(eagerly, name, shape, latent_dim, n):
    model = zoo.build(name, shape, latent_dim, seed=1)
    images = np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)
    codes, *features = encoded = parts_of(model.encode(images))
    assert codes.shape == (n, model.latent.code_units) and codes.dtype == model.latent.code_dtype
    assert [each.shape for each in features] == [(n, 10)] * name.endswith(("hvae", "hbvae"))
    decoded = model.decode(*encoded)
    assert decoded.shape == images.shape and ((decoded >= 0) & (decoded <= 1)).all()
    bounds = model.log_likelihood(images)
    assert bounds.shape == (n,) and np.isfinite(bounds).all()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.keras")
        copy = keras.models.load_model(Path(folder) / "m.keras")
    for part in ("latent", "estimator", "likelihood"):
        assert getattr(copy, part).get_config() == getattr(model, part).get_config()
    assert (copy.name, copy.seed, copy.image_shape) == (model.name, model.seed, shape)
    for ours, theirs in zip(encoded, parts_of(copy.encode(images)), strict=True):
        np.testing.assert_array_equal(theirs, ours)


@settings(few, max_examples=40)
@given(st.data())
def test_settings_of_a_run_are_read_as_they_were_written(data):
    positive = st.one_of(st.none(), st.floats(1e-300, 1e300))
    values = {
        "model": st.sampled_from(list(zoo.MODELS)),
        "dataset": st.text(max_size=9),
        "recipe": st.sampled_from(["best", "paper"]),
        "latent_dim": st.one_of(st.none(), sizes),
        "epochs": st.one_of(st.none(), st.integers(1, 2**70)),
        "batch_size": st.one_of(st.none(), sizes),
        "learning_rate": positive,
        "kl_start": positive,
        "start_at_mean": st.one_of(st.none(), st.booleans()),
        "seed": st.integers(0, 2**32 - 1),
        "image_size": st.one_of(st.none(), st.tuples(sizes, sizes)),
        "binarize": st.sampled_from([None, "static", "dynamic"]),
    }
    given_values = data.draw(st.fixed_dictionaries({}, optional=values))
    with tempfile.TemporaryDirectory() as folder:
        config = training.Config(**given_values, run_dir=folder)
        files.write_json(Path(folder) / "config.json", dataclasses.asdict(config))
        assert training.stored_config(folder) == config
