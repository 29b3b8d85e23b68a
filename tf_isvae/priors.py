"""What p(z) is: layers that give ln p(z), samples, and the KL where it has a closed form.

`Uniform` is the paper's. Real codes fill a small, strongly dependent part of all codes, of which a uniform prior knows
nothing: it wastes nats, and what the decoder makes of its samples is a mixture of several things. The others learn
where the codes are.

    prior            p(z)                                                KL(q || p)   for
    Uniform          the latent's own: uniform, standard normal         closed       any latent
    Factorized       independent entries, each with a learned eta        closed       any latent
    Autoregressive   each entry given those before it, a MADE            sampled      bits and categories
    Mixture          of factorised components                           sampled      any latent
    Clusters         a Gaussian for each category, p(c) p(w|c)           closed       ProductLatent

A prior is made for a latent by `build_for`, which DiscreteVAE calls. With a KL that is sampled, the entropy of q stays
in closed form, and the model's estimator gets ln p(x|z) + ln p(z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import _private_apis, checks, posteriors
from tf_isvae.latents import Latent

tfd = tfp.distributions

# Rows that `sample` works on at a time: what it keeps of them stays in the processor's cache.
_CHUNK = 512
# The least and the greatest number of uniform noise: neither 0 nor 1 in float32.
_LEAST, _GREATEST = 2.0**-24, 1 - 2.0**-24


def stateless_seed(seed) -> tf.Tensor:
    """An integer of any size as a stateless seed, int32 (2,); such a seed itself is returned as it is."""
    if isinstance(seed, tf.Tensor):
        return seed
    seed = checks.integer("seed", seed, None)
    return tf.constant([seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF], tf.int32)


class Prior(keras.layers.Layer):
    """What the priors share: they are made for a latent, and sampled from uniform noise.

    A prior of one's own defines `_make`, `log_prob` and `sample_from`; and `kl`, if that has a closed form, with
    `kl_per_unit`, if the entries are independent.
    """

    def __init__(self, **kwargs):
        # Log-probabilities stay in float32 under any precision policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.latent = None

    def build_for(self, latent: Latent) -> Prior:
        """Makes the weights for z of this latent, if they are not made yet; returns the prior itself.

        Raises:
            ValueError: the prior has been made for a latent of another kind or size.
            TypeError: there is no such prior for this latent.

        Example:
            >>> prior = priors.Factorized().build_for(BernoulliLatent(2))
            >>> round(float(prior.log_prob(tf.constant([0.0, 1.0]))[0]), 3)  # -2 ln 2, before it has learned
            -1.386
        """
        if self.latent is not None:
            mine, theirs = (_kind(each) for each in (self.latent, latent))
            if mine != theirs:
                raise ValueError(
                    f"prior is {type(self).__name__} for {mine}; it must be for {theirs}, as the model's latent is: "
                    "give a new one."
                )
            return self
        self._make(latent)
        self.latent = latent
        self.build((None, latent.units))
        return self

    def build(self, input_shape):
        self.built = True  # `build_for` has made the weights

    def compute_output_shape(self, input_shape):  # of ln p(z), for `summary`
        return input_shape[:-1]

    def get_build_config(self):
        return None  # weights are made by `build_for`, also when a file is read

    def _make(self, latent: Latent) -> None:
        """Makes the weights."""

    def _built_for(self) -> Latent:
        if self.latent is None:
            raise ValueError(
                f"prior is {type(self).__name__} without a latent; it must be made for one: "
                "give it to DiscreteVAE(prior=), or call its build_for(latent)."
            )
        return self.latent

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """ln p(z), float32 (...) in nats, of z (..., units)."""
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(z).")

    def kl(self, q: tfd.Distribution) -> tf.Tensor | None:
        """KL(q(z|x) || p(z)) in closed form: (batch,) nats. None if there is none, and ln p(z) must be sampled."""
        return None

    def kl_per_unit(self, q: tfd.Distribution) -> tf.Tensor | None:
        """The KL of each bit, categorical variable or Gaussian, (batch, code_units) nats, of which `kl` is the sum.

        None if it is no such sum because the entries of z depend on each other.
        """
        return None

    def check_is_clusters(self, needed_by: str) -> None:
        """Raises TypeError unless it is Clusters, which has `untouched` and `start`."""
        raise TypeError(
            f"{needed_by}: the prior is {type(self).__name__}; it must be Clusters: give the model prior='clusters'."
        )

    def sample_from(self, uniform: tf.Tensor) -> tf.Tensor:
        """Samples z (n, units) made from uniform numbers in (0, 1), (n, units), and operations that LiteRT has."""
        raise NotImplementedError(f"{type(self).__name__} must define sample_from(uniform).")

    def sample(self, n: int, seed) -> tf.Tensor:
        """n samples z, float32 (n, units); `seed` is an integer, or a stateless seed, int32 (2,)."""
        n = checks.integer("sample: n", n)
        shape = (n, self._built_for().units)
        uniform = tf.maximum(tf.random.stateless_uniform(shape, stateless_seed(seed)), _LEAST)
        return tf.concat([self._sample_from(uniform[i : i + _CHUNK]) for i in range(0, n, _CHUNK)], axis=0)

    @_private_apis.graph_method
    def _sample_from(self, uniform):
        return self.sample_from(uniform)


def _kind(latent: Latent) -> str:
    codes = "real codes" if latent.code_values is None else f"codes of {latent.code_values} values"
    return f"{type(latent).__name__} with {latent.code_units} {codes}"


@keras.saving.register_keras_serializable("tf_isvae")
class Uniform(Prior):
    """The latent's own prior: uniform over all codes, the paper's; standard normal for Gaussians. Nothing to learn.

    Example:
        >>> prior = priors.Uniform().build_for(BernoulliLatent(3))
        >>> prior.sample(4, seed=0).shape
        TensorShape([4, 3])
    """

    def log_prob(self, z):
        return self._built_for().prior().log_prob(z)

    def kl(self, q):
        return self._built_for().kl(q)

    def kl_per_unit(self, q):
        return self._built_for().kl_per_unit(q)

    def sample(self, n, seed):
        return self._built_for().prior().sample(checks.integer("sample: n", n), seed=stateless_seed(seed))[:, 0]

    def sample_from(self, uniform):
        return posteriors.of(self._built_for().prior()).sample_from(uniform, "export")


@keras.saving.register_keras_serializable("tf_isvae")
class Factorized(Prior):
    """Independent entries of z, each with natural parameters of its own that are learned: eta (1, encoder_units).

    For one Categorical, this is every possible prior. It begins as the uniform prior (for Gaussians, with mean 0
    and standard deviation ln 2).

    Example:
        >>> prior = priors.Factorized().build_for(CategoricalLatent(4))
        >>> prior.trainable_weights[0].assign([[0.0, 0.0, 0.0, 9.0]])  # doctest: +ELLIPSIS
        <...>
        >>> CategoricalLatent(4).to_codes(prior.sample(3, seed=0)).numpy().ravel().tolist()
        [3, 3, 3]
    """

    def _make(self, latent):
        self.eta = self.add_weight(name="eta", shape=(1, latent.encoder_units), initializer="zeros")

    def _distribution(self) -> tfd.Distribution:
        return self._built_for().posterior(tf.convert_to_tensor(self.eta))

    def log_prob(self, z):
        return self._distribution().log_prob(z)

    def kl(self, q):
        return tfd.kl_divergence(q, self._distribution())

    def kl_per_unit(self, q):
        return tfd.kl_divergence(*(posteriors.of(each).factors("kl_per_unit") for each in (q, self._distribution())))

    def sample_from(self, uniform):
        return posteriors.of(self._distribution()).sample_from(uniform, "export")


@keras.saving.register_keras_serializable("tf_isvae")
class Autoregressive(Prior):
    """p(z) = prod_v p(z_v | z_1 ... z_v-1), all conditionals by one network of masked dense layers (MADE).

    z_v is a bit, or a categorical variable. A hidden unit of degree d sees z_1 ... z_d only, and the logits of z_v see
    hidden units of degrees below v, and z_1 ... z_v-1 directly. It begins as the uniform prior.

    Sampling costs no more than ln p(z) once: the hidden units are sorted by degree, and as z_v becomes known,
    those of degree v are computed, once, and no others.

    Args:
        hidden: the widths of the hidden layers (relu).

    Raises:
        ValueError: a width is not a positive integer. TypeError, when it is made for a latent: z is not discrete.

    Example:
        >>> prior = priors.Autoregressive(hidden=(8,)).build_for(BernoulliLatent(3))
        >>> z = BernoulliLatent(3).from_codes(BernoulliLatent(3).all_codes())
        >>> round(float(tf.reduce_sum(tf.exp(prior.log_prob(z)))), 5)
        1.0

    References:
        Germain, Gregor, Murray & Larochelle, "MADE: masked autoencoder for distribution estimation", 2015,
        arXiv:1502.03509.
    """

    def __init__(self, hidden: Sequence[int] = (512, 512), **kwargs):
        super().__init__(**kwargs)
        widths = hidden if isinstance(hidden, (tuple, list)) else (hidden,)
        self.hidden = tuple(checks.integer("Autoregressive: hidden", width) for width in widths)

    def _make(self, latent):
        self._width = latent.units // latent.code_units
        latent.variable_posterior(tf.zeros((1, self._width)), "Autoregressive")  # raises if z has no such variables
        # Degrees are counted from 0: an input has that of its variable, and a unit sees the degrees up to its own.
        of_unit = np.repeat(np.arange(latent.code_units), self._width)
        self._degrees = [np.arange(width) * max(latent.code_units - 1, 1) // width for width in self.hidden]
        self._masks, self._kernels, self._biases = [], [], []
        below = of_unit
        for i, degrees in enumerate(self._degrees):
            self._masks.append(np.float32(below[:, None] <= degrees))
            self._kernels.append(self.add_weight(name=f"kernel_{i}", shape=(len(below), len(degrees))))
            self._biases.append(self.add_weight(name=f"bias_{i}", shape=(len(degrees),), initializer="zeros"))
            below = degrees
        # With all of these at 0, every logit is.
        self._output_mask = np.float32(below[:, None] < of_unit)
        self._direct_mask = np.float32(of_unit[:, None] < of_unit)
        units = latent.units
        self._output = self.add_weight(name="output", shape=(len(below), units), initializer="zeros")
        self._direct = self.add_weight(name="direct", shape=(units, units), initializer="zeros")
        self._bias = self.add_weight(name="bias", shape=(units,), initializer="zeros")

    def logits(self, z: tf.Tensor) -> tf.Tensor:
        """The natural parameters (n, units) of every entry of z (n, units), given those before it."""
        self._built_for()
        h = z
        for kernel, bias, mask in zip(self._kernels, self._biases, self._masks, strict=True):
            h = tf.nn.relu(tf.matmul(h, kernel * mask) + bias)
        return (
            tf.matmul(h, self._output * self._output_mask) + tf.matmul(z, self._direct * self._direct_mask) + self._bias
        )

    def log_prob(self, z):
        latent = self._built_for()
        rows = tf.reshape(z, (-1, latent.units))
        return tf.reshape(latent.posterior(self.logits(rows)).log_prob(rows), tf.shape(z)[:-1])

    def sample_from(self, uniform):
        latent, width = self._built_for(), self._width
        output, direct, bias = (tf.convert_to_tensor(each) for each in (self._output, self._direct, self._bias))
        kernels, biases = ([tf.convert_to_tensor(each) for each in part] for part in (self._kernels, self._biases))
        z, known = None, [None] * len(self.hidden)
        for v in range(latent.code_units):
            own = slice(v * width, (v + 1) * width)
            logits = tf.zeros_like(uniform[:, own]) + bias[own]
            if v:
                below = z
                for i, degrees in enumerate(self._degrees):
                    begin, end = np.searchsorted(degrees, [v - 1, v])
                    if end > begin:
                        # What these units see is just what is known: no mask is needed.
                        new = tf.matmul(below, kernels[i][: below.shape[1], begin:end]) + biases[i][begin:end]
                        known[i] = _append(known[i], tf.nn.relu(new))
                    below = known[i]
                logits += tf.matmul(z, direct[: v * width, own])
                if below is not None:
                    logits += tf.matmul(below, output[: below.shape[1], own])
            z = _append(z, latent.variable_posterior(logits, "Autoregressive").sample_from(uniform[:, own], "export"))
        return z

    def get_config(self):
        return {**super().get_config(), "hidden": list(self.hidden)}


def _append(known: tf.Tensor | None, new: tf.Tensor) -> tf.Tensor:
    return new if known is None else tf.concat([known, new], axis=1)


@keras.saving.register_keras_serializable("tf_isvae")
class Mixture(Prior):
    """p(z) = sum_k w_k p_k(z), with components p_k of the latent's kind whose entries are independent.

    For Gaussians, a mixture of diagonal Gaussians; for bits, of Bernoullis. Weights and natural parameters are learned.

    Args:
        components: how many.

    Raises:
        ValueError: it is not a positive integer.

    Example:
        >>> prior = priors.Mixture(components=3).build_for(GaussianLatent(2))
        >>> prior.log_prob(tf.zeros((5, 2))).shape
        TensorShape([5])
    """

    def __init__(self, components: int = 100, **kwargs):
        super().__init__(**kwargs)
        self.components = checks.integer("Mixture: components", components)

    def _make(self, latent):
        self.weight_logits = self.add_weight(name="weight_logits", shape=(self.components,), initializer="zeros")
        # Components that begin equal would stay equal.
        differ = keras.initializers.RandomNormal(stddev=1.0)
        self.eta = self.add_weight(name="eta", shape=(self.components, latent.encoder_units), initializer=differ)

    def log_prob(self, z):
        each = self._built_for().posterior(tf.convert_to_tensor(self.eta)).log_prob(z[..., None, :])
        return tf.reduce_logsumexp(tf.nn.log_softmax(self.weight_logits) + each, axis=-1)

    def sample_from(self, uniform):
        latent = self._built_for()
        # The first number chooses the component: the one into whose share of (0, 1) it falls. Where in that share it
        # lies is a uniform number again.
        weights = tf.nn.softmax(self.weight_logits)[None]
        ends = tf.cumsum(weights, axis=1)
        chosen = tf.one_hot(tf.reduce_sum(tf.cast(uniform[:, :1] >= ends[:, :-1], tf.int32), axis=1), self.components)
        share = tf.reduce_sum(chosen * weights, axis=1, keepdims=True)
        begin = tf.reduce_sum(chosen * (ends - weights), axis=1, keepdims=True)
        first = tf.clip_by_value((uniform[:, :1] - begin) / share, _LEAST, _GREATEST)
        q = posteriors.of(latent.posterior(tf.matmul(chosen, tf.convert_to_tensor(self.eta))))
        return q.sample_from(tf.concat([first, uniform[:, 1:]], axis=1), "export")

    def get_config(self):
        return {**super().get_config(), "components": self.components}


@keras.saving.register_keras_serializable("tf_isvae")
class Clusters(Prior):
    """p(z) = p(c) p(w|c), for a latent of a discrete part c and a continuous part w: each c has a Gaussian of its own.

        p(w|c) = N(mu_c, (A_c^T A_c)^-1),   A_c lower triangular
        KL(q || p) = sum_c q(c|x) (ln q(c|x) - ln p(c) + KL(q(w|x) || p(w|c)))
        KL(q(w|x) || p(w|c)) = -H(q(w|x)) + E_q(w|x)[|A_c (w - mu_c)|^2] / 2 - ln det A_c + d/2 ln 2 pi
        E_q(w|x)[|A_c (w - mu_c)|^2] = |A_c (E[w] - mu_c)|^2 + sum_j Var[w_j] sum_i A_c,ij^2

    p(c) is a table of all codes of the discrete part, so its categories or bits must have at most 4,096 codes. It
    begins as the latent's own prior, whatever c: `fit_clusters` starts it from what an encoder has learned.

    Raises:
        TypeError, when it is made for a latent: it has no discrete or no continuous part. ValueError: too many codes.

    Example:
        >>> latent = ProductLatent([CategoricalLatent(3), GaussianLatent(2)])
        >>> prior = priors.Clusters().build_for(latent)
        >>> q = latent.posterior(tf.ones((1, latent.encoder_units)))
        >>> bool(abs(prior.kl(q) - latent.kl(q)) < 1e-5)  # before it has learned
        True

    References:
        Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture variational autoencoders", 2016,
        arXiv:1611.02648; Jiang et al., "Variational deep embedding", 2016, arXiv:1611.05148, with diagonal covariances.
    """

    def _make(self, latent):
        parts = posteriors.of(latent.prior()).split("Clusters")
        self._z = parts.discrete.all_z("Clusters").numpy()
        self.dimensions = parts.continuous.event_shape[-1]
        count, d = len(self._z), self.dimensions
        self.weight_logits = self.add_weight(name="weight_logits", shape=(count,), initializer="zeros")
        self.mean = self.add_weight(name="mean", shape=(count, d), initializer="zeros")
        # Below the diagonal A_c itself, on it its logarithm.
        self.raw = self.add_weight(name="raw", shape=(count, d, d), initializer="zeros")

    def check_is_clusters(self, needed_by):
        pass

    @property
    def untouched(self) -> bool:
        """True as long as all weights are what they were made with."""
        return not any(np.any(keras.ops.convert_to_numpy(weight)) for weight in self.weights)

    def start(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> None:
        """Sets p(c) (codes,), mu_c (codes, d) and the covariances of p(w|c) (codes, d, d), which must be regular."""
        self._built_for()
        # Of the precision, A^T A; Cholesky of the reversed matrix gives an A that is lower triangular.
        reversed_factors = np.linalg.cholesky(np.linalg.inv(np.float64(covariances))[:, ::-1, ::-1])
        factors = np.swapaxes(reversed_factors, 1, 2)[:, ::-1, ::-1]
        diagonal = np.einsum("kii->ki", factors)
        self.weight_logits.assign(np.log(np.maximum(weights, 1e-6)))
        self.mean.assign(means)
        self.raw.assign(np.tril(factors, -1) + np.log(diagonal)[:, :, None] * np.eye(self.dimensions))

    def _factors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """A_c (codes, d, d), and ln det A_c (codes,)."""
        d = self.dimensions
        raw = tf.convert_to_tensor(self.raw)
        of_diagonal = raw * tf.eye(d)
        return (
            raw * np.tri(d, k=-1, dtype=np.float32) + tf.exp(of_diagonal) * tf.eye(d),
            tf.reduce_sum(of_diagonal, axis=[-2, -1]),
        )

    def _log_prob_of_each(self, mean: tf.Tensor, variance: tf.Tensor | None = None) -> tf.Tensor:
        """E[ln p(c) p(w|c)] (..., codes) of every c, of w with this mean and this variance, 0 if None: (..., d)."""
        factors, log_det = self._factors()
        count, d = len(self._z), self.dimensions
        # One matrix product for all c: A_c w - A_c mu_c.
        all_factors = tf.transpose(tf.reshape(factors, (count * d, d)))
        white = tf.reshape(tf.tensordot(mean, all_factors, 1), tf.concat([tf.shape(mean)[:-1], [count, d]], 0))
        white -= tf.reduce_sum(factors * self.mean[:, None, :], axis=-1)
        squares = tf.reduce_sum(tf.square(white), axis=-1)
        if variance is not None:
            squares += tf.tensordot(variance, tf.transpose(tf.reduce_sum(tf.square(factors), axis=1)), 1)
        constant = tf.nn.log_softmax(self.weight_logits) + log_det - 0.5 * d * math.log(2 * math.pi)
        return constant - 0.5 * squares

    def log_prob(self, z):
        parts = posteriors.of(self._built_for().prior()).split("Clusters")
        code, w = parts.separate(z)
        # Which of all codes it is: as many entries agree as there are.
        agree = tf.tensordot(code, self._z.T, 1) + tf.tensordot(1 - code, 1 - self._z.T, 1)
        is_it = tf.cast(agree > self._z.shape[1] - 0.5, tf.float32)
        return tf.reduce_sum(is_it * self._log_prob_of_each(w), axis=-1)

    def kl(self, q):
        self._built_for()
        discrete, continuous, *_ = posteriors.of(q).split("Clusters")
        log_q = tf.transpose(discrete.log_prob_of_each(tf.constant(self._z), "Clusters"))
        each = log_q - self._log_prob_of_each(continuous.mean(), continuous.variance())
        return tf.reduce_sum(tf.exp(log_q) * each, axis=-1) + continuous.negative_entropy()

    def sample_from(self, uniform):
        parts = posteriors.of(self._built_for().prior()).split("Clusters")
        ends = tf.cumsum(tf.nn.softmax(self.weight_logits)[None], axis=1)
        chosen = tf.one_hot(
            tf.reduce_sum(tf.cast(uniform[:, :1] >= ends[:, :-1], tf.int32), axis=1), len(self._z), dtype=tf.float32
        )
        d = self.dimensions
        noise = posteriors.normal_quantile(uniform[:, -d:])
        factors, _ = self._factors()
        own = tf.reshape(tf.matmul(chosen, tf.reshape(factors, (-1, d * d))), (-1, d, d))
        # A v = noise, one entry of v after the other.
        v = noise[:, :1] / own[:, 0, :1]
        for i in range(1, d):
            rest = noise[:, i : i + 1] - tf.reduce_sum(own[:, i, :i] * v, axis=1, keepdims=True)
            v = tf.concat([v, rest / own[:, i, i : i + 1]], axis=1)
        return parts.join(tf.matmul(chosen, tf.constant(self._z)), tf.matmul(chosen, self.mean) + v)


_BY_NAME = {cls.__name__.lower(): cls for cls in (Uniform, Factorized, Autoregressive, Mixture, Clusters)}


def names() -> tuple[str, ...]:
    """The names that `get` takes.

    Example:
        >>> priors.names()
        ('uniform', 'factorized', 'autoregressive', 'mixture', 'clusters')
    """
    return tuple(_BY_NAME)


def get(prior: str | Prior) -> Prior:
    """The prior that a text names, with its default size; a prior itself is returned as it is.

    Raises:
        ValueError: a text that names none. TypeError: something else.

    Example:
        >>> priors.get("autoregressive").hidden
        (512, 512)
    """
    if isinstance(prior, str):
        return _BY_NAME[checks.one_of("prior", prior, _BY_NAME)]()
    if not isinstance(prior, Prior):
        raise TypeError(
            f"prior is {prior!r}; it must be an object of tf_isvae.priors, or the name of one: {', '.join(_BY_NAME)}."
        )
    return prior
