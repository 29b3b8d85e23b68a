"""Training one part of a model while the others stand still."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import checks, chunks, priors
from tf_isvae.model import CHUNK, DiscreteVAE, check_model


def fit_prior(
    model: DiscreteVAE,
    images,
    *,
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **fit_arguments,
) -> keras.callbacks.History:
    """Fits the model's prior to codes drawn from q(z|x), with Keras; encoder and decoder stay as they are.

    Of all priors of its kind, that is the one with the greatest ELBO of these images. A prior that learns from the
    first step, with the networks, settles before the codes are used, and most stay idle: so fit it to a model that was
    trained with the uniform prior, and then train all together, `model.compile(...)` and `model.fit(...)`, at a low
    learning rate.

    Args:
        model: a DiscreteVAE with a prior that learns: `model.with_prior("autoregressive")` gives one.
        images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, which is read once.
        epochs: passes over the images; new codes are drawn in each.
        batch_size: images in a step.
        learning_rate: of Adam, at the beginning; a cosine takes it to 0.
        seed: an integer that fixes the codes and the order of the images.
        fit_arguments: further ones of keras.Model.fit, such as callbacks and verbose.

    Returns:
        Keras's History. Its `loss` is -E_q[ln p(z)], nats per image.

    Raises:
        TypeError, ValueError: an argument is not as described, or the prior has nothing to learn.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3, prior="autoregressive")
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
        >>> history = fit_prior(model, images, epochs=2, verbose=0).history
        >>> len(history["loss"])
        2
    """
    check_model(model)
    epochs = checks.integer("fit_prior: epochs", epochs)
    batch_size = checks.integer("fit_prior: batch_size", batch_size)
    learning_rate = checks.positive("fit_prior: learning_rate", learning_rate)
    seed = checks.integer("seed", seed, None)
    if not model.prior.trainable_variables:
        raise ValueError(
            f"the model's prior is {type(model.prior).__name__}, which has nothing to learn; it must be one that has: "
            "model = model.with_prior('autoregressive')."
        )
    eta = _encoded(model, images)
    trainer = _OfPrior(model, seed)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, -(-len(eta) // batch_size) * epochs)
    trainer.compile(optimizer=keras.optimizers.Adam(rate))
    batches = tf.data.Dataset.from_tensor_slices(eta).shuffle(len(eta), seed=seed & 0x7FFFFFFF).batch(batch_size)
    return trainer.fit(batches, epochs=epochs, shuffle=False, **fit_arguments)


def _encoded(model: DiscreteVAE, images) -> np.ndarray:
    """eta (n, encoder_units), float32, of all images."""
    rows = chunks.of_images(images, model.image_shape, CHUNK)
    return np.concatenate([np.asarray(model.encoder(chunk, training=False), np.float32) for _, chunk in rows])


class _OfPrior(keras.Model):
    """A Keras model whose weights are the prior's, and whose data are eta(x)."""

    def __init__(self, model: DiscreteVAE, seed: int):
        super().__init__(name="prior")
        self.latent, self.prior = model.latent, model.prior
        self.noise = priors.stateless_seed(seed)
        self.tracker = keras.metrics.Mean(name="loss")
        self.built = True

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, eta):
        step = tf.cast(self.optimizer.iterations, tf.int32)
        z = self.latent.posterior(eta).sample(seed=tf.random.experimental.stateless_fold_in(self.noise, step))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.prior.log_prob(tf.stop_gradient(z)))
        weights = self.prior.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.tracker.update_state(loss, sample_weight=tf.shape(eta)[0])
        return {"loss": self.tracker.result()}
