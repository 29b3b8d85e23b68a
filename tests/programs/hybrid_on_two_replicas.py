"""A hybrid that two replicas train, and what one device makes of the same batches."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
import test_products


def main():
    results = []
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = test_products.build(test_products.LATENTS["category and gaussians"](), "Hybrid+Enumerated")
            # A standard deviation of 1e-6: the replicas' own noise makes no difference then.
            model.encoder.layers[-1].bias.assign([0.0] * 5 + [-60.0] * 2)
            model.compile(keras.optimizers.SGD(0.1))
        history = model.fit(test_products.IMAGES[:4], batch_size=4, epochs=2, shuffle=False, verbose=0).history
        results.append((np.concatenate([w.numpy().ravel() for w in model.trainable_variables]), history["loss"]))
    return results
