"""The first run on a GPU: the command gpu_check without one, its bounds, and what TF32 would change.

On a GPU with TF32, TensorFlow rounds the operands of float32 matrix products and convolutions to 10 bits of mantissa,
unless it is told not to. `tf32` does the same to every product that this project's models and Keras's layers ask for.
"""

import argparse
import contextlib
import importlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

from tf_isvae import datasets, estimators, posteriors, zoo
from tf_isvae.commands import gpu_check

FLOAT32, TF32, BFLOAT16 = gpu_check.ARITHMETICS
# Those that encode or measure; so do some of scripts/.
COMMANDS = ("evaluate", "export", "search", "compare_retrieval", "compare_outliers")


def rounded(x):
    """float32 to the nearest number with 10 bits of mantissa, ties to the even one."""
    bits = tf.bitcast(x, tf.uint32)
    last = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32)), tf.constant(1, tf.uint32))
    up = bits + tf.constant(0xFFF, tf.uint32) + last
    return tf.bitcast(tf.bitwise.bitwise_and(up, tf.constant(0xFFFFE000, tf.uint32)), tf.float32)


def of_rounded_operands(product):
    """The same product, whose two operands are rounded, and in its gradients the one that comes from behind as well."""

    def call(x, y, *args, **kwargs):
        @tf.custom_gradient
        def both(x, y):
            x, y = rounded(x), rounded(y)

            def gradient(upstream):
                with tf.GradientTape() as tape:
                    tape.watch((x, y))
                    value = product(x, y, *args, **kwargs)
                return tape.gradient(value, (x, y), output_gradients=rounded(upstream))

            return product(x, y, *args, **kwargs), gradient

        return both(tf.convert_to_tensor(x), tf.convert_to_tensor(y))

    return call


@contextlib.contextmanager
def tf32():
    """Inside, products are TF32's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "matmul", of_rounded_operands(tf.matmul))
        for name in ("convolution", "conv_transpose"):
            patch.setattr(tf.nn, name, of_rounded_operands(getattr(tf.nn, name)))
        yield


def digits(n):
    return next(iter(datasets.load("digits", "test", batch_size=n)))


def terms(model, images, step=1):
    """eta, -ELBO and the gradient at samples and weights that do not depend on how eta is rounded.

    `step` -1: of the images in the opposite order.
    """
    rng = np.random.default_rng(0)
    units = model.latent.encoder_units
    z = model.latent.posterior(tf.constant(rng.normal(size=(len(images), units)), tf.float32)).sample(2, seed=(0, 1))
    weights = tf.constant(10 * rng.normal(size=(2, len(images))), tf.float32)
    backwards = images[::step], z[:, ::step], weights[:, ::step]
    eta, _, negative_elbo, gradient = gpu_check.terms(model, *backwards, len(images))
    return eta.numpy(), negative_elbo.numpy(), gradient.numpy()


def relative(given, expected):
    return np.sqrt(np.mean((given - expected) ** 2) / np.mean(expected**2))


def test_rounding_is_that_of_tf32():
    """Against NumPy's mantissas: 1.m of 10 bits is an integer of 11, which np.round rounds to even."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=1000) * 10.0 ** rng.integers(-20, 20, 1000), [0, 1 + 2**-11, 1 + 3 * 2**-11, -1]]
    )
    x = x.astype(np.float32)
    mantissa, exponent = np.frexp(x.astype(np.float64))
    np.testing.assert_array_equal(rounded(tf.constant(x)), np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent))


@pytest.mark.parametrize(
    "name", ["fc_bvae", "cnn_cvae", *(pytest.param(name, marks=pytest.mark.all) for name in ("fc_cvae", "cnn_bvae"))]
)
def test_the_bounds_tell_one_arithmetic_from_another(name):
    """What TF32 does lies within its own bounds, and far outside those of float32: a GPU that uses it unasked is found.

    The order of a batch changes no more than float32's bounds allow.
    """
    model, images = zoo.build(name, seed=0), digits(64)
    expected = terms(model, images)
    with tf32():
        given = terms(model, images)
    narrow, wide = (gpu_check.bounds(model, arithmetic, 64) for arithmetic in (FLOAT32, TF32))
    errors = [relative(value, exact) for value, exact in zip(given, expected, strict=True)]
    assert np.all(np.array(errors) < wide)
    assert errors[0] > 5 * narrow.eta
    backwards = terms(model, images, -1)
    errors = [
        relative(value[::step], exact) for value, exact, step in zip(backwards, expected, (-1, -1, 1), strict=True)
    ]
    assert np.all(np.array(errors) < narrow)


@pytest.mark.parametrize("name", [*COMMANDS, "compare_clusters", "learn_prior", "reproduce_paper"])
def test_commands_that_encode_leave_tf32_out(name, monkeypatch):
    """Before anything else; importing the library, and training, leave TensorFlow's setting alone."""
    switch = tf.config.experimental.enable_tensor_float_32_execution
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    monkeypatch.syspath_prepend(ROOT / "scripts")
    command = importlib.import_module(f"tf_isvae.commands.{name}" if name in COMMANDS else name)
    switch(True)
    try:
        with contextlib.suppress(AttributeError):
            command.prepare(argparse.Namespace())
        assert not tf.config.experimental.tensor_float_32_execution_enabled()
    finally:
        switch(before)


@pytest.mark.all
def test_the_check_without_a_gpu(apart):
    """Two logical devices of the CPU, alone and mirrored, each in both precisions: a row each, within the bounds."""
    small = (
        "--models",
        "fc_bvae",
        "--steps",
        "3",
        "--batch-size",
        "32",
        "--timed-steps",
        "1",
        "--timed-batch-size",
        "32",
    )
    at_first, printed = apart("check_of_gpus", *small, devices=2, timeout=600)
    assert at_first, "importing the library changed whether TensorFlow computes in TF32"
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| fc_bvae")]
    arithmetics = {row[1] for row in rows}
    assert "float32" in arithmetics and ("mixed_bfloat16" in arithmetics) != ("mixed_bfloat16 is left out" in printed)
    assert [row[2] for row in rows] == ["CPU:0", "CPU:1", "mirrored over 2"] * len(arithmetics)
    assert all(len(row) == len(gpu_check.COLUMNS) for row in rows)
    assert "float32, TF32 is left out: a CPU has no TF32." in printed and "no GPU: 2 logical devices" in printed
    assert printed.endswith("every figure lies within its bound\n")


@pytest.mark.all
def test_what_tf32_changes(prepared):
    """Of the trained models, on 1,000 test images: what docs/distributed.md says of it (pytest -s shows the table)."""
    prepared("mnist")
    images = next(iter(datasets.load("mnist", "test", batch_size=1000)))
    print("\n| model | ELBO, mean | of one image | ln q(z) of one z | codes | gradient | ln p(x) of one image |")
    print("|---|---|---|---|---|---|---|")
    for name in zoo.names():
        model = zoo.load(name)
        exact = of_trained(model, images)
        with tf32():
            given = of_trained(model, images, exact["z"])
        elbo, log_q = (given[key] - exact[key] for key in ("elbo", "log_q"))
        codes = np.mean(given["codes"] != exact["codes"])
        gradient = relative(given["gradient"], exact["gradient"])
        log_p = np.abs(given["log_p"] - exact["log_p"]).max() if "log_p" in exact else 0.0
        print(
            f"| `{name}` | {elbo.mean():+.4f} | {np.abs(elbo).max():.3f} | {np.abs(log_q).max():.3f} | {codes:.1e} "
            f"| {gradient:.1e} | {log_p:.3f} |"
        )
        assert np.any(elbo), "the operands were not rounded"
        assert abs(elbo.mean()) < 0.05 and np.abs(log_q).max() < 1 and codes < 5e-3 and gradient < 0.1


def of_trained(model, images, z=None):
    q = posteriors.of(model.latent.posterior(model.encoder(images)))
    z = q.sample(2, seed=(0, 1)) if z is None else z
    enumerable = model.latent.enumerable
    every = model.latent.from_codes(model.latent.all_codes()) if enumerable else None
    estimator = estimators.Enumerated() if enumerable else estimators.LeaveOneOut(2)
    with tf.GradientTape() as tape:
        q = posteriors.of(model.latent.posterior(model.encoder(images)))
        log_p = model.log_likelihood_of(images)
        kl = model.prior.kl(q)
        if enumerable:
            estimate = estimator(q, log_p)
        else:
            f = log_p(z)
            value = tf.reduce_mean(f, axis=0)
            weights = tf.stop_gradient(f - f[::-1])
            estimate = estimators.Estimate(value, value + q.score_surrogate(z, weights))
        kl = q.negative_entropy() - tf.reduce_mean(model.prior.log_prob(z), axis=0) if kl is None else kl
        loss = tf.reduce_mean(kl - estimate.surrogate)
    gradient = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    found = {
        "z": z,
        "elbo": (estimate.value - kl).numpy(),
        "log_q": (q.log_prob_of_each(every, "a test") if enumerable else q.log_prob(z)).numpy(),
        "codes": model.latent.codes(model.encoder(images)).numpy(),
        "gradient": np.concatenate([np.ravel(part) for part in gradient]),
    }
    if enumerable:
        log_joint = model.log_likelihood_of(images)(every[:, None]) + model.prior.log_prob(every)[:, None]
        found["log_p"] = tf.reduce_logsumexp(log_joint, axis=0).numpy()
    return found
