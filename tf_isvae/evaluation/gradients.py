"""The noise and the bias of an estimator's gradient (paper, figures 6 and 12)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tf_isvae import checks, estimators, objective
from tf_isvae.chunks import parts_of
from tf_isvae.model import DiscreteVAE, check_model


def gradient_variance(
    model: DiscreteVAE, images, draws: int = 100, estimator: Callable | None = None, seed: int = 0
) -> float:
    """The variance of the estimated gradient (paper, figures 6 and 12), in nats squared per encoder parameter.

    The gradient is that of the batch mean of E_q[ln p(x|z)] with respect to one encoder weight; of E_q[ln p(x|z) +
    ln p(z)] if the prior's KL has no closed form, since the estimator is then given that. Its variance is taken over
    `draws` estimates on the same images with fresh noise, and averaged over all encoder weights and biases.

    Args:
        model: a DiscreteVAE, on which no weight changes.
        images: one batch (n, H, W, C) in [0, 1]; the variance falls as 1/n.
        draws: how many estimates, at least 2.
        estimator: the one to measure; default the model's own.
        seed: an integer that fixes the noise.

    Raises:
        TypeError, ValueError: an argument is not as described, or the encoder has no trainable weights.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> images = np.random.default_rng(0).random((8, 4, 4, 1), np.float32)
        >>> evaluation.gradient_variance(model, images, draws=10) > 0
        True
        >>> evaluation.gradient_variance(model, images, draws=10, estimator=estimators.Enumerated()) < 1e-9
        True
    """
    draws = checks.integer("gradient_variance: draws", draws, 2)
    seed = checks.integer("seed", seed, None)
    return gradient_variance_function(model, images, estimator)(draws, seed)


def gradient_variance_function(
    model: DiscreteVAE, images, estimator: Callable | None = None
) -> Callable[[int, int], float]:
    """A function from (draws, seed) to `gradient_variance` at the model's current weights.

    It is compiled once, so it is the one to call again and again while a model trains.

    Args, Raises: as `gradient_variance`.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> variance = evaluation.gradient_variance_function(model, np.zeros((8, 4, 4, 1), np.float32))
        >>> variance(10, 0) == variance(10, 0) != variance(10, 1)
        True
    """
    check_model(model)
    gradient = _gradient_function(model, images, estimator or model.estimator)

    def variance(draws: int, seed: int) -> float:
        # Welford's running moments: the draws themselves need not be kept.
        mean = squares = 0.0
        for i, sample in enumerate(_draw(gradient, draws, seed), start=1):
            before = sample - mean
            mean = mean + before / i
            squares = squares + before * (sample - mean)
        return float(np.mean(squares) / (draws - 1))

    return variance


def estimator_bias(
    model: DiscreteVAE,
    images,
    estimator: Callable | None = None,
    reference: Callable | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """A z-test of an estimator's mean gradient against the exact one, or against another estimator's.

    The gradients with respect to all encoder weights are compared along nine directions: that of the reference, and
    eight random ones. (A test of every single weight would find "bias" in any estimator: weights that matter for rare
    codes only have gradients that are nearly always 0, whose mean no feasible number of draws shows to be normal.)

    Args:
        model: a DiscreteVAE.
        images: one batch (n, H, W, C) in [0, 1].
        estimator: the one to test; default the model's own.
        reference: default Enumerated(), which is exact and needs few codes.
        draws: estimates of each of the two, at least 2.
        seed: an integer that fixes the noise and the random directions.

    Returns:
        A dict of
        - relative_bias: (mean - reference) along the reference, as a share of its length; 0 without bias. NaN if the
          reference is no more than the rounding of float32. A sampled reference is longer by its own noise.
        - largest_z: the largest |z| of the nine.
        - p_value: the probability of a larger one without bias, by Bonferroni's bound. Below 1e-4: biased.

    Raises:
        TypeError, ValueError: an argument is not as described, or the encoder has no trainable weights.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> images = np.random.default_rng(0).random((8, 4, 4, 1), np.float32)
        >>> found = evaluation.estimator_bias(model, images, estimators.DisARM(), draws=50)
        >>> sorted(found), found["p_value"] > 1e-4
        (['largest_z', 'p_value', 'relative_bias'], True)
    """
    import scipy.stats

    check_model(model)
    draws = checks.integer("estimator_bias: draws", draws, 2)
    seed = checks.integer("seed", seed, None)
    reference = estimators.get(reference or "Enumerated")
    exact = isinstance(reference, estimators.Estimator) and reference.exact
    known = _gradient_function(model, images, reference)
    # Another seed, so that the two means are independent; and draws of their own for the direction, since the mean of
    # the noise that gave a direction is not 0 along it.
    first = 1 if exact else max(1, draws // 2)
    stream = _draw(known, first + draws, seed + 1)
    along = sum(itertools.islice(stream, first)) / first
    length, rounding = np.linalg.norm(along), _rounding(model, images)
    random = np.random.default_rng(abs(seed)).normal(size=(8, len(along)))
    directions = np.stack([along / max(length, rounding), *random / np.sqrt(len(along))])
    expected = np.stack([directions @ g for g in ([along] if exact else stream)])
    tested = _gradient_function(model, images, estimator or model.estimator)
    found = np.stack([directions @ g for g in _draw(tested, draws, seed)])
    variance = found.var(axis=0, ddof=1) / draws + (0.0 if exact else expected.var(axis=0, ddof=1) / draws)
    difference = found.mean(axis=0) - expected.mean(axis=0)
    z = float((np.abs(difference) / np.sqrt(variance + max(rounding, 1e-6 * length) ** 2)).max())
    return {
        "relative_bias": float(difference[0] / length) if length > rounding else float("nan"),
        "largest_z": z,
        # Student's t, since the variances are estimates.
        "p_value": float(min(1.0, 2 * scipy.stats.t.sf(z, draws - 1) * len(directions))),
    }


def variance_by_certainty(model: DiscreteVAE, images, draws: int = 100) -> dict[str, float]:
    """How certain the bits are, and how the variance of the paper's gradient depends on it.

    The gradient is that of E_q[ln p(x|z)] of one image with respect to eta of one bit (paper, eq. 20), estimated with
    one sample. In theory its variance is q (1 - q) ((1 - q) a + q b)^2, which falls to 0 as q nears 0 or 1.

    Args:
        model: a DiscreteVAE with bits.
        images: (n, H, W, C) in [0, 1].
        draws: estimates over which the variance is taken, at least 2.

    Returns:
        A dict of
        - sure_bits: the share of bits with q below 0.01 or above 0.99, 0 to 1.
        - unsure_bits: the share of bits with q from 0.25 to 0.75.
        - eta_variance_sure, eta_variance_unsure: the mean variance of each, nats squared; left out if there are none.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> found = evaluation.variance_by_certainty(model, np.zeros((2, 4, 4, 1), np.float32), draws=5)
        >>> found["sure_bits"], found["unsure_bits"]  # q is near 1/2 before training
        (0.0, 1.0)
    """
    check_model(model)
    draws = checks.integer("variance_by_certainty: draws", draws, 2)
    images = tf.constant(checks.images("images", images, model.image_shape))
    if model.latent.bits(parts_of(model.encode(images))[0]) is None:
        raise ValueError(f"model has a {type(model.latent).__name__}; it must have bits: BernoulliLatent.")
    eta = tf.cast(model.encoder(images, training=False), tf.float32)
    estimator = estimators.ImportanceSampling()

    @tf.function(autograph=False)
    def gradient(draw):
        with tf.GradientTape() as tape:
            tape.watch(eta)
            posterior = model.latent.posterior(eta)
            surrogate = estimator(posterior, model.log_likelihood_of(images), tf.stack([0, draw])).surrogate
        return tape.gradient(surrogate, eta)

    variance = np.var([gradient(tf.constant(draw)).numpy() for draw in range(draws)], axis=0, ddof=1, dtype=np.float64)
    q = model.latent.posterior(eta).mean().numpy()
    sure, unsure = (q < 0.01) | (q > 0.99), (q > 0.25) & (q < 0.75)
    figures = {"sure_bits": float(sure.mean()), "unsure_bits": float(unsure.mean())}
    for name, chosen in (("sure", sure), ("unsure", unsure)):
        if chosen.any():
            figures[f"eta_variance_{name}"] = float(variance[chosen].mean())
    return figures


def _gradient_function(model, images, estimator):
    """A compiled function from (seed, draw), integers, to one estimate of the gradient of E_q[f(z)], flattened.

    f is what training gives the estimator: ln p(x|z), with ln p(z) if the prior's KL has no closed form. The gradient
    is that of the mean over `images` with respect to the encoder's weights.
    Raises ValueError if all of them are frozen.
    """
    estimators.check(estimator, model.latent)
    weights = model.encoder.trainable_variables
    if not weights:
        raise ValueError(
            "the encoder has no trainable weights, whose gradients are asked for: encoder.trainable = True."
        )
    images = tf.constant(checks.images("images", images, model.image_shape))

    log_likelihood = model.log_likelihood_of(images)

    @tf.function(autograph=False)
    def gradient(seed, draw):
        noise = tf.random.experimental.stateless_fold_in(tf.stack([seed, 0]), draw)
        with tf.GradientTape() as tape:
            posterior = model.latent.posterior(model.encoder(images, training=False))
            f, _ = objective.estimated(model.prior, posterior, log_likelihood)
            surrogate = tf.reduce_mean(estimator(posterior, f, noise).surrogate)
        return _flat(tape, surrogate, weights)

    return gradient


def _flat(tape: tf.GradientTape, target, weights) -> tf.Tensor:
    gradients = tape.gradient(target, weights, unconnected_gradients="zero")
    return tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0)


def _in_a_replica(function, *arguments) -> np.ndarray:
    """function(*arguments) as float64; run by the first replica if the caller is inside `with strategy.scope()`.

    (Gradients with respect to a strategy's variables can be taken in a replica only.)
    """
    if tf.distribute.in_cross_replica_context():
        strategy = tf.distribute.get_strategy()
        result = strategy.experimental_local_results(strategy.run(function, arguments))[0]
    else:
        result = function(*arguments)
    return result.numpy().astype(np.float64)


def _draw(gradient, draws: int, seed: int) -> Iterator[np.ndarray]:
    """`draws` estimates of the gradient, float64, each with noise of its own."""
    for i in range(draws):
        yield _in_a_replica(gradient, tf.constant(seed), tf.constant(i))


def _rounding(model, images) -> float:
    """A bound, by order of magnitude, of the length that float32's rounding gives to a gradient that is 0.

    A gradient with respect to eta is made of differences of ln p(x|z), each with an error of about 1e-6 of it.
    """
    weights = model.encoder.trainable_variables
    images = checks.images("images", images, model.image_shape)

    def jacobian():
        with tf.GradientTape() as tape:
            eta = tf.reduce_mean(tf.reduce_sum(tf.cast(model.encoder(images, training=False), tf.float32), -1))
        return _flat(tape, eta, weights)

    log_likelihood = np.abs(model.elbo(images, seed=0)).mean()
    return 1e-6 * float(log_likelihood * np.linalg.norm(_in_a_replica(jacobian)))
