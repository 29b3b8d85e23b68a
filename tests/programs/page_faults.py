"""Trains the CNN BVAE at batch 256 in a process that has done nothing before; prints the page faults of a step.

With the argument `generator`, on a data set for which TensorFlow has glibc map all blocks above 128 KiB.
"""

import resource
import sys

import numpy as np
import tensorflow as tf

import tf_isvae

STEPS = 8

images = np.random.default_rng(0).integers(0, 256, (256 * STEPS, 28, 28, 1), np.uint8)
if sys.argv[1:] == ["generator"]:
    batches = np.split(images.astype(np.float32) / 255, STEPS)
    data = tf.data.Dataset.from_generator(lambda: batches, output_signature=tf.TensorSpec((256, 28, 28, 1)))
else:
    data = tf_isvae.datasets.load(images, batch_size=256, seed=0)
model = tf_isvae.zoo.build("cnn_bvae", seed=0)
model.compile(optimizer=tf_isvae.optimizers.Adam(1e-3))
model.fit(data, epochs=2, verbose=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model.fit(data, epochs=2, verbose=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (2 * STEPS))
