"""Pairs of weights that are alike if this package's optimizers work on two replicas: after training with its Adam and
with Keras's, and, with gradients that have no noise, with Muon on two replicas and on one."""

import keras
import tensorflow as tf
from test_optimizers import _trained

from tf_isvae import optimizers


def main():
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    adams = [_trained(adam, mirrored).get_weights() for adam in (optimizers.Adam, keras.optimizers.Adam)]
    exact = [_trained(optimizers.Muon, strategy, "Enumerated").get_weights() for strategy in (mirrored, None)]
    return adams, exact
