"""A run with the strategy "mirrored"; returns the number of devices and of steps."""

import tensorflow as tf

from tf_isvae import training


def main(run_dir):
    settings = {"dataset": "digits", "image_size": (8, 8), "latent_dim": 6, "epochs": 3, "batch_size": 500, "seed": 1}
    settings |= {"precision": "float32", "start_at_mean": False, "strategy": "mirrored", "run_dir": str(run_dir)}
    metrics, _ = training.train(training.Config(**settings))
    return len(tf.config.list_logical_devices("CPU")), metrics["steps"]
