"""Adam as one operation a weight."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_isvae import _private_apis


@keras.saving.register_keras_serializable("tf_isvae")
class Adam(keras.optimizers.Adam):
    """keras.optimizers.Adam, whose arguments it takes and whose steps it makes, in TensorFlow's fused operation.

    Keras's update of one weight is about ten operations, each of which passes through memory; for small batches they
    take a fifth of a training step. The fused one reads and writes each weight once (Kingma & Ba 2015,
    arXiv:1412.6980, algorithm 1, with the bias corrections in the learning rate, as in Keras). With amsgrad, for sparse
    gradients, and for weights of other dtypes than float32, the step is Keras's own.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer=optimizers.Adam(1e-3))
    """

    def update_step(self, gradient, variable, learning_rate):
        dense = isinstance(gradient, tf.Tensor)
        if self.amsgrad or not dense or not variable.dtype == gradient.dtype == tf.float32:
            return super().update_step(gradient, variable, learning_rate)
        momentum, velocity = _private_apis.moments(self, variable)
        step = tf.cast(self.iterations, tf.float32) + 1
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(momentum),
            v=_handle(velocity),
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _handle(variable) -> tf.Tensor:
    # Under a strategy, Keras hands over TensorFlow's own variables, on the device of this replica.
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
