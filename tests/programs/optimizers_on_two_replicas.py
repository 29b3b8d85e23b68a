"""What optimizers do on two replicas: weights trained by this package's Adam, and Keras's; those that Muon has moved on
two replicas, and alone."""

import keras
import numpy as np
import tensorflow as tf
from test_optimizers import _trained

from tf_isvae import optimizers


def main():
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    trained = [_trained(adam, mirrored).get_weights() for adam in (optimizers.Adam, keras.optimizers.Adam)]
    return trained, [_moved(strategy) for strategy in (mirrored, tf.distribute.get_strategy())]


def _moved(strategy) -> list[np.ndarray]:
    """Weights after five steps of Muon with gradients, of which each replica has an equal part."""
    rng = np.random.default_rng(0)
    with strategy.scope():
        weights = [keras.Variable(rng.normal(size=shape), dtype="float32") for shape in ((5, 40), (40, 5), (3,))]
        optimizer = optimizers.Muon(0.01, weight_decay=0.1)
        optimizer.build(weights)

    @tf.function
    def step(gradients):
        parts = [gradient / strategy.num_replicas_in_sync for gradient in gradients]
        strategy.run(lambda: optimizer.apply(parts, weights))

    for _ in range(5):
        step([tf.constant(rng.normal(size=weight.shape), tf.float32) for weight in weights])
    return [keras.ops.convert_to_numpy(weight) for weight in weights]
