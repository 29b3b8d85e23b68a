"""What z is: layers that turn the encoder's output eta(x) into the posterior q(z|x), samples, codes and a KL.

Every latent is a Keras layer. Its posterior is a TensorFlow Probability distribution with batch shape (batch,)
and event shape (units,), float32; its prior is the uniform one of the same kind (standard normal for Gaussian).
Codes are what one stores: int32 bits or category indices, the vectors z without their redundancy.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy.special import entr

from tf_isvae import checks, posteriors
from tf_isvae.posteriors import MAX_ENUMERATED_CODES

tfd = tfp.distributions


class Latent(keras.layers.Layer):
    """What the latents share: sampling in training, the mode otherwise.

    A latent of one's own defines `posterior`, `to_codes` and `from_codes`. Its posterior is one of `posteriors`, or any
    TFP distribution, which ImportanceSampling and LeaveOneOut can train.

    Args:
        units: the width of z.
        encoder_units: the width of eta.
        code_units: the width of the codes.
        straight_through: True for samples with the gradient of the mean, as if they were it (Bengio, Leonard &
            Courville 2013, arXiv:1308.3432): biased, but in a functional model without it the encoder learns nothing.
            False for samples without a gradient. Those of a GaussianLatent have their own. DiscreteVAE differentiates
            no samples: it has estimators (docs/guides/own_training.md has one in a training step of one's own).
    """

    units: int
    encoder_units: int
    code_units: int
    code_dtype = "int32"
    feature_units = 0
    """How many real numbers belong to a code beside it (ProductLatent)."""

    def __init__(self, units: int, encoder_units: int, code_units: int, straight_through: bool = True, **kwargs):
        # Log-probabilities and the KL stay in float32 under any precision policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.units = units
        self.encoder_units = encoder_units
        self.code_units = code_units
        self.straight_through = checks.flag("straight_through", straight_through)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, logits: tf.Tensor, training: bool = False, seed=None) -> tf.Tensor:
        """z (batch, units) float32: a sample of q in training, the mode of q otherwise.

        `seed` is a stateless seed, int32 (2,); without it the layer's own generator supplies one.
        """
        q = self.posterior(logits)
        if not training:
            return q.mode()
        z = q.sample(seed=tf.cast(self.seed_generator.next(), tf.int32) if seed is None else seed)
        return posteriors.of(q).straight_through(z) if self.straight_through else z

    def build(self, input_shape):
        self.built = True

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "straight_through": self.straight_through}

    def posterior(self, logits: tf.Tensor) -> tfd.Distribution:
        """q(z|x): batch shape (batch,), event shape (units,), from eta (batch, encoder_units)."""
        raise NotImplementedError(f"{type(self).__name__} must define posterior(logits).")

    def variable_posterior(self, logits: tf.Tensor, needed_by: str) -> posteriors.Posterior:
        """The distribution of one bit or categorical variable, from its part of eta (n, units // code_units).

        Raises TypeError if z does not consist of such variables.
        """
        raise TypeError(
            f"{needed_by}: the latent is {type(self).__name__}; it must be a BernoulliLatent or CategoricalLatent: "
            "Factorized and Mixture take any latent."
        )

    def prior(self) -> tfd.Distribution:
        """p(z): batch shape (1,), event shape (units,); uniform, that is eta = 0."""
        return self.posterior(tf.zeros((1, self.encoder_units)))

    def kl(self, q: tfd.Distribution) -> tf.Tensor:
        """KL(q(z|x) || p(z)) in closed form: (batch,) nats."""
        return tfd.kl_divergence(q, self.prior())

    def kl_per_unit(self, q: tfd.Distribution) -> tf.Tensor:
        """The KL of each bit, categorical variable or Gaussian: (batch, code_units) nats; `kl` is its sum."""
        q, p = (posteriors.of(each).factors("kl_per_unit") for each in (q, self.prior()))
        return tfd.kl_divergence(q, p)

    def annealed(self, q: tfd.Distribution, weight: tf.Tensor) -> tuple[tf.Tensor | float, tf.Tensor | None]:
        """What the weight of callbacks.KLAnnealing makes of the KL: a factor, and what is added, (batch,) nats."""
        return weight, None

    def undecided(self, logits: tf.Tensor) -> tf.Tensor:
        """eta with 0 for what is discrete of a product of both, whose q(z|x) is then the prior's (callbacks.WarmStart).

        Raises TypeError if z is no such product.
        """
        raise TypeError(f"WarmStart: the latent is {type(self).__name__}; it must be a ProductLatent.")

    def codes(self, logits: tf.Tensor) -> tf.Tensor:
        """The mode of q as codes, int32 (batch, code_units), from eta (batch, encoder_units)."""
        return self.to_codes(self.posterior(logits).mode())

    def to_codes(self, z: tf.Tensor) -> tf.Tensor:
        """Codes (..., code_units) of z (..., units)."""
        raise NotImplementedError(f"{type(self).__name__} must define to_codes(z).")

    def from_codes(self, codes: tf.Tensor) -> tf.Tensor:
        """z (..., units) float32 of codes (..., code_units)."""
        raise NotImplementedError(f"{type(self).__name__} must define from_codes(codes).")

    def stored(self, z: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """What one keeps of z (..., units): its codes; codes and features if the latent has both."""
        return self.to_codes(z)

    @property
    def code_values(self) -> int | None:
        """How many values one entry of a code may take: 0 .. code_values - 1. None: codes are real numbers."""
        return None

    @property
    def num_codes(self) -> int | None:
        """How many different codes there are (a Python integer of any size); None if they are not countable."""
        return None if self.code_values is None else self.code_values**self.code_units

    @property
    def enumerable(self) -> bool:
        """True if there are at most MAX_ENUMERATED_CODES codes."""
        return self.num_codes is not None and self.num_codes <= MAX_ENUMERATED_CODES

    def all_codes(self) -> np.ndarray:
        """Every code once, int32 (num_codes, code_units), in lexicographic order.

        Raises ValueError if codes are real numbers.
        """
        if self.num_codes is None:
            raise ValueError(f"{type(self).__name__} has real-valued codes: they cannot be enumerated.")
        return posteriors.enumerate_codes(self.code_values, self.code_units)

    def check_codes(self, codes) -> np.ndarray:
        """Codes as an array `code_dtype` (n, code_units).

        Raises TypeError or ValueError if they have another shape or dtype, or values that no code has.
        """
        expected = f"(n, {self.code_units})"
        codes = checks.array("codes", codes, expected)
        if codes.ndim != 2 or codes.shape[1] != self.code_units or not len(codes):
            raise ValueError(
                f"codes have shape {codes.shape}; they must be {expected} with n of at least 1, as encode(images) "
                "gives them."
            )
        self._check_values(codes)
        return codes.astype(self.code_dtype)

    def check_stored(self, codes, features=None) -> tuple[np.ndarray, ...]:
        """Codes, and features if the latent has any, as arrays. Raises as `check_codes`."""
        if features is not None:
            raise ValueError(f"features were given; a {type(self).__name__} has codes only: leave them out.")
        return (self.check_codes(codes),)

    def _check_values(self, codes: np.ndarray) -> None:
        accepted = f"0 to {self.code_values - 1}"
        if not np.issubdtype(codes.dtype, np.integer) and codes.dtype != np.bool_:
            raise TypeError(f"codes have dtype {codes.dtype}; they must be integers from {accepted}.")
        if codes.min() < 0 or codes.max() >= self.code_values:
            raise ValueError(f"codes have values from {codes.min()} to {codes.max()}; they must be from {accepted}.")

    # What evaluation asks of the codes (n, code_units) of a whole data set.

    def usage(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """How often each value of a code occurs, as `evaluation.code_statistics` returns it; empty for real codes."""
        return {}

    def entropy(self, mean: np.ndarray) -> float | None:
        """Bits, of independent variables whose z has the mean `mean` (units,); None for real codes."""
        return None

    def bits(self, codes: np.ndarray) -> np.ndarray | None:
        """The codes as bits (n, bits) whose Hamming distance compares images; None if they have none."""
        return None

    def clusters(self, codes: np.ndarray) -> np.ndarray | None:
        """The codes as clusters, int (n, variables), equal rows for one cluster; None if they are no clusters."""
        return None


@keras.saving.register_keras_serializable("tf_isvae")
class BernoulliLatent(Latent):
    """z in {0,1}^units, bits that are independent given x (paper, section 4).

    eta: logits (batch, units). Codes: bits, int32 (batch, units).

    Args:
        units: the number of bits.
        straight_through: False for samples that pass no gradient to eta when the layer is used alone; default True,
            that of the mean. DiscreteVAE differentiates no samples.

    Raises:
        ValueError: `units` is not a positive integer.

    Example:
        >>> latent = BernoulliLatent(3)
        >>> eta = tf.constant([[-2.0, 1.0, 5.0]])
        >>> latent.codes(eta).numpy().tolist(), latent.num_codes
        ([[0, 1, 1]], 8)
        >>> latent(eta, training=True).shape  # a sample
        TensorShape([1, 3])
    """

    def __init__(self, units: int, **kwargs):
        units = checks.integer("BernoulliLatent: units", units)
        super().__init__(units=units, encoder_units=units, code_units=units, **kwargs)

    def posterior(self, logits):
        return posteriors.Bits(tf.cast(logits, tf.float32))

    def variable_posterior(self, logits, needed_by):
        return posteriors.Bits(logits)

    def to_codes(self, z):
        return tf.cast(z, tf.int32)

    def from_codes(self, codes):
        return tf.cast(codes, tf.float32)

    def usage(self, codes):
        return {"usage": codes.mean(axis=0)}

    def entropy(self, mean):
        return float((entr(mean) + entr(1 - mean)).sum() / np.log(2))

    def bits(self, codes):
        return codes

    @property
    def code_values(self):
        return 2

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tf_isvae")
class CategoricalLatent(Latent):
    """`variables` independent one-hot vectors of `categories` entries (paper, section 5).

    eta: logits (batch, variables * categories). z: the flattened one-hot vectors, of the same shape. Codes: indices of
    categories, int32 (batch, variables).

    Args:
        categories: of each variable.
        variables: how many there are.
        straight_through: as of BernoulliLatent.

    Raises:
        ValueError: one of the first two is not a positive integer.

    Example:
        >>> latent = CategoricalLatent(categories=3, variables=2)
        >>> eta = tf.constant([[0.0, 5.0, 0.0, 2.0, 1.0, 0.0]])
        >>> latent.codes(eta).numpy().tolist(), latent.num_codes
        ([[1, 0]], 9)
        >>> latent(eta).numpy().tolist()  # the mode
        [[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, categories: int, variables: int = 1, **kwargs):
        self.categories = checks.integer("CategoricalLatent: categories", categories)
        # Not `variables`: a Keras layer's weights go by that name.
        self.num_variables = checks.integer("CategoricalLatent: variables", variables)
        units = self.categories * self.num_variables
        super().__init__(units=units, encoder_units=units, code_units=self.num_variables, **kwargs)

    def _split(self, flat):
        return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], [self.num_variables, self.categories]], 0))

    def posterior(self, logits):
        logits = self._split(tf.cast(logits, tf.float32))
        return posteriors.OneHots(tf.ensure_shape(logits, (*logits.shape[:-2], self.num_variables, self.categories)))

    def variable_posterior(self, logits, needed_by):
        return posteriors.OneHots(logits[:, None, :])

    def to_codes(self, z):
        return tf.argmax(self._split(z), axis=-1, output_type=tf.int32)

    def from_codes(self, codes):
        one_hots = tf.one_hot(codes, self.categories)
        return tf.reshape(one_hots, tf.concat([tf.shape(codes)[:-1], [self.units]], 0))

    def usage(self, codes):
        usage = np.stack([np.bincount(column, minlength=self.categories) for column in codes.T]) / len(codes)
        entropy = -np.sum(usage * np.log(np.where(usage > 0, usage, 1)), axis=1)  # 0 ln 0 = 0
        return {"usage": usage, "perplexity": np.exp(entropy)}

    def entropy(self, mean):
        return float(entr(mean).sum() / np.log(2))

    def clusters(self, codes):
        return codes if self.enumerable else None

    @property
    def code_values(self):
        return self.categories

    def get_config(self):
        return {**super().get_config(), "categories": self.categories, "variables": self.num_variables}


@keras.saving.register_keras_serializable("tf_isvae")
class GaussianLatent(Latent):
    """z in R^units, the conventional VAE (paper, sections 1 and 2), with a standard normal prior.

    eta: (mean, softplus^-1 of the standard deviation), (batch, 2 * units). Codes: the posterior mean, float32
    (batch, units).

    Args:
        units: the number of Gaussians.

    Raises:
        ValueError: it is not a positive integer.

    Example:
        >>> GaussianLatent(2).codes(tf.constant([[0.5, -1.0, 3.0, 3.0]])).numpy().tolist()
        [[0.5, -1.0]]
    """

    code_dtype = "float32"

    def __init__(self, units: int, **kwargs):
        units = checks.integer("GaussianLatent: units", units)
        super().__init__(units=units, encoder_units=2 * units, code_units=units, **kwargs)

    def posterior(self, logits):
        mean, raw_scale = tf.split(tf.cast(logits, tf.float32), 2, axis=-1)
        # From 30 on, softplus is the identity in float32; LiteRT's is infinite from 89 on.
        scale = tf.where(raw_scale < 60, tf.nn.softplus(tf.minimum(raw_scale, 60)), raw_scale)
        # The floor keeps ln(scale), and with it the KL, finite for any raw_scale.
        return posteriors.Gaussian(mean, scale + 1e-6)

    def prior(self):
        return posteriors.Gaussian(tf.zeros((1, self.units)), tf.ones((1, self.units)))

    def to_codes(self, z):
        return z

    def _check_values(self, codes):
        is_real = np.issubdtype(codes.dtype, np.floating) or np.issubdtype(codes.dtype, np.integer)
        if not is_real or not np.isfinite(codes).all():
            raise ValueError(f"codes of dtype {codes.dtype} are not all finite numbers; they must be real numbers.")

    def from_codes(self, codes):
        return tf.cast(codes, tf.float32)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def check(latent) -> None:
    """Raises TypeError if it is no latent."""
    if not isinstance(latent, Latent):
        raise TypeError(
            f"latent is {latent!r}; it must be a BernoulliLatent, CategoricalLatent, GaussianLatent or ProductLatent."
        )
