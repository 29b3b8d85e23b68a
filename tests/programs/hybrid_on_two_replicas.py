"""Hybrids that two replicas train, and what one device makes of the same batches."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
import test_products

from tf_isvae import callbacks, fit_clusters

ALONE = 1  # epochs of the Gaussians


def in_scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def build(strategy, rate, **options):
    with in_scope(strategy):
        model = test_products.build(test_products.LATENTS["category and gaussians"](), "Hybrid+Enumerated", **options)
        # A standard deviation of 1e-6: the replicas' own noise makes no difference then.
        model.encoder.layers[-1].bias.assign([0.0] * 5 + [-60.0] * 2)
        model.compile(keras.optimizers.SGD(rate), run_eagerly=not strategy)  # eagerly: nothing to trace
    return model


def fit(model, images, epochs, **arguments):
    how = {"batch_size": len(images) // 2, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(images, epochs=epochs, **how).history["loss"]


def flat(model):
    return np.concatenate([w.numpy().ravel() for w in model.trainable_variables])


class Copy(keras.callbacks.Callback):
    """Copies the weights that a model has at the end of the epochs of its Gaussians, and as the next epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == ALONE:
            self.started = flat(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == ALONE - 1:
            self.weights = self.model.get_weights()


def warm_start(strategy, images):
    """The weights after the mixture has started the categories, after all, the losses of the epochs together.

    On two replicas by the callback; on one device by hand, from the weights that the two had before the mixture: in
    those epochs the categories are noise, which each replica draws for itself.
    """
    model = build(strategy, 1e-3, prior="clusters")
    copy = Copy()
    losses = fit(model, images, ALONE + 2, callbacks=[callbacks.WarmStart(images, ALONE), copy])
    one = build(None, 1e-3, prior="clusters")
    one.set_weights(copy.weights)
    fit_clusters(one, images)
    started = flat(one)
    losses_of_one = fit(one, images, 2)
    return (copy.started, flat(model), losses[ALONE:]), (started, flat(one), losses_of_one)


def main():
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = []
    for strategy in (None, mirrored):
        model = build(strategy, 0.1)
        losses = fit(model, test_products.IMAGES[:4], 2)
        results.append((flat(model), losses))
    images = np.random.default_rng(1).random((24, 3, 2, 1), np.float32)
    return results, warm_start(mirrored, images)
