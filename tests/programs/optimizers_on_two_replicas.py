"""The weights after training with this package's Adam, with Keras's, and with Muon, on two replicas."""

import keras
import tensorflow as tf
from test_optimizers import _trained

from tf_isvae import optimizers


def main():
    return [
        _trained(kind, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])).get_weights()
        for kind in (optimizers.Adam, keras.optimizers.Adam, optimizers.Muon)
    ]
