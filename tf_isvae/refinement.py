"""`refine` of `DiscreteVAE.encode`, `elbo` and `log_likelihood`: gradient steps on each image's own q(z|x).

The encoder is one network for all images, and leaves nats that a few hundred steps find (semi-amortised inference,
Kim et al. 2018, arXiv:1802.02550). A loss is a function of eta (batch, units) and the step: the negative ELBO of the
images, nats, summed over the batch, so that each image's gradient is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from tf_isvae import latents, posteriors

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Adam's rate at the beginning, which a cosine takes to 0, and how many estimates `drawn_loss` averages.
_RATE = 0.1
_DRAWS = 8


def exact_loss(latent: latents.Latent, z: tf.Tensor, log_joint: tf.Tensor) -> Loss:
    """The negative ELBO as a sum over all z (codes, units), with ln p(x|z) + ln p(z) of each (codes, batch)."""

    def loss(eta, step):
        log_q = posteriors.of(latent.posterior(eta)).log_prob_of_each(z, "refine")
        return tf.reduce_sum(tf.exp(log_q) * (log_q - log_joint))

    return loss


def drawn_loss(latent: latents.Latent, elbo_terms: Callable, images: tf.Tensor, seed: tf.Tensor) -> Loss:
    """What has the gradient of the negative ELBO as estimated: the mean of eight estimates.

    `elbo_terms` is a function from a posterior, as many images and a stateless seed to the two terms of eq. 1. The seed
    and the step determine the noise.
    """
    many_images = tf.tile(images, (_DRAWS, 1, 1, 1))

    def loss(eta, step):
        q = latent.posterior(tf.tile(eta, (_DRAWS, 1)))
        estimate, kl = elbo_terms(q, many_images, tf.random.experimental.stateless_fold_in(seed, step))
        return tf.reduce_sum(kl - estimate.surrogate) / _DRAWS

    return loss


def refined(eta: tf.Tensor, loss: Loss, steps: int) -> tf.Tensor:
    """eta, float32, after so many steps of Adam on each image's loss."""

    def advance(step, eta, mean, square):
        with tf.GradientTape() as tape:
            tape.watch(eta)
            value = loss(eta, step)
        gradient = tape.gradient(value, eta)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * tf.square(gradient)
        done = tf.cast(step + 1, tf.float32)
        rate = _RATE * 0.5 * (1 + tf.cos(math.pi * tf.cast(step, tf.float32) / steps))
        change = mean / (1 - 0.9**done) / (tf.sqrt(square / (1 - 0.999**done)) + 1e-8)
        return step + 1, eta - rate * change, mean, square

    eta = tf.cast(eta, tf.float32)
    begin = (tf.constant(0), eta, tf.zeros_like(eta), tf.zeros_like(eta))
    return tf.while_loop(lambda step, *_: step < steps, advance, begin)[1]
