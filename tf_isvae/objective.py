"""What a training step minimises: the two terms of eq. 1, and what stands for them in a phase of a run.

    loss = -E_q[ln p(x|z)] + KL(q(z|x) || p(z)), nats per image

An estimator makes the first term, with the gradient; the second has a closed form, or joins the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tf_isvae import estimators, latents, posteriors, priors

# From (posterior, function of z, seed) to what an estimator gives.
Estimating = Callable[[object, estimators.LogLikelihood, tf.Tensor], estimators.Estimate]

# While categories wait, only noise is asked of what is discrete: one decoder evaluation an image.
GAUSSIANS_ALONE = estimators.Hybrid(estimators.ImportanceSampling())


@dataclasses.dataclass(frozen=True)
class Phase:
    """What is different in the first epochs of a run. Without arguments: nothing.

    Args:
        estimator: of training steps, in place of the model's own (callbacks.FirstEstimator).
        prior_waits: a prior that learns does not count for encoder and decoder (callbacks.WaitingPrior).
        categories_wait: what is discrete of z says nothing of x (callbacks.WarmStart).
        distortion: what the encoder sees while categories wait, in place of the model's own `distortion`.
    """

    estimator: Callable | None = None
    prior_waits: bool = False
    categories_wait: bool = False
    distortion: float | None = None

    def training_estimator(self, own: Callable) -> Callable:
        """What estimates in training steps, of a model whose own estimator is this one."""
        if self.categories_wait:
            return GAUSSIANS_ALONE
        return own if self.estimator is None else self.estimator


def estimated(
    prior: priors.Prior, posterior, log_likelihood: estimators.LogLikelihood, kl_weight=1.0
) -> tuple[estimators.LogLikelihood, tf.Tensor | None]:
    """The function f whose E_q[f(z)] is left to the estimator, and the KL (batch,) if it has a closed form.

    f is ln p(x|z); without a closed form of the KL, ln p(x|z) + kl_weight * ln p(z).
    """
    kl = prior.kl(posterior)
    if kl is not None:
        return log_likelihood, kl
    return lambda z: log_likelihood(z) + kl_weight * prior.log_prob(z), None


def terms(
    estimate: Estimating,
    prior: priors.Prior,
    posterior,
    log_likelihood: estimators.LogLikelihood,
    seed: tf.Tensor,
    kl_weight=1.0,
) -> tuple[estimators.Estimate, tf.Tensor]:
    """The two terms of eq. 1, per image: the estimate of E_q[ln p(x|z)], and the KL (batch,) in nats.

    Of any q(z|x) with batch shape (batch,). The gradient of kl_weight * KL - surrogate is that of the loss.
    """
    function, kl = estimated(prior, posterior, log_likelihood, kl_weight)
    joint = estimate(posterior, function, seed)
    if kl is not None:
        return joint, kl
    # The gradient of E_q[ln p(z)] comes from the estimator, within the surrogate; its value from the estimator too,
    # which takes the same samples for the same seed.
    log_prior = tf.stop_gradient(estimate(posterior, prior.log_prob, seed).value)
    return estimators.Estimate(joint.value - kl_weight * log_prior, joint.surrogate), _kl(posterior, log_prior)


def training_terms(
    *,
    phase: Phase,
    estimate: Estimating,
    latent: latents.Latent,
    prior: priors.Prior,
    posterior,
    log_likelihood: estimators.LogLikelihood,
    seed: tf.Tensor,
    kl_weight,
) -> tuple[estimators.Estimate, tf.Tensor, tf.Tensor]:
    """As `terms`, and the loss of each image (batch,) in this phase.

    While the prior waits, encoder and decoder train with the latent's own prior, and the prior on a sample of q. While
    the categories wait, it takes no part.
    """
    if not (phase.categories_wait or phase.prior_waits):
        value, kl = terms(estimate, prior, posterior, log_likelihood, seed, kl_weight)
        return value, kl, kl_weight * kl - value.surrogate
    value, own_kl = estimate(posterior, log_likelihood, seed), latent.kl(posterior)
    losses = kl_weight * own_kl - value.surrogate
    if phase.categories_wait:
        return value, own_kl, losses
    log_prior = prior.log_prob(tf.stop_gradient(posterior.sample(seed=seed)))
    kl = prior.kl(posterior)
    return value, _kl(posterior, log_prior) if kl is None else kl, losses - log_prior


def _kl(posterior, log_prior: tf.Tensor) -> tf.Tensor:
    """KL (batch,) without a closed form: -H(q) - E_q[ln p(z)], from an estimate of the second."""
    return posteriors.of(posterior).negative_entropy() - log_prior
