"""How many replicas of a MirroredStrategy are in this process, which has two logical devices."""

import tensorflow as tf

from tf_isvae import _private_apis


def main():
    return _private_apis.local_replicas(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
