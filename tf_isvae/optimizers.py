"""Adam as one operation a weight, and the rate that makes it RAdam."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_isvae import _private_apis, checks


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


@keras.saving.register_keras_serializable("tf_isvae")
class Rectified(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate with which Adam is RAdam: smaller while little is known of the gradient's variance.

        rho_t = rho - 2 t b^t / (1 - b^t),   rho = 2 / (1 - b) - 1,   b = beta_2
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t)) if rho_t > 5, else 0

    times the learning rate. RAdam takes its first five steps (for b = 0.999) without the second moment; they are left
    out: the moments begin, the weights do not move.

    Args:
        learning_rate: that of RAdam, positive.
        beta_2: that of Adam.

    Example:
        >>> rate = optimizers.Rectified(1e-3)
        >>> [round(float(rate(step)), 6) for step in (0, 10, 1000, 100_000)]
        [0.0, 5.4e-05, 0.000646, 0.001]
        >>> optimizer = optimizers.Adam(rate)

    References:
        Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, arXiv:1908.03265.
    """

    def __init__(self, learning_rate: float, beta_2: float = 0.999):
        self.learning_rate = checks.positive("Rectified: learning_rate", learning_rate)
        self.beta_2 = checks.share("Rectified: beta_2", beta_2)

    def __call__(self, step):
        t = tf.cast(step, tf.float64) + 1  # rho_t is a small difference of large numbers
        rho = 2 / (1 - self.beta_2) - 1
        power = self.beta_2**t
        rho_t = rho - 2 * t * power / (1 - power)
        safe = tf.maximum(rho_t, 5.0)
        rectified = tf.sqrt((safe - 4) * (safe - 2) * rho / ((rho - 4) * (rho - 2) * safe))
        return tf.cast(tf.where(rho_t > 5, self.learning_rate * rectified, 0.0), tf.float32)

    def get_config(self):
        return {"learning_rate": self.learning_rate, "beta_2": self.beta_2}


def _handle(variable) -> tf.Tensor:
    # Under a strategy, Keras hands over TensorFlow's own variables, on the device of this replica.
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
