"""What q(z|x) can be asked, kind by kind: TFP distributions that know their logits, their codes and their relaxation.

`Bits`, `OneHots` and `Gaussian` are what the latents make of eta(x). Each is a TensorFlow Probability distribution with
batch shape (batch,) and event shape (units,), float32, and answers besides what only its kind can know. Estimators,
latents and exports ask; none of them looks at the kind. `of` lets any other TFP distribution be asked as well: it has
samples and a density, and answers everything else with a TypeError, as every posterior does that lacks the answer.

A new kind is a subclass of `Posterior` here and a latent in `latents` that makes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae.checks import MAX_ENUMERATED_CODES

tfd = tfp.distributions
tfb = tfp.bijectors


# LiteRT writes ln(1 + e^l) literally, which is infinite from l = 89 on. Of a bit with a logit beyond this nothing
# changes in float32.
_LARGEST_LOGIT = 60.0

# Giles 2010, "Approximating the erfinv function", single precision: highest power first.
_ERFINV_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_TAILS = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def enumerate_codes(values: int, width: int) -> np.ndarray:
    """Every code once, int32 (values^width, width), in lexicographic order.

    >>> posteriors.enumerate_codes(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return np.array(list(itertools.product(range(values), repeat=width)), np.int32).reshape(values**width, width)


def normal_quantile(uniform: tf.Tensor) -> tf.Tensor:
    """The inverse of the standard normal distribution function, from operations that LiteRT has: error below 1e-5."""

    def polynomial(coefficients, x):
        value = tf.fill(tf.shape(x), tf.constant(coefficients[0]))
        for coefficient in coefficients[1:]:
            value = value * x + coefficient
        return value

    w = -tf.math.log(4.0 * uniform * (1.0 - uniform))
    value = tf.where(w < 5.0, polynomial(_ERFINV_CENTRE, w - 2.5), polynomial(_ERFINV_TAILS, tf.sqrt(w) - 3.0))
    return math.sqrt(2) * value * (2.0 * uniform - 1.0)


class Relaxation(NamedTuple):
    """What a discrete z is relaxed to: tensors like `logits`, of which some are z, and one is the mean of q.

    For bits (batch, units), and each number lies in [0, 1]; for one-hot vectors (batch, variables, categories), and the
    numbers of a variable sum to 1.
    """

    logits: tf.Tensor
    to_mean: Callable[[tf.Tensor], tf.Tensor]
    """From logits to the mean of such a q: sigmoid, or softmax."""
    to_logits: Callable[[tf.Tensor], tf.Tensor]
    """Its inverse; finite for all means."""
    from_mode: Callable[[tf.Tensor], tf.Tensor]
    """Slopes, with as much taken off those of one variable as makes that of the mode 0, if its numbers sum to 1."""
    to_z: Callable[[tf.Tensor], tf.Tensor]
    """From the relaxation, with any leading axes, to z (..., units); linear."""
    from_z: Callable[[tf.Tensor], tf.Tensor]
    """From z (..., units) back."""


def _log(mean: tf.Tensor) -> tf.Tensor:
    """ln, finite at 0, and as it is from 1e-23 on."""
    return tf.math.log(mean + 1e-30)


class Posterior:
    """What a posterior answers beside `sample`, `log_prob`, `mean`, `mode` and `entropy` of a TFP distribution.

    A mixin for subclasses of tfp.distributions.Distribution. What a kind does not override, it cannot do: the methods
    that take `needed_by`, the name of who asks, raise TypeError then.
    """

    def stop_gradient(self) -> Posterior:
        """The same distribution, with parameters through which no gradient flows."""
        return tf.nest.map_structure(tf.stop_gradient, self, expand_composites=True)

    def score_surrogate(self, z: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """(batch,) with the gradient mean_m weights_m d ln q(z_m)/d eta, of z (samples, batch, units) that are fixed.

        `weights` (samples, batch) must let no gradient through.
        """
        return tf.reduce_mean(weights * self.log_prob(z), axis=0)

    def negative_entropy(self) -> tf.Tensor:
        """-H(q) = E_q[ln q(z|x)], (batch,) nats, in closed form."""
        return -self.entropy()

    def bounded(self) -> Posterior:
        """The same distribution in float32, with logits whose KL LiteRT computes without overflow."""
        return self

    def bit_logits(self, needed_by: str) -> tf.Tensor:
        """eta (batch, units) of a posterior whose z are bits."""
        raise self._cannot(needed_by, "Bits, of a BernoulliLatent: LeaveOneOut takes any latent.")

    def relaxation(self, needed_by: str) -> Relaxation:
        """What a discrete posterior is relaxed to, and the way there and back."""
        raise self._cannot(needed_by, "discrete, of a BernoulliLatent or CategoricalLatent.")

    def straight_through(self, z: tf.Tensor) -> tf.Tensor:
        """Samples z (..., batch, units) themselves, bit for bit; discrete ones with the gradient of the mean."""
        return z

    def all_z(self, needed_by: str) -> tf.Tensor:
        """Every z that a discrete posterior can give, once: (codes, units).

        Raises ValueError if there are more than MAX_ENUMERATED_CODES.
        """
        raise self._cannot(needed_by, "discrete, of a BernoulliLatent or CategoricalLatent.")

    def log_prob_of_each(self, z: tf.Tensor, needed_by: str) -> tf.Tensor:
        """ln q(z|x) of every z (codes, units) for every image: (codes, batch).

        It is linear in z, so one matrix product has them all; `log_prob` would go through a tensor (codes, batch,
        units).
        """
        raise self._cannot(needed_by, "discrete, of a BernoulliLatent or CategoricalLatent.")

    def reparameterized(self, needed_by: str) -> Posterior:
        """The posterior itself, whose samples must be differentiable with respect to its parameters."""
        if self.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise self._cannot(needed_by, "one of differentiable samples, of a GaussianLatent.")
        return self

    def split(self, needed_by: str):
        """The discrete and the continuous parts of a product that has both (products.Split)."""
        raise self._cannot(needed_by, "a product of discrete and of continuous parts, of a ProductLatent.")

    def factors(self, needed_by: str) -> tfd.Distribution:
        """The independent factors, one for each entry of a code, as a batch (batch, code_units)."""
        raise self._cannot(needed_by, "Bits, OneHots or Gaussian: their factors are known.")

    @property
    def takes_noise(self) -> bool:
        """Whether `sample_from` makes samples of this kind."""
        return type(self).sample_from is not Posterior.sample_from

    def sample_from(self, uniform: tf.Tensor, needed_by: str) -> tf.Tensor:
        """A sample (n, units) made from uniform numbers in (0, 1), (n, units), and operations that LiteRT has."""
        raise self._cannot(
            needed_by, "Bits, OneHots or Gaussian, as of the latents of tf_isvae: their samples can be exported."
        )

    def _cannot(self, needed_by: str, accepted: str) -> TypeError:
        return TypeError(f"{needed_by}: the posterior is {self._kind()}; it must be {accepted}")

    def _kind(self) -> str:
        return type(self).__name__


class Other(Posterior):
    """Any other TFP distribution, which has samples and a density: enough for ImportanceSampling and LeaveOneOut.

    Made by `of`.
    """

    def __init__(self, distribution: tfd.Distribution):
        self.distribution = distribution
        self.sample, self.log_prob, self.entropy = distribution.sample, distribution.log_prob, distribution.entropy
        self.reparameterization_type = distribution.reparameterization_type

    def stop_gradient(self):
        return Other(tf.nest.map_structure(tf.stop_gradient, self.distribution, expand_composites=True))

    def factors(self, needed_by):
        if isinstance(self.distribution, tfd.Independent):
            return self.distribution.distribution
        return super().factors(needed_by)

    def _kind(self):
        return type(self.distribution).__name__


def of(distribution: tfd.Distribution) -> Posterior:
    """The posterior itself, or any other TFP distribution as one that can be asked the same.

    Example:
        >>> posteriors.of(tfp.distributions.Normal(0.0, 1.0)).bit_logits("ARMS")
        Traceback (most recent call last):
            ...
        TypeError: ARMS: the posterior is Normal; it must be Bits, of a BernoulliLatent: LeaveOneOut takes any latent.
    """
    return distribution if isinstance(distribution, Posterior) else Other(distribution)


class _Discrete(Posterior):
    """What bits and one-hot vectors share. Subclasses have `num_codes`, a Python integer of any size."""

    num_codes: int

    def straight_through(self, z):
        relaxed = self.relaxation("straight_through")
        mean = relaxed.to_z(relaxed.to_mean(relaxed.logits))
        return z + (mean - tf.stop_gradient(mean))

    def _check_count(self, needed_by: str) -> None:
        if self.num_codes > MAX_ENUMERATED_CODES:
            raise ValueError(
                f"{needed_by}: the posterior is over {self.num_codes} codes; it must be over at most "
                f"{MAX_ENUMERATED_CODES}: use LeaveOneOut, or DisARM for bits."
            )


class Bits(_Discrete, tfd.Independent):
    """q(z) = exp(eta^T z - A(eta)), z in {0,1}^units (paper, eq. 18).

    Args:
        logits: eta (..., units), float32.

    Example:
        >>> q = posteriors.Bits(tf.constant([[0.0, 2.0, -2.0]]))
        >>> q.mode().numpy().tolist()
        [[0.0, 1.0, 0.0]]
        >>> q.sample_from(tf.constant([[0.4, 0.4, 0.4]]), "an example").numpy().tolist()
        [[1.0, 1.0, 0.0]]
    """

    def __init__(self, logits: tf.Tensor, name: str = "Bits"):
        parameters = dict(locals())
        self.logits = logits
        super().__init__(tfd.Bernoulli(logits=logits, dtype=tf.float32), reinterpreted_batch_ndims=1, name=name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {"logits": tfp.util.ParameterProperties(event_ndims=1)}

    @property
    def num_codes(self) -> int:
        return 2 ** self.logits.shape[-1]

    def stop_gradient(self):
        return Bits(tf.stop_gradient(self.logits))

    def score_surrogate(self, z, weights):
        # d ln q / d eta = z - q (eq. 20), without the density of every sample.
        gradient = tf.reduce_mean(weights[..., None] * (z - tf.stop_gradient(tf.sigmoid(self.logits))), axis=0)
        return tf.reduce_sum(gradient * self.logits, axis=-1)

    def negative_entropy(self):
        # From operations that LiteRT has, unlike TFP's.
        log_ones, log_zeros = tf.math.log_sigmoid(self.logits), tf.math.log_sigmoid(-self.logits)
        ones = tf.sigmoid(self.logits)
        return tf.reduce_sum(ones * log_ones + (1 - ones) * log_zeros, axis=-1)

    def bounded(self):
        return Bits(tf.clip_by_value(self.logits, -_LARGEST_LOGIT, _LARGEST_LOGIT))

    def bit_logits(self, needed_by):
        return self.logits

    def relaxation(self, needed_by):
        def itself(z):
            return z

        return Relaxation(
            self.logits,
            tf.sigmoid,
            lambda mean: _log(mean) - _log(1 - mean),
            from_mode=itself,
            to_z=itself,
            from_z=itself,
        )

    def all_z(self, needed_by):
        self._check_count(needed_by)
        return tf.constant(enumerate_codes(2, self.logits.shape[-1]), tf.float32)

    def log_prob_of_each(self, z, needed_by):
        # Two products of numbers below 0, rather than eta^T z - A(eta), which cancels if q is near 0 or 1.
        log_ones, log_zeros = tf.math.log_sigmoid(self.logits), tf.math.log_sigmoid(-self.logits)
        return tf.matmul(z, log_ones, transpose_b=True) + tf.matmul(1 - z, log_zeros, transpose_b=True)

    def factors(self, needed_by):
        return self.distribution

    def sample_from(self, uniform, needed_by):
        return tf.cast(uniform < tf.sigmoid(self.logits), tf.float32)


@tfd.RegisterKL(Bits, Bits)
def _kl(q: Bits, p: Bits, name=None) -> tf.Tensor:
    shape = tf.broadcast_dynamic_shape(tf.shape(q.logits), tf.shape(p.logits))
    return tf.reduce_sum(_kl_of_bits(*(tf.broadcast_to(each.logits, shape) for each in (q, p))), axis=-1)


# A graph of its own, as the likelihood's.
@tf.function(autograph=False, reduce_retracing=True)
@tf.custom_gradient
def _kl_of_bits(eta: tf.Tensor, prior: tf.Tensor):
    """KL of each bit with logit eta from one with logit `prior`, of their shape, in nats.

    With p = sigmoid(eta), it is p (eta - prior) - A(eta) + A(prior), A(l) = ln(1 + e^l) = max(l, 0) - ln sigmoid(|l|):
    TFP's value, and the gradient p (1 - p) (eta - prior), in a third of the time.
    """
    ones, prior_ones = tf.sigmoid(eta), tf.sigmoid(prior)

    def cross_entropy(logits, mean):
        # p l - max(l, 0) as one product: the difference would lose as much as l has of nats.
        return (tf.cast(logits > 0, tf.float32) - ones) * logits - tf.math.log(tf.maximum(mean, 1 - mean))

    def gradient(upstream):
        return upstream * ones * (1 - ones) * (eta - prior), upstream * (prior_ones - ones)

    return cross_entropy(prior, prior_ones) - cross_entropy(eta, ones), gradient


class OneHots(_Discrete, tfd.TransformedDistribution):
    """`variables` independent one-hot vectors, flattened to z (..., units) (paper, eq. 24).

    Args:
        logits: eta (..., variables, categories), float32.

    Example:
        >>> q = posteriors.OneHots(tf.constant([[[0.0, 2.0, -2.0], [1.0, 0.0, 0.0]]]))
        >>> q.mode().numpy().tolist()
        [[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
        >>> q.num_codes
        9
    """

    def __init__(self, logits: tf.Tensor, name: str = "OneHots"):
        parameters = dict(locals())
        self.logits = logits
        one_hots = tfd.Independent(tfd.OneHotCategorical(logits=logits, dtype=tf.float32), 1)
        variables, categories = logits.shape[-2:]
        flatten = tfb.Reshape(event_shape_in=[variables, categories], event_shape_out=[variables * categories])
        super().__init__(one_hots, flatten, name=name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {"logits": tfp.util.ParameterProperties(event_ndims=2)}

    @property
    def num_codes(self) -> int:
        variables, categories = self.logits.shape[-2:]
        return categories**variables

    def _flat(self, one_hots: tf.Tensor) -> tf.Tensor:
        units = math.prod(self.logits.shape[-2:])
        return tf.reshape(one_hots, tf.concat([tf.shape(one_hots)[:-2], [units]], 0))

    def _split(self, z: tf.Tensor) -> tf.Tensor:
        return tf.reshape(z, tf.concat([tf.shape(z)[:-1], self.logits.shape[-2:]], 0))

    def stop_gradient(self):
        return OneHots(tf.stop_gradient(self.logits))

    def negative_entropy(self):
        return tf.reduce_sum(tf.nn.softmax(self.logits) * tf.nn.log_softmax(self.logits), axis=[-2, -1])

    def relaxation(self, needed_by):
        def from_mode(slopes):
            mode = tf.argmax(self.logits, axis=-1, output_type=tf.int32)
            return slopes - tf.gather(slopes, mode[..., None], batch_dims=2)

        return Relaxation(self.logits, tf.nn.softmax, _log, from_mode, to_z=self._flat, from_z=self._split)

    def all_z(self, needed_by):
        self._check_count(needed_by)
        variables, categories = self.logits.shape[-2:]
        codes = enumerate_codes(categories, variables)
        return tf.constant(np.eye(categories, dtype=np.float32)[codes].reshape(len(codes), variables * categories))

    def log_prob_of_each(self, z, needed_by):
        log_softmax = tf.reshape(tf.nn.log_softmax(self.logits), (-1, z.shape[-1]))
        if self.logits.shape[-2] == 1:  # z is the identity: nothing to multiply, nor to round
            return tf.transpose(log_softmax)
        return tf.matmul(z, log_softmax, transpose_b=True)

    def factors(self, needed_by):
        return self.distribution.distribution

    def sample_from(self, uniform, needed_by):
        # Gumbel-max: the largest of logits with Gumbel noise is distributed as softmax(logits).
        variables, categories = self.logits.shape[-2:]
        gumbel = -tf.math.log(-tf.math.log(tf.reshape(uniform, (-1, variables, categories))))
        one_hots = tf.one_hot(tf.argmax(self.logits + gumbel, axis=-1, output_type=tf.int32), categories)
        return tf.reshape(one_hots, (-1, variables * categories))


class Gaussian(Posterior, tfd.MultivariateNormalDiag):
    """Independent Gaussians, z in R^units: the conventional VAE (paper, sections 1 and 2).

    Args:
        loc, scale_diag: mean and standard deviation (..., units), float32.

    Example:
        >>> q = posteriors.Gaussian(tf.constant([[1.0, 2.0]]), tf.constant([[1.0, 3.0]]))
        >>> q.sample_from(tf.constant([[0.5, 0.5]]), "an example").numpy().tolist()
        [[1.0, 2.0]]
    """

    def factors(self, needed_by):
        return tfd.Normal(self.mean(), self.stddev())

    def sample_from(self, uniform, needed_by):
        return self.mean() + self.stddev() * normal_quantile(uniform)
