"""What a trained model is worth: gradient noise and bias of estimators, use of the codes, clusters and retrieval."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import scipy.optimize
import scipy.stats
import tensorflow as tf

from tf_isvae import checks, estimators
from tf_isvae.model import DiscreteVAE, check_estimator, check_model, only_images


def _gradient_function(model, images, estimator):
    """A compiled function of (seed, draw), integers, to one estimate of the gradient of E_q[ln p(x|z)], flattened.

    The gradient is that of the mean over `images`, by the encoder's weights. Raises ValueError where all are frozen.
    """
    check_estimator(estimator, model.latent)
    weights = model.encoder.trainable_variables
    if not weights:
        raise ValueError(
            "the encoder has no trainable weights, whose gradients are asked for: encoder.trainable = True."
        )
    images = tf.constant(checks.images("images", images, model.image_shape))

    @tf.function(autograph=False)
    def gradient(seed, draw):
        noise = tf.random.experimental.stateless_fold_in(tf.stack([seed, 0]), draw)
        with tf.GradientTape() as tape:
            posterior = model.latent.posterior(model.encoder(images, training=False))
            surrogate = tf.reduce_mean(estimator(posterior, model.log_likelihood_of(images), noise).surrogate)
        return _flat(tape, surrogate, weights)

    return gradient


def _flat(tape: tf.GradientTape, target, weights) -> tf.Tensor:
    gradients = tape.gradient(target, weights, unconnected_gradients="zero")
    return tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0)


def _in_a_replica(function, *arguments) -> np.ndarray:
    """function(*arguments) as float64, also where the caller is inside `with strategy.scope()`, by its first replica.

    (Gradients by a strategy's variables can be taken in a replica only.)
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
    """A bound, by order of magnitude, of what float32 leaves of the length of a gradient that is 0.

    A gradient by eta is made of differences of ln p(x|z), each with an error of about 1e-6 of it.
    """
    weights = model.encoder.trainable_variables
    images = checks.images("images", images, model.image_shape)

    def jacobian():
        with tf.GradientTape() as tape:
            eta = tf.reduce_mean(tf.reduce_sum(tf.cast(model.encoder(images, training=False), tf.float32), -1))
        return _flat(tape, eta, weights)

    log_likelihood = np.abs(model.elbo(images, seed=0)).mean()
    return 1e-6 * float(log_likelihood * np.linalg.norm(_in_a_replica(jacobian)))


def gradient_variance(model: DiscreteVAE, images, draws: int = 100, estimator=None, seed: int = 0) -> float:
    """The variance of the estimated gradient (paper, figures 6 and 12), in nats squared per encoder parameter.

    The gradient is that of the batch mean of E_q[ln p(x|z)] by one encoder weight; its variance is taken over `draws`
    estimates on the same images with fresh noise, and averaged over all encoder weights and biases.

    Args:
        images: one batch (n, H, W, C) in [0, 1]; the variance falls as 1/n.
        estimator: the one to measure; default the model's own.
    """
    draws = checks.integer("gradient_variance: draws", draws, 2)
    seed = checks.integer("seed", seed, None)
    return gradient_variance_function(model, images, estimator)(draws, seed)


def gradient_variance_function(model: DiscreteVAE, images, estimator=None) -> Callable[[int, int], float]:
    """A function of (draws, seed): `gradient_variance` as the model then is, to be called again as training goes on."""
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
    model: DiscreteVAE, images, estimator=None, reference=None, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """A z-test of an estimator's mean gradient against the exact one, or against another estimator's.

    The gradients by all encoder weights are compared along nine directions: that of the reference, and eight random
    ones. (A test of every single weight would find "bias" in any estimator: weights that matter for rare codes only
    have gradients that are nearly always 0, whose mean no feasible number of draws shows to be normal.)

    Args:
        estimator: the one to test; default the model's own.
        reference: default Enumerated(), which is exact and needs few codes.

    Returns:
        relative_bias: (mean - reference) along the reference, as a share of its length; 0 without bias. NaN where the
            reference is no more than the rounding of float32. A sampled reference is longer by its own noise.
        largest_z: the largest |z| of the nine.
        p_value: the probability of a larger one without bias, by Bonferroni's bound. Below 1e-4: biased.
    """
    check_model(model)
    draws = checks.integer("estimator_bias: draws", draws, 2)
    seed = checks.integer("seed", seed, None)
    reference = reference or estimators.Enumerated()
    exact = isinstance(reference, estimators.Enumerated)
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


def code_statistics(model: DiscreteVAE, images) -> dict:
    """How a whole data set uses the codes.

    Args:
        images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, whose labels are ignored if it has any.

    Returns:
        active_units: entries of the posterior mean whose variance over the images exceeds 0.01 (Burda et al. 2016).
        kl_per_unit: (units,) nats, the KL of each bit or Gaussian; for Categorical, (variables,), of each variable.
        codes_used: different codes among the images' modes.
        usage: Categorical: (variables, categories), the share of images in each category; Bernoulli: (units,), the
            share of ones. Not for Gaussian latents.
        perplexity: Categorical: (variables,), exp of the entropy of `usage`: how many categories are in use.
    """
    check_model(model)
    batches = map(only_images, images) if isinstance(images, tf.data.Dataset) else [images]
    latent, codes, means, kls = model.latent, [], [], []
    for batch in batches:
        batch = checks.images("images", batch, model.image_shape)
        logits = np.concatenate(
            [model.encoder(batch[i : i + 1024], training=False) for i in range(0, len(batch), 1024)]
        )
        q = latent.posterior(logits)
        codes.append(latent.codes(logits).numpy())
        means.append(q.mean().numpy())
        kls.append(latent.kl_per_unit(q).numpy())
    if not codes:
        raise ValueError("images come as a data set without any batch; it must have at least 1.")
    codes, means = np.concatenate(codes), np.concatenate(means).astype(np.float64)
    statistics = {
        "active_units": int((means.var(axis=0) > 0.01).sum()),
        "kl_per_unit": np.concatenate(kls).mean(axis=0),
        "codes_used": len(np.unique(codes, axis=0)),
    }
    if latent.code_values == 2 and latent.code_units == latent.units:
        statistics["usage"] = codes.mean(axis=0)
    elif latent.code_values is not None:
        usage = np.stack([np.bincount(column, minlength=latent.code_values) for column in codes.T]) / len(codes)
        statistics["usage"] = usage
        statistics["perplexity"] = np.exp(scipy.stats.entropy(usage, axis=1))
    return statistics


def clustering(codes, labels) -> dict[str, float]:
    """How well codes, read as clusters, match labels.

    Args:
        codes: int (n,) or (n, units); equal rows are one cluster. labels: int (n,).

    Returns:
        accuracy: share of images whose label is the commonest of their cluster (purity).
        matched_accuracy: the same where each label may be given to one cluster only (Hungarian matching).
        nmi: normalised mutual information, 0 to 1.
        classes_found: how many labels are the commonest of some cluster.
        clusters: how many clusters there are.
    """
    from sklearn import metrics  # here, because it takes a second to import

    codes, labels = np.asarray(codes), np.asarray(labels)
    if labels.ndim != 1 or codes.shape[:1] != labels.shape or not len(labels):
        raise ValueError(
            f"codes and labels have shapes {codes.shape} and {labels.shape}; "
            "they must be (n,) or (n, units), and (n,): one label for each code, n at least 1."
        )
    clusters = np.unique(codes.reshape(len(labels), -1), axis=0, return_inverse=True)[1].ravel()
    table = metrics.cluster.contingency_matrix(labels, clusters)
    rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
    return {
        "accuracy": float(table.max(axis=0).sum() / table.sum()),
        "matched_accuracy": float(table[rows, columns].sum() / table.sum()),
        "nmi": float(metrics.normalized_mutual_info_score(labels, clusters)),
        "classes_found": len(np.unique(table.argmax(axis=0))),
        "clusters": table.shape[1],
    }


def _check_bits(names: str, codes, labels) -> tuple[np.ndarray, np.ndarray]:
    codes, labels = np.asarray(codes), np.asarray(labels)
    if codes.ndim != 2 or labels.shape != codes.shape[:1] or not codes.size:
        raise ValueError(
            f"{names} have shapes {codes.shape} and {labels.shape}; they must be (n, bits) and (n,), n at least 1."
        )
    if not np.isin(codes, (0, 1)).all():
        raise ValueError(f"{names}: codes have values from {codes.min()} to {codes.max()}; bits are 0 and 1.")
    return codes.astype(np.float32), labels


def retrieval(codes, labels, query_codes, query_labels, top: int = 100) -> float:
    """Mean average precision of Hamming-distance retrieval: the share of same-label images among the `top` nearest.

    Args:
        codes, labels: (n, bits) in {0, 1} and (n,), the data base. query_codes, query_labels: the queries.

    Ties in distance are kept in the order of the data base.
    """
    top = checks.integer("retrieval: top", top)
    codes, labels = _check_bits("codes and labels", codes, labels)
    query_codes, query_labels = _check_bits("query_codes and query_labels", query_codes, query_labels)
    if query_codes.shape[1] != codes.shape[1]:
        raise ValueError(f"query_codes have shape {query_codes.shape}; they must have {codes.shape[1]} bits, as codes.")
    precisions = []
    for begin in range(0, len(query_codes), 256):
        query = query_codes[begin : begin + 256]
        # |a - b|^2 of bits is their Hamming distance.
        distance = query.sum(1)[:, None] + codes.sum(1)[None] - 2 * query @ codes.T
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :top]
        relevant = labels[nearest] == query_labels[begin : begin + 256, None]
        precision = np.cumsum(relevant, axis=1) / np.arange(1, nearest.shape[1] + 1)
        precisions.append((precision * relevant).sum(1) / np.maximum(1, relevant.sum(1)))
    return float(np.concatenate(precisions).mean())
