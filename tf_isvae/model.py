"""DiscreteVAE: encoder, latent, decoder, likelihood and estimator put together as a Keras model."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import checks, estimators, likelihoods
from tf_isvae.latents import Latent

# Rows that encode, decode and the like work on at a time, which bounds their memory.
CHUNK = 1024
# What the networks compute in: names of Keras's dtype policies. Log-densities and their sums are float32 in either.
PRECISIONS = ("float32", "mixed_bfloat16")
NO_WEIGHTS = "sample_weight or class_weight was given; DiscreteVAE weighs all images alike: leave it out."


def check_model(model) -> None:
    """Raises TypeError where it is no DiscreteVAE."""
    if not isinstance(model, DiscreteVAE):
        raise TypeError(f"model is {model!r}; it must be a DiscreteVAE.")


@keras.saving.register_keras_serializable("tf_isvae")
class DiscreteVAE(keras.Model):
    """A variational auto encoder whose latent may be discrete (paper, sections 1, 4 and 5).

        images --encoder--> eta --latent--> q(z|x), z ~ q --decoder--> output --likelihood--> p(x|z)

    Training minimises the negative ELBO (eq. 1), nats per image, summed over pixels and averaged over the batch:
        loss = -E_q[ln p(x|z)] + KL(q(z|x) || p(z))
    with the estimator's gradient for the first term and the closed form for the second.

    `model(images)` gives the mean images decoded from the mode of q (a sample of q with training=True), so
    `model.predict` reconstructs.

    Args:
        encoder: Keras model from images (batch, H, W, C) to eta (batch, latent.encoder_units).
        latent: BernoulliLatent, CategoricalLatent or GaussianLatent.
        decoder: Keras model from z (batch, latent.units) to (batch, H, W, C), linear.
        estimator: an object of `tf_isvae.estimators`, or a text for `estimators.get`; default
            ImportanceSampling(num_samples=1), the paper's.
        likelihood: an object of `tf_isvae.likelihoods`; default Bernoulli().
        seed: integer from which all noise is drawn; default one from Python's `random`, as Keras layers do, so that
            keras.utils.set_random_seed fixes it. Step t and replica r of a run draw noise from (seed, t, r) only.

    Raises:
        TypeError, ValueError: parts of the wrong kind, or whose shapes do not fit together.
    """

    def __init__(
        self,
        encoder: keras.Model,
        latent: Latent,
        decoder: keras.Model,
        *,
        estimator: str | Callable | None = None,
        likelihood=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_parts(encoder, latent, decoder)
        self.encoder = encoder
        self.latent = latent
        self.decoder = decoder
        self.estimator = estimators.ImportanceSampling() if estimator is None else estimators.get(estimator)
        self.likelihood = likelihoods.Bernoulli() if likelihood is None else likelihood
        estimators.check(self.estimator, latent)
        if not isinstance(self.likelihood, likelihoods.Likelihood):
            raise TypeError(f"likelihood is {likelihood!r}; it must be an object of tf_isvae.likelihoods.")
        self.seed = random.randint(0, 2**31 - 1) if seed is None else checks.integer("seed", seed, None)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.image_shape = tuple(encoder.input_shape[1:])
        # The weight of the KL term in training is the product of these; the logs ignore both. The first is the
        # model's, and saved with it. The second is of one training (callbacks.KLAnnealing): no weight of the model, and
        # 1 after every `fit`, however that ends.
        self.kl_weight = self.add_weight(
            name="kl_weight", shape=(), initializer="ones", trainable=False, dtype="float32"
        )
        self.kl_annealing = tf.Variable(1.0, trainable=False, name="kl_annealing")
        self._trackers = [keras.metrics.Mean(name=name) for name in ("loss", "log_likelihood", "kl")]
        self.build(encoder.input_shape)

    def build(self, input_shape):
        self.built = True

    # --- training -----------------------------------------------------------------------------------------------

    def call(self, images, training: bool = False):
        z = self.latent(self.encoder(images, training=training), training=training)
        return self.likelihood.mean(self.decoder(z, training=training))

    @property
    def metrics(self):
        return list(self._trackers)

    def noise_seed(self, step) -> tf.Tensor:
        """The stateless seed, int32 (2,), of one step: a function of the model's seed, the step and the replica.

        A resumed run thus draws what the uninterrupted one would have drawn, and no two replicas draw the same.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.random.experimental.stateless_fold_in(_stateless(self.seed), tf.cast(step, tf.int32))
        return tf.random.experimental.stateless_fold_in(seed, replica)

    def log_likelihood_of(self, images, training: bool = False) -> estimators.LogLikelihood:
        """ln p(x|z) of the batch as a function of z, as the estimators take it."""

        def log_likelihood(z):
            samples, batch = tf.shape(z)[0], tf.shape(z)[1]
            output = self.decoder(tf.reshape(z, (-1, self.latent.units)), training=training)
            if z.shape[1] == 1:
                return self.likelihood.log_prob_of_each(output, images)
            output = tf.reshape(output, tf.concat([[samples, batch], self.image_shape], 0))
            return self.likelihood.log_prob(output, images)

        return log_likelihood

    def _elbo_terms(self, images, seed, training: bool = False) -> tuple[estimators.Estimate, tf.Tensor]:
        """The two terms of eq. 1, per image: the estimate of E_q[ln p(x|z)], and the KL (batch,) in nats."""
        images = tf.cast(images, tf.float32)
        posterior = self.latent.posterior(self.encoder(images, training=training))
        estimate = self.estimator(posterior, self.log_likelihood_of(images, training), seed)
        return estimate, self.latent.kl(posterior)

    def _update_metrics(self, estimate, kl) -> dict:
        for tracker, values in zip(self._trackers, (kl - estimate.value, estimate.value, kl), strict=True):
            tracker.update_state(values)
        results = {metric.name: metric.result() for metric in self.metrics}
        strategy = tf.distribute.get_strategy()
        if 1 < strategy.num_replicas_in_sync > len(strategy.extended.worker_devices):
            # Keras takes the mean over several workers along the first axis.
            results = {name: tf.reshape(value, (1,)) for name, value in results.items()}
        return results

    def train_step(self, data):
        images = only_images(data)
        replica = tf.distribute.get_replica_context()
        # The mean over the global batch, exact also where the replicas' shares differ (the last batch): Keras sums
        # the replicas' gradients.
        global_batch = tf.cast(tf.shape(images)[0], tf.float32)
        if replica.num_replicas_in_sync > 1:
            global_batch = replica.all_reduce(tf.distribute.ReduceOp.SUM, global_batch)
        with tf.GradientTape() as tape:
            estimate, kl = self._elbo_terms(images, self.noise_seed(self.optimizer.iterations), training=True)
            loss = tf.reduce_sum(self.kl_weight * self.kl_annealing * kl - estimate.surrogate) / global_batch
            if self.losses:  # regularisers of the user's networks
                loss += tf.add_n(self.losses) / replica.num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return self._update_metrics(estimate, kl)

    def test_step(self, data):
        images = only_images(data)
        # The count of images seen so far tells the batches of one evaluation apart, and starts anew with the next.
        # Negative steps never meet those of training.
        step = -1 - tf.cast(self._trackers[0].count, tf.int32)
        return self._update_metrics(*self._elbo_terms(images, self.noise_seed(step)))

    def fit(self, x=None, *args, **kwargs):
        """keras.Model.fit on images (n, H, W, C) in [0, 1], or on a tf.data.Dataset of batches of them.

        Labels are ignored. Arrays are checked whole, data sets by their first batch, before training starts.
        """
        self._check_given(x)
        self._check_first(x)
        self._check_first(kwargs.get("validation_data"), "validation images")
        for name in ("batch_size", "epochs"):
            if kwargs.get(name) is not None:
                checks.integer(name, kwargs[name])
        if kwargs.get("sample_weight") is not None or kwargs.get("class_weight") is not None:
            raise ValueError(NO_WEIGHTS)
        if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
            kwargs.setdefault("shuffle", False)  # Keras would warn that it cannot shuffle a data set
        try:
            return super().fit(x, *args, **kwargs)
        finally:
            self.kl_annealing.assign(1.0)

    def evaluate(self, x=None, *args, **kwargs):
        """keras.Model.evaluate on images or a tf.data.Dataset of batches: loss (= -ELBO), log_likelihood, kl (nats)."""
        if not kwargs.get("_use_cached_eval_dataset"):  # Keras's own validation inside fit, already checked
            self._check_given(x)
            self._check_first(x)
        return super().evaluate(x, *args, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras's step before `fit` under a strategy; here only the optimizer can be left to build.

        Keras's own takes a batch out of the data for it, and fails where the replicas' shares of that batch differ.
        """
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _check_given(self, x) -> None:
        if x is None or isinstance(x, (str, os.PathLike)):
            raise TypeError(f"images are {x!r}; give an array, or a data set of batches in [0, 1]: datasets.load(...).")

    def _check_first(self, x, name: str = "images") -> None:
        if isinstance(x, tf.data.Dataset):
            x = next(iter(x.take(1)), None)
            if x is None:
                raise ValueError(f"{name} come as a data set without any batch; it must have at least 1.")
        if isinstance(x, (tuple, list)):  # (images, labels)
            x = (
                x[0]
                if len(x) and not isinstance(x[0], (tuple, list, int, float))
                else checks.array(name, x, "(n, H, W, C)")
            )
        if isinstance(x, dict):
            raise TypeError(
                f"{name} come as a dict of {', '.join(map(str, x))}; give images, or a data set of them or of "
                "pairs (images, labels): map(lambda example: example['image']) for one from TFDS."
            )
        if isinstance(x, (np.ndarray, tf.Tensor)):
            checks.images(name, x, self.image_shape)

    # --- using a trained model ----------------------------------------------------------------------------------

    def encode(self, images) -> np.ndarray:
        """Codes of images (n, H, W, C) in [0, 1]: the mode of q(z|x).

        int32: Bernoulli bits (n, units), Categorical indices (n, variables). Gaussian: the mean, float32 (n, units).
        Raises ValueError for images of another shape or range.
        """
        return self._in_chunks(self._encode, self._checked(images))

    def decode(self, codes) -> np.ndarray:
        """Mean images, float32 (n, H, W, C) in [0, 1], of codes as `encode` gives them.

        Raises ValueError for codes of another shape or range.
        """
        return self._in_chunks(self._decode, self._check_codes(codes))

    def reconstruct(self, images, seed: int | None = None) -> np.ndarray:
        """Mean images of one sample of q(z|x) for each image: (n, H, W, C) in [0, 1]. `seed` fixes the sample."""
        return self._in_chunks(self._reconstruct, self._checked(images), seed=self._fresh_seed(seed))

    def generate(self, n: int, seed: int | None = None) -> np.ndarray:
        """Mean images of n samples of the prior p(z): (n, H, W, C) in [0, 1]. `seed` fixes the samples."""
        n = checks.integer("generate: n", n)
        z = self.latent.prior().sample(n, seed=self._fresh_seed(seed))[:, 0]
        return self.decode(self.latent.to_codes(z).numpy())

    def elbo(self, images, seed: int | None = None) -> np.ndarray:
        """The evidence lower bound of each image: (n,) float32, nats, with the model's estimator of E_q[ln p(x|z)]."""
        return self._in_chunks(self._elbo, self._checked(images), seed=self._fresh_seed(seed))

    def log_likelihood(self, images, num_samples: int = 100, seed: int | None = None) -> np.ndarray:
        """ln p(x) of each image: (n,) float32, nats.

        Where the latent has at most 4,096 codes, exact: ln sum_z p(x|z) p(z). Otherwise the importance-weighted bound
            ln 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x),   K = num_samples
        (Burda, Grosse & Salakhutdinov 2016), which never lies above ln p(x) in the mean and grows with K.
        """
        images = self._checked(images)
        num_samples = checks.integer("log_likelihood: num_samples", num_samples)
        if seed is not None:
            seed = checks.integer("seed", seed, None)
        if self.latent.enumerable:
            return self._in_chunks(self._exact_log_likelihood, images)
        # A chunk of images and of samples at a time: at most about CHUNK decoded images in memory.
        samples = min(num_samples, CHUNK)
        sizes = [samples] * (num_samples // samples)
        if num_samples % samples:
            sizes.append(num_samples % samples)
        seed = self._fresh_seed(seed)
        parts = [
            self._in_chunks(
                self._log_mean_weight,
                images,
                tf.constant(size),
                chunk=max(1, CHUNK // samples),
                seed=tf.random.experimental.stateless_fold_in(seed, i),
            )
            for i, size in enumerate(sizes)
        ]
        log_shares = np.log(np.array(sizes, np.float32) / num_samples)
        return tf.reduce_logsumexp(np.stack(parts) + log_shares[:, None], axis=0).numpy()

    @tf.function(reduce_retracing=True)
    def _encode(self, images):
        return self.latent.codes(self.encoder(images, training=False))

    @tf.function(reduce_retracing=True)
    def _decode(self, codes):
        return self.likelihood.mean(self.decoder(self.latent.from_codes(codes), training=False))

    @tf.function(reduce_retracing=True)
    def _reconstruct(self, images, seed):
        z = self.latent(self.encoder(images, training=False), training=True, seed=seed)
        return self.likelihood.mean(self.decoder(z, training=False))

    @tf.function(reduce_retracing=True)
    def _elbo(self, images, seed):
        estimate, kl = self._elbo_terms(images, seed)
        return estimate.value - kl

    @tf.function(reduce_retracing=True)
    def _exact_log_likelihood(self, images):
        z = self.latent.from_codes(self.latent.all_codes())
        log_joint = self.log_likelihood_of(images)(z[:, None]) + self.latent.prior().log_prob(z)[:, None]
        return tf.reduce_logsumexp(log_joint, axis=0)

    @tf.function(reduce_retracing=True)
    def _log_mean_weight(self, images, num_samples, seed):
        q = self.latent.posterior(self.encoder(images, training=False))
        z = q.sample(num_samples, seed=seed)
        # A batch of one image would be read as "each z with every image"; for it, that is the same.
        log_weights = self.log_likelihood_of(images)(z) + self.latent.prior().log_prob(z) - q.log_prob(z)
        return tf.reduce_logsumexp(log_weights, axis=0) - tf.math.log(tf.cast(num_samples, tf.float32))

    def _in_chunks(self, function, rows, *args, chunk: int = CHUNK, seed=None) -> np.ndarray:
        """The function on `chunk` rows at a time, each with a seed of its own; the results as one array."""
        results = []
        for i in range(0, len(rows), chunk):
            seeds = () if seed is None else (tf.random.experimental.stateless_fold_in(seed, i),)
            results.append(function(tf.constant(rows[i : i + chunk]), *args, *seeds).numpy())
        return np.concatenate(results)

    def _checked(self, images) -> np.ndarray:
        return checks.images("images", images, self.image_shape)

    def _fresh_seed(self, seed: int | None) -> tf.Tensor:
        """A stateless seed, int32 (2,): from the integer, or the next one of the model's own generator."""
        if seed is None:
            return tf.cast(self.seed_generator.next(), tf.int32)
        return _stateless(checks.integer("seed", seed, None))

    def _check_codes(self, codes) -> np.ndarray:
        codes = checks.array("codes", codes, f"(n, {self.latent.code_units})")
        width, values = self.latent.code_units, self.latent.code_values
        if codes.ndim != 2 or codes.shape[1] != width or not len(codes):
            raise ValueError(
                f"codes have shape {codes.shape}; this model takes (n, {width}), as encode(images) gives them."
            )
        if values is None:
            is_real = np.issubdtype(codes.dtype, np.floating) or np.issubdtype(codes.dtype, np.integer)
            if not is_real or not np.isfinite(codes).all():
                raise ValueError(
                    f"codes of dtype {codes.dtype} are not all finite numbers; this model takes real ones."
                )
            return codes.astype(np.float32)
        if not np.issubdtype(codes.dtype, np.integer) and codes.dtype != np.bool_:
            raise TypeError(f"codes have dtype {codes.dtype}; they must be integers from 0 to {values - 1}.")
        if codes.min() < 0 or codes.max() >= values:
            raise ValueError(
                f"codes have values from {codes.min()} to {codes.max()}; this model takes 0 to {values - 1}."
            )
        return codes.astype(np.int32)

    # --- serialisation ------------------------------------------------------------------------------------------

    def get_config(self) -> dict:
        parts = ("encoder", "latent", "decoder", "estimator", "likelihood")
        serialise = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "dtype": serialise(self.dtype_policy),
            **{part: serialise(getattr(self, part)) for part in parts},
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> DiscreteVAE:
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(value, custom_objects) if isinstance(value, dict) else value
                for key, value in config.items()
            }
        )


def _stateless(seed: int) -> tf.Tensor:
    """An integer of any size as a stateless seed, int32 (2,)."""
    return tf.constant([seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF], tf.int32)


def in_precision(model: DiscreteVAE, precision: str | None) -> DiscreteVAE:
    """The model with every layer, those of nested networks included, computing in the given precision.

    A model computes in the precision that it was built in, wherever it goes: one built under mixed_bfloat16 is slow on
    the many processors without instructions for bfloat16. Its weights are float32 all the same.

    Args:
        model: the model; it is not changed.
        precision: "float32" or "mixed_bfloat16"; None for whatever the model has.

    Returns:
        A new model with the same weights, not compiled; or `model` itself if it computes in that precision already.

    Raises:
        TypeError: if `model` is not a DiscreteVAE, or Keras cannot make one of its layers again from its config.
        ValueError: if `precision` is none of those above.

    Example:
        >>> import keras
        >>> from tf_isvae import zoo
        >>> from tf_isvae.model import in_precision
        >>> keras.config.set_dtype_policy("mixed_bfloat16")
        >>> trained = zoo.build("cnn_bvae")
        >>> keras.config.set_dtype_policy("float32")
        >>> in_precision(trained, "float32").encoder.layers[0].compute_dtype
        'float32'
    """
    check_model(model)
    if precision is not None:
        checks.one_of("precision", precision, PRECISIONS)
    if precision is None or all(layer.dtype_policy.name == precision for layer in _layers(model)):
        return model

    def converted(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy" and "config" in config:
                return {**config, "config": {"name": precision}}
            return {key: converted(value) for key, value in config.items()}
        return type(config)(map(converted, config)) if isinstance(config, (list, tuple)) else config

    copy = type(model).from_config(converted(model.get_config()))
    copy.set_weights(model.get_weights())
    copy.seed_generator.state.assign(model.seed_generator.state)
    return copy


def _layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from _layers(part)


def only_images(data):
    """Images of a batch of a data set, which may come with labels; ValueError where weights come with them."""
    images, _, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError(NO_WEIGHTS)
    return images


def _check_parts(encoder, latent, decoder) -> None:
    if not isinstance(latent, Latent):
        raise TypeError(f"latent is {latent!r}; it must be a BernoulliLatent, CategoricalLatent or GaussianLatent.")
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(network, keras.Model):
            raise TypeError(f"{name} is {network!r}; it must be a keras.Model (Sequential or functional).")
        if not network.built:
            raise ValueError(f"{name} has no input shape yet; begin it with keras.Input(shape).")
        if not all(isinstance(getattr(network, shape, None), tuple) for shape in ("input_shape", "output_shape")):
            raise ValueError(
                f"{name} is a {type(network).__name__} whose input and output shapes Keras does not know; "
                "it must be a Sequential or functional model with one input and one output."
            )
    if len(encoder.input_shape) != 4 or None in encoder.input_shape[1:]:
        raise ValueError(f"the encoder's input has shape {encoder.input_shape}; it must be (None, H, W, C).")
    expected = (
        ("encoder's output", encoder.output_shape[1:], (latent.encoder_units,)),
        ("decoder's input", decoder.input_shape[1:], (latent.units,)),
        ("decoder's output", decoder.output_shape[1:], encoder.input_shape[1:]),
    )
    for what, given, wanted in expected:
        if tuple(given) != tuple(wanted):
            raise ValueError(f"the {what} has shape {tuple(given)}; with these parts it must be {tuple(wanted)}.")
