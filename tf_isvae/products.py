"""Latents of several parts, discrete and continuous together: z is the parts' z side by side (paper, section 7).

The paper closes with a "hybrid latent space with some continuous latent variables" as what may increase its model's
powers. The parts are independent given x, so every quantity of the whole is a sum over the parts, or their results side
by side. What is discrete of z are the codes, int32 as everywhere; what is continuous are the `features`, float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae import checks, posteriors
from tf_isvae.latents import Latent

tfd = tfp.distributions


class Split(NamedTuple):
    """A posterior of discrete and of continuous parts as two."""

    discrete: posteriors.Posterior
    continuous: posteriors.Posterior
    join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    """z (..., units) of the whole from that of both, whose first axes broadcast."""
    separate: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    """The way back."""


def _is_continuous(part: posteriors.Posterior) -> bool:
    return part.reparameterization_type == tfd.FULLY_REPARAMETERIZED


def _only_or_product(parts: Sequence[posteriors.Posterior]) -> posteriors.Posterior:
    return parts[0] if len(parts) == 1 else Product(parts)


class Product(posteriors.Posterior, tfd.Distribution):
    """Independent parts side by side: q(z) = prod_i q_i(z_i), z = (z_1, z_2, ...).

    Args:
        parts: posteriors of the same batch shape.

    Example:
        >>> from tf_isvae.products import Product
        >>> bits = posteriors.Bits(tf.constant([[2.0, -2.0]]))
        >>> q = Product([bits, posteriors.Gaussian(tf.constant([[0.5]]), tf.constant([[1.0]]))])
        >>> q.mode().numpy().tolist()
        [[1.0, 0.0, 0.5]]
    """

    def __init__(self, parts: Sequence[posteriors.Posterior], name: str = "Product"):
        parameters = dict(locals())
        self.parts = tuple(parts)
        self.sizes = [part.event_shape[-1] for part in self.parts]
        continuous = all(map(_is_continuous, self.parts))
        super().__init__(
            dtype=tf.float32,
            reparameterization_type=tfd.FULLY_REPARAMETERIZED if continuous else tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    # --- a TFP distribution ---

    def _batch_shape(self):
        return self.parts[0].batch_shape

    def _batch_shape_tensor(self):
        return self.parts[0].batch_shape_tensor()

    def _event_shape(self):
        return tf.TensorShape([sum(self.sizes)])

    def _event_shape_tensor(self):
        return tf.constant([sum(self.sizes)])

    def _sample_n(self, n, seed=None):
        seeds = tfp.random.split_seed(seed, n=len(self.parts))
        return tf.concat([part.sample(n, seed=own) for part, own in zip(self.parts, seeds, strict=True)], axis=-1)

    def _log_prob(self, z):
        return sum(part.log_prob(own) for part, own in self._with_own(z))

    def _mean(self):
        return tf.concat([part.mean() for part in self.parts], axis=-1)

    def _variance(self):
        return tf.concat([part.variance() for part in self.parts], axis=-1)

    def _mode(self):
        return tf.concat([part.mode() for part in self.parts], axis=-1)

    def _entropy(self):
        return sum(part.entropy() for part in self.parts)

    def _with_own(self, z: tf.Tensor):
        return zip(self.parts, tf.split(z, self.sizes, axis=-1), strict=True)

    # --- a posterior ---

    def stop_gradient(self):
        return Product([part.stop_gradient() for part in self.parts])

    def score_surrogate(self, z, weights):
        return sum(part.score_surrogate(own, weights) for part, own in self._with_own(z))

    def negative_entropy(self):
        return sum(part.negative_entropy() for part in self.parts)

    def bounded(self):
        return Product([part.bounded() for part in self.parts])

    def bit_logits(self, needed_by):
        if any(map(_is_continuous, self.parts)):
            raise self._cannot(needed_by, f"Bits: to train the other parts too, give Hybrid({needed_by}(...)).")
        return tf.concat([part.bit_logits(needed_by) for part in self.parts], axis=-1)

    def straight_through(self, z):
        return tf.concat([part.straight_through(own) for part, own in self._with_own(z)], axis=-1)

    def all_z(self, needed_by):
        if any(map(_is_continuous, self.parts)):
            raise self._cannot(needed_by, f"discrete: to train the other parts too, give Hybrid({needed_by}()).")
        return product_of_rows([part.all_z(needed_by) for part in self.parts], needed_by)

    def log_prob_of_each(self, z, needed_by):
        # A part repeats its z here, which its own `log_prob_of_each` may not expect.
        return self.log_prob(z[:, None])

    def split(self, needed_by) -> Split:
        is_continuous = [_is_continuous(part) for part in self.parts]
        if all(is_continuous) or not any(is_continuous):
            raise self._cannot(needed_by, "one of discrete and of continuous parts: use an estimator for its kind.")
        sides = [
            [part for part, is_it in zip(self.parts, is_continuous, strict=True) if is_it == side] for side in (0, 1)
        ]
        sizes = [[part.event_shape[-1] for part in side] for side in sides]

        def join(discrete, continuous):
            first = tf.broadcast_dynamic_shape(tf.shape(discrete)[:-1], tf.shape(continuous)[:-1])
            both = [
                iter(tf.split(tf.broadcast_to(z, tf.concat([first, z.shape[-1:]], 0)), own, axis=-1))
                for z, own in zip((discrete, continuous), sizes, strict=True)
            ]
            return tf.concat([next(both[side]) for side in is_continuous], axis=-1)

        def separate(z):
            each = list(zip(is_continuous, tf.split(z, self.sizes, axis=-1), strict=True))
            return tuple(tf.concat([own for is_it, own in each if is_it == side], axis=-1) for side in (0, 1))

        return Split(*map(_only_or_product, sides), join, separate)

    @property
    def takes_noise(self):
        return all(part.takes_noise for part in self.parts)

    def sample_from(self, uniform, needed_by):
        return tf.concat([part.sample_from(own, needed_by) for part, own in self._with_own(uniform)], axis=-1)


@tfd.RegisterKL(Product, Product)
def _kl(q: Product, p: Product, name=None) -> tf.Tensor:
    return sum(tfd.kl_divergence(*pair) for pair in zip(q.parts, p.parts, strict=True))


def product_of_rows(parts: Sequence[tf.Tensor], needed_by: str) -> tf.Tensor:
    """Every combination of one row of each part, side by side, the last part's changing fastest.

    Raises ValueError if there are more than MAX_ENUMERATED_CODES.

    Example:
        >>> from tf_isvae.products import product_of_rows
        >>> product_of_rows([tf.constant([[1], [2]]), tf.constant([[5], [6]])], "an example").numpy().tolist()
        [[1, 5], [1, 6], [2, 5], [2, 6]]
    """
    count = math.prod(part.shape[0] for part in parts)
    if count > checks.MAX_ENUMERATED_CODES:
        raise ValueError(
            f"{needed_by}: the parts have {count} codes together; they must have at most "
            f"{checks.MAX_ENUMERATED_CODES}: use LeaveOneOut."
        )
    return tf.concat([tf.gather(part, own) for part, own in zip(parts, _every_pair(parts), strict=True)], axis=-1)


def _every_pair(parts: Sequence) -> np.ndarray:
    """The rows of each part in all combinations of one row of each: int (parts, combinations)."""
    return np.indices([part.shape[0] for part in parts]).reshape(len(parts), -1)


@keras.saving.register_keras_serializable("tf_isvae")
class ProductLatent(Latent):
    """Several latents, independent given x: z is their z side by side, and the KL the sum of theirs.

        ProductLatent([CategoricalLatent(10), GaussianLatent(10)])    a hybrid latent: a cluster, and what varies in it

    eta: that of the parts side by side. Codes: those of the discrete parts side by side, int32 (batch, code_units).
    Features: those of the continuous parts, float32 (batch, feature_units): `encode` gives (codes, features), and
    `decode` takes both. Without a continuous part there are only codes.

    callbacks.KLAnnealing then changes the weight of the continuous parts' KL only: held near their prior at first, they
    leave it to the discrete parts to take the images apart. The other way round, the discrete parts stay idle.

    Args:
        parts: BernoulliLatent, CategoricalLatent or GaussianLatent, at least one of them discrete.

    Raises:
        TypeError, ValueError: there are no parts, one is no latent or itself a product, or all are continuous.

    Example:
        >>> latent = ProductLatent([CategoricalLatent(3), GaussianLatent(1)])
        >>> eta = tf.constant([[0.0, 5.0, 0.0, 0.5, 3.0]])
        >>> latent.codes(eta).numpy().tolist(), latent.features(latent(eta)).numpy().tolist()
        ([[1]], [[0.5]])
        >>> latent(eta).numpy().tolist()  # the mode: the category as one-hot vector, then the Gaussian
        [[0.0, 1.0, 0.0, 0.5]]

    References:
        Chen et al., "InfoGAN", 2016, arXiv:1606.03657, which the paper cites for the idea.
        Dupont, "Learning disentangled joint continuous and discrete representations", 2018, arXiv:1804.00104.
    """

    def __init__(self, parts: Sequence[Latent], **kwargs):
        if not isinstance(parts, (list, tuple)) or not parts:
            raise ValueError(
                f"ProductLatent: parts is {parts!r}; it must be a list of latents, such as "
                "[CategoricalLatent(10), GaussianLatent(10)]."
            )
        for part in parts:
            if not isinstance(part, Latent):
                raise TypeError(
                    f"ProductLatent: a part is {part!r}; it must be a BernoulliLatent, CategoricalLatent or "
                    "GaussianLatent."
                )
            if isinstance(part, ProductLatent):
                raise ValueError("ProductLatent: a part is a ProductLatent itself; give its parts instead.")
        discrete = [part for part in parts if part.code_values is not None]
        if not discrete:
            raise ValueError(
                "ProductLatent: no part is discrete; one must be: for Gaussians alone there is GaussianLatent(units)."
            )
        kwargs.setdefault("straight_through", all(part.straight_through for part in parts))
        super().__init__(
            units=sum(part.units for part in parts),
            encoder_units=sum(part.encoder_units for part in parts),
            code_units=sum(part.code_units for part in discrete),
            **kwargs,
        )
        self.parts = list(parts)
        self._discrete = discrete
        self._continuous = [part for part in parts if part.code_values is None]
        self.feature_units = sum(part.code_units for part in self._continuous)

    def build(self, input_shape):
        for part in self.parts:
            part.build((*input_shape[:-1], part.encoder_units))
        super().build(input_shape)

    def posterior(self, logits):
        sizes = [part.encoder_units for part in self.parts]
        etas = tf.split(tf.cast(logits, tf.float32), sizes, axis=-1)
        return Product([part.posterior(eta) for part, eta in zip(self.parts, etas, strict=True)])

    def prior(self):
        return Product([part.prior() for part in self.parts])

    def kl(self, q):
        return sum(part.kl(own) for part, own in zip(self.parts, q.parts, strict=True))

    def kl_per_unit(self, q):
        """The KL of each bit, categorical variable or Gaussian, part by part: (batch, code_units + feature_units)."""
        return tf.concat([part.kl_per_unit(own) for part, own in zip(self.parts, q.parts, strict=True)], axis=-1)

    def annealed(self, q, weight):
        if not self._continuous:
            return super().annealed(q, weight)
        pairs = zip(self.parts, q.parts, strict=True)
        continuous = sum(part.kl(own) for part, own in pairs if part.code_values is None)
        return 1.0, (weight - 1.0) * continuous

    def undecided(self, logits):
        posteriors.of(self.prior()).split("WarmStart")  # raises unless there are both kinds
        etas = zip(self.parts, tf.split(logits, [part.encoder_units for part in self.parts], axis=-1), strict=True)
        return tf.concat([eta if part.code_values is None else tf.zeros_like(eta) for part, eta in etas], axis=-1)

    # --- codes and features ---

    def _of(self, z: tf.Tensor, chosen: list[Latent]) -> tf.Tensor:
        parts = zip(self.parts, tf.split(z, [part.units for part in self.parts], axis=-1), strict=True)
        return tf.concat([part.to_codes(own) for part, own in parts if any(part is one for one in chosen)], axis=-1)

    def to_codes(self, z):
        return self._of(z, self._discrete)

    def features(self, z: tf.Tensor) -> tf.Tensor:
        """What is continuous of z (..., units): float32 (..., feature_units)."""
        return self._of(z, self._continuous)

    def stored(self, z):
        return (self.to_codes(z), self.features(z)) if self._continuous else super().stored(z)

    def from_codes(self, codes, features=None):
        """z (..., units) float32 of codes (..., code_units) and features (..., feature_units)."""
        ours = iter(tf.split(codes, [part.code_units for part in self._discrete], axis=-1))
        sizes = [part.code_units for part in self._continuous]
        theirs = iter(tf.split(features, sizes, axis=-1) if sizes else ())
        each = [part.from_codes(next(theirs if part.code_values is None else ours)) for part in self.parts]
        return tf.concat(each, axis=-1)

    def check_stored(self, codes, features=None):
        if not self._continuous:
            return super().check_stored(codes, features)
        codes, expected = self.check_codes(codes), f"(n, {self.feature_units})"
        if features is None:
            raise ValueError(
                f"features are missing; the latent has continuous parts, and they must be {expected}, as "
                "codes, features = encode(images) gives them."
            )
        features = checks.array("features", features, expected)
        if features.shape != (len(codes), self.feature_units):
            raise ValueError(
                f"features have shape {features.shape}; with {len(codes)} codes they must be "
                f"({len(codes)}, {self.feature_units}), as encode(images) gives them."
            )
        is_real = np.issubdtype(features.dtype, np.floating) or np.issubdtype(features.dtype, np.integer)
        if not is_real or not np.isfinite(features).all():
            raise ValueError(
                f"features of dtype {features.dtype} are not all finite numbers; they must be real numbers."
            )
        return codes, features.astype(np.float32)

    def _check_values(self, codes):
        begin = 0
        for part in self._discrete:
            part._check_values(codes[:, begin : begin + part.code_units])
            begin += part.code_units

    def discrete(self) -> Latent:
        """The discrete parts alone, as a latent."""
        return self._discrete[0] if len(self._discrete) == 1 else ProductLatent(self._discrete)

    @property
    def code_values(self):
        """The greatest number of values that an entry of a code may take."""
        return max(part.code_values for part in self._discrete)

    @property
    def num_codes(self):
        """How many different codes there are; None if z has features besides."""
        return None if self._continuous else math.prod(part.num_codes for part in self._discrete)

    def all_codes(self):
        if self._continuous:
            raise ValueError("ProductLatent has continuous parts: its z cannot be enumerated.")
        parts = [part.all_codes() for part in self._discrete]
        return np.concatenate([part[rows] for part, rows in zip(parts, _every_pair(parts), strict=True)], axis=1)

    # --- what evaluation asks ---

    def usage(self, codes):
        return self._discrete[0].usage(codes) if len(self._discrete) == 1 else {}

    def bits(self, codes):
        if self._continuous:  # images would not be compared by them alone
            return None
        return self._unless_one_has_none(codes, lambda part, own: part.bits(own))

    def clusters(self, codes):
        return self._unless_one_has_none(codes, lambda part, own: part.clusters(own))

    def _unless_one_has_none(self, codes, function):
        ends = np.cumsum([part.code_units for part in self._discrete])[:-1]
        each = [function(*pair) for pair in zip(self._discrete, np.split(codes, ends, axis=1), strict=True)]
        return None if any(one is None for one in each) else np.concatenate(each, axis=1)

    def get_config(self):
        return {**super().get_config(), "parts": [keras.saving.serialize_keras_object(part) for part in self.parts]}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "parts": [keras.saving.deserialize_keras_object(part) for part in config["parts"]]})
