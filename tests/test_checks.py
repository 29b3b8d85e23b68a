"""checks: what is accepted, as what it comes back, and one grammar for what is refused."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_isvae import checks

GRAMMAR = re.compile(r"[^\n;]+ (is|are|have|hold|come as) [^\n]*; (it|they) must [^\n]*\.")
GOOD = np.full((2, 3, 4, 1), 0.5, np.float32)


@pytest.mark.parametrize(
    "check, value, expected",
    [
        (checks.integer, 3, 3),
        (checks.integer, np.int16(3), 3),
        (checks.integer, 2**70, 2**70),
        (lambda name, value: checks.integer(name, value, 0, 4), 0, 0),
        (lambda name, value: checks.integer(name, value, 0, 4), 3, 3),
        (lambda name, value: checks.integer(name, value, None), -5, -5),
        (checks.positive, 3, 3.0),
        (checks.positive, np.float32(0.5), 0.5),
        (checks.positive, 1e-300, 1e-300),
        (checks.image_size, 28, (28, 28)),
        (checks.image_size, np.int64(28), (28, 28)),
        (checks.image_size, (28, 32), (28, 32)),
        (checks.image_size, [1, np.int8(2)], (1, 2)),
        (checks.integer_or_pair, 32, 32),
        (checks.integer_or_pair, "32", 32),
        (checks.integer_or_pair, "24x4", (24, 4)),
        (checks.integer_or_pair, [24, 4], (24, 4)),
        (lambda name, value: checks.one_of(name, value, (None, 1, "a")), None, None),
        (lambda name, value: checks.one_of(name, value, (None, 1, "a")), "a", "a"),
        (lambda name, value: checks.one_of(name, value, (None, 1, "a")), np.int64(1), 1),
        (checks.flag, True, True),
        (checks.flag, False, False),
    ],
)
def test_accepted(check, value, expected):
    found = check("n", value)
    assert found == expected and type(found) is type(expected)


WRONG_NUMBERS = [True, np.True_, "3", None, float("nan"), float("inf"), [3], np.array([3, 4]), 1j]


@pytest.mark.parametrize(
    "check, values",
    [
        (checks.integer, [0, -1, 2.0, np.float64(2), *WRONG_NUMBERS]),
        (lambda name, value: checks.integer(name, value, 0, 4), [-1, 4]),
        (checks.positive, [0, -1.5, 10**400, *WRONG_NUMBERS]),
        (checks.image_size, [0, 2**31, "28", 28.0, (28,), (28, 28, 1), (28, True), (28, 0), None, np.array([28, 28])]),
        (checks.integer_or_pair, [0, "", "0", "x", "3x", "²", "-3", "1x2x3", (3,), (), (1, 2, 3), 2.5, True, None, {}]),
        (lambda name, value: checks.one_of(name, value, (None, 1, "a")), [True, 1.0, "b", [1], np.array([1]), {}]),
        (checks.flag, [1, 0, "True", None, np.True_]),
    ],
)
def test_refused(check, values):
    for value in values:
        with pytest.raises(ValueError) as error:
            check("the name", value)
        text = str(error.value)
        assert GRAMMAR.fullmatch(text) and text.startswith(f"the name is {value!r}; it must be "), text


def test_limits_are_written_as_one_reads_them():
    for below, word in ((100, "less than 100."), (2**63, "less than 2^63."), (2**32 - 1, "less than 4294967295.")):
        with pytest.raises(ValueError) as error:
            checks.integer("n", 2**70, 1, below)
        assert str(error.value).endswith(word)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64, bool, tf.bfloat16])
def test_images_of_any_real_type_become_float32(dtype):
    values = np.array([[[[0], [1]]]]).astype(getattr(dtype, "as_numpy_dtype", dtype))
    for given in (values, values.tolist(), tf.constant(values)):
        found = checks.images("images", given, (1, 2, 1))
        assert found.dtype == np.float32 and found.tolist() == [[[[0], [1]]]]
    assert checks.images("images", GOOD, (3, 4, 1)) is GOOD  # no copy
    assert checks.images("images", GOOD) is GOOD  # any shape of images


WRONG_IMAGES = [
    (tf.data.Dataset.from_tensors(GOOD), TypeError, "one of its batches"),
    (GOOD.astype(complex), TypeError, "complex128"),
    (GOOD.astype("U3"), TypeError, "<U3"),
    (GOOD[..., 0], ValueError, "images[..., None]"),
    (GOOD[:0], ValueError, "n of at least 1"),
    (GOOD * 510, ValueError, "divide by 255"),
    (GOOD - 1, ValueError, "rescale"),
    (GOOD * 2.66, ValueError, "rescale"),
    (GOOD * 600, ValueError, "rescale"),
    (GOOD + np.nan, ValueError, "NaN"),
    (GOOD / 0.0, ValueError, "infinite"),
    ([[0.5], [0.5, 0.5]], ValueError, "different lengths"),
]


@pytest.mark.parametrize("values, kind, word", WRONG_IMAGES)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_images_refused(values, kind, word):
    with pytest.raises(kind) as error:
        checks.images("my images", values, (3, 4, 1))
    text = str(error.value)
    assert GRAMMAR.fullmatch(text) and text.startswith("my images ") and word in text, text


def test_the_ends_of_the_unit_interval_belong_to_it():
    checks.unit_interval("images", np.array([0.0, 1.0]))
    for value in (np.nextafter(0, -1), np.nextafter(1, 2)):
        with pytest.raises(ValueError):
            checks.unit_interval("images", np.array([0.5, value]))


@pytest.mark.parametrize(
    "given",
    [
        GOOD,
        (GOOD, np.zeros(2)),
        GOOD.tolist(),
        tf.data.Dataset.from_tensors(GOOD),
        tf.data.Dataset.from_tensors((GOOD, [0, 1])),
    ],
    ids=["array", "pair", "list", "data set", "data set of pairs"],
)
def test_what_fit_may_be_given(given):
    checks.training_images("images", given, (3, 4, 1))
    with pytest.raises(ValueError, match=r"\(n, 4, 3, 1\)"):
        checks.training_images("images", given, (4, 3, 1))


@pytest.mark.parametrize(
    "given, kind, word",
    [
        (None, TypeError, "datasets.load"),
        ("mnist", TypeError, "datasets.load"),
        (tf.data.Dataset.from_tensors(GOOD).take(0), ValueError, "without any batch"),
        (tf.data.Dataset.from_tensors({"image": GOOD}), TypeError, "example['image']"),
    ],
)
def test_what_fit_may_not_be_given(given, kind, word):
    with pytest.raises(kind) as error:
        checks.training_images("images", given, (3, 4, 1))
    assert GRAMMAR.fullmatch(str(error.value)) and word in str(error.value), error.value


def test_options_of_an_optimizer_that_replicas_would_not_share():
    plain, clipping = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, global_clipnorm=2.0)
    checks.optimizer(plain, 2)
    checks.optimizer(clipping, 1)
    for optimizer in (clipping, keras.mixed_precision.LossScaleOptimizer(clipping)):
        with pytest.raises(ValueError, match="global_clipnorm is 2.0; it must be None with 2 replicas") as error:
            checks.optimizer(optimizer, 2)
        assert GRAMMAR.fullmatch(str(error.value))
