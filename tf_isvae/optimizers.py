"""Adam as one operation a weight, Muon for the weights on either side of the code, and the rate that makes it RAdam."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_isvae import _private_apis, checks

NARROW = 128
"""The rows, or columns, of a matrix up to which Muon makes steps orthogonal."""
MOMENTUM = 0.95
"""That of Muon."""


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

    _powers = None

    def apply(self, grads, trainable_variables=None):
        # Once for all weights: with small ones, these and the reading of `iterations` took a twentieth of a step.
        step = tf.cast(self.iterations, tf.float32) + 1
        self._powers = self.beta_1**step, self.beta_2**step
        try:
            return super().apply(grads, trainable_variables)
        finally:
            self._powers = None  # a graph that has been traced must not be kept alive

    def update_step(self, gradient, variable, learning_rate):
        dense = isinstance(gradient, tf.Tensor)
        if self.amsgrad or not dense or not variable.dtype == gradient.dtype == tf.float32:
            return super().update_step(gradient, variable, learning_rate)
        momentum, velocity = _private_apis.moments(self, variable)
        beta_1_power, beta_2_power = self._powers
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(momentum),
            v=_handle(velocity),
            beta1_power=beta_1_power,
            beta2_power=beta_2_power,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


@keras.saving.register_keras_serializable("tf_isvae")
class Muon(Adam):
    """Adam, but for narrow matrices, whose steps go equally far in all directions (Muon).

    With gradients g, m <- 0.95 m + g, and the singular values S of g + 0.95 m = U S V^T, the step of a weight of shape
    (rows, columns) is

        0.2 sqrt(max(rows, columns)) learning_rate U V^T,

    which is as large, in the root of the mean square, as Adam's steps usually are. Newton and Schulz's iteration takes
    the place of the singular value decomposition: it brings the singular values to between 0.7 and 1.2, not to 1.

    Narrow is a matrix of at most `NARROW` rows or columns. In the zoo's networks these are the encoder's last layer and
    the decoder's first. The iteration costs little beside the gradient of a narrow matrix, and many times as much as
    that of a wide one, which gains nothing by it there (docs/estimators.md).

    Args:
        learning_rate, weight_decay, beta_1, ...: as of keras.optimizers.Adam. The betas and epsilon are those of the
            other weights.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer=optimizers.Muon(3e-3, weight_decay=0.03))

    References:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. The length of a step: Liu et
        al., "Muon is scalable for LLM training", 2025, arXiv:2502.16982.
    """

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) != 2 or min(variable.shape) > NARROW or not isinstance(gradient, tf.Tensor):
            return super().update_step(gradient, variable, learning_rate)
        momentum, _ = _private_apis.moments(self, variable)
        gradient = tf.cast(gradient, variable.dtype)
        self.assign(momentum, MOMENTUM * momentum + gradient)
        direction = tf.cast(_orthogonal(tf.cast(gradient + MOMENTUM * momentum, tf.float32)), variable.dtype)
        length = 0.2 * max(variable.shape) ** 0.5 * tf.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, length * direction)


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


def _orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """About U V^T of a matrix U S V^T: five steps of Jordan's x <- a x + b (x x^T) x + c (x x^T)^2 x, from |x| = 1."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else tf.transpose(matrix)  # x x^T is then the smaller square
    x /= tf.norm(x) + 1e-7
    for _ in range(5):
        square = tf.matmul(x, x, transpose_b=True)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else tf.transpose(x)
