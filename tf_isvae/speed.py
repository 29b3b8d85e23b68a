"""How fast this machine multiplies matrices, and how much of that a model's own multiplications need."""

from __future__ import annotations

import math
import time

import keras
import tensorflow as tf

from tf_isvae.model import DiscreteVAE


def matmul_rate(dtype: str, size: int = 2048) -> float:
    """Multiply-adds per second, times 2, of size x size matrix products: the best of 5 times 10.

    On the device of the scope, tf.device("GPU:1"), or on TensorFlow's first.

    Example:
        >>> from tf_isvae import speed
        >>> speed.matmul_rate("float32", size=64) > 0
        True
    """
    matrix = tf.cast(tf.random.stateless_normal((size, size), seed=(0, 0)), dtype)
    product = tf.function(tf.matmul)
    product(matrix, matrix).numpy()
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10):
            result = product(matrix, matrix)
        result[0, 0].numpy()  # waits for the device; the whole matrix would take its time to come from a GPU
        best = min(best, (time.perf_counter() - began) / 10)
    return 2 * size**3 / best


def one_thread_an_operation() -> bool:
    """Lets TensorFlow run several operations at a time instead of splitting each over the cores.

    For small networks, whose products lose time when they are split; larger ones take longer so. It holds for all that
    the process does. TensorFlow takes it before its first operation only.

    Returns:
        Whether it was in time. If not, the threads stay as they are.

    Example:
        >>> from tf_isvae import speed
        >>> ready = keras.ops.zeros(1)  # an operation
        >>> speed.one_thread_an_operation()
        False
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        return False
    return True


@keras.saving.register_keras_serializable("tf_isvae")
class SideBySide(keras.Sequential):
    """keras.Sequential whose two halves of a batch are evaluated independently of each other.

    With `one_thread_an_operation`, two cores then work on them at the same time, where the layers of a network would
    otherwise wait for each other: for the decoder of several samples. Layers that look at the whole batch, such as
    BatchNormalization, see half of it.

    Example:
        >>> from tf_isvae import speed
        >>> decoder = speed.SideBySide([keras.Input((5,)), keras.layers.Dense(64), keras.layers.Reshape((8, 8, 1))])
        >>> decoder(tf.zeros((3, 5))).shape
        TensorShape([3, 8, 8, 1])
    """

    def call(self, inputs, training=None, mask=None):
        half = tf.shape(inputs)[0] // 2
        outputs = [super(SideBySide, self).call(part, training, mask) for part in (inputs[:half], inputs[half:])]
        return tf.concat(outputs, axis=0)


def multiplications(network: keras.Model) -> list[int]:
    """Multiply-adds of each layer's forward pass for one image, first layer first.

    Example:
        >>> from tf_isvae import speed
        >>> speed.multiplications(networks.dense_encoder((8, 8, 1), 5, hidden=(10,)))
        [640, 50]
    """
    counts = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dense):
            counts.append(math.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Conv2DTranspose):  # a subclass of none of the others
            counts.append(math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3]))
        elif isinstance(layer, keras.layers.Conv2D):
            counts.append(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3]))
    return counts


def training_multiplications(model: DiscreteVAE, decoder_evaluations: int = 1) -> int:
    """Multiply-adds of one training step for one image, with so many evaluations of the decoder.

    Each layer multiplies three times: forward, for the gradient with respect to its weights, and for that with respect
    to its inputs. The first layers of encoder and decoder have no third: images and sampled z need no gradient.

    Example:
        >>> from tf_isvae import speed
        >>> speed.training_multiplications(zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=5))
        353280
    """
    encoder, decoder = multiplications(model.encoder), multiplications(model.decoder)
    return 3 * sum(encoder) - encoder[0] + decoder_evaluations * (3 * sum(decoder) - decoder[0])
