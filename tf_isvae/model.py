"""DiscreteVAE: encoder, latent, decoder, likelihood and estimator put together as a Keras model."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import (
    _private_apis,
    checks,
    chunks,
    estimators,
    latents,
    likelihoods,
    networks,
    objective,
    priors,
    refinement,
)
from tf_isvae.distortion import distorted

# Rows that encode, decode and the like work on at a time, which bounds their memory.
CHUNK = 1024
OWN_LOSS = "the loss is -ELBO, and the logs have its parts, log_likelihood and kl"
IGNORED = ("loss", "loss_weights", "metrics", "weighted_metrics")
# They tell the noise of `distortion` and `hidden_pixels` from that of z.
_DISTORTION, _HIDING = 0x64697374, 0x68696465
NO_WEIGHTS = "sample_weight or class_weight was given; DiscreteVAE weighs all images alike: leave it out."


def check_model(model) -> None:
    """Raises TypeError if it is no DiscreteVAE."""
    if not isinstance(model, DiscreteVAE):
        raise TypeError(f"model is {model!r}; it must be a DiscreteVAE.")


@keras.saving.register_keras_serializable("tf_isvae")
class DiscreteVAE(_private_apis.BuildsOnlyTheOptimizer, keras.Model):
    """A variational auto encoder whose latent may be discrete (paper, sections 1, 4 and 5).

        images --encoder--> eta --latent--> q(z|x), z ~ q --decoder--> output --likelihood--> p(x|z)

    Training minimises the negative ELBO (eq. 1), nats per image, summed over pixels and averaged over the batch:

        loss = -E_q[ln p(x|z)] + KL(q(z|x) || p(z))

    with the estimator's gradient for the first term and the closed form for the second. A prior whose KL has no closed
    form takes part in the first: the estimator gets ln p(x|z) + ln p(z), and -H(q) remains in closed form.

    `model(images)` gives the mean images decoded from the mode of q (a sample of q with training=True), so
    `model.predict` reconstructs.

    Args:
        encoder: Keras model from images (batch, H, W, C) to eta (batch, latent.encoder_units).
        latent: BernoulliLatent, CategoricalLatent, GaussianLatent, or a ProductLatent of these.
        decoder: Keras model from z (batch, latent.units) to (batch, H, W, likelihood.output_channels(C)), linear.
        estimator: an object of `tf_isvae.estimators`, or a text for `estimators.get`; default
            ImportanceSampling(num_samples=1), the paper's.
        likelihood: an object of `tf_isvae.likelihoods`, or text that `likelihoods.get` takes, such as
            "DiscretizedLogistic:channel", which needs a decoder of its `output_channels`; default Bernoulli().
        prior: an object of `tf_isvae.priors`, or the name of one: "uniform" (default, the paper's), "factorized",
            "autoregressive", "mixture", "clusters".
        kl_weight: the weight of the KL term in training, positive; above 1 a beta-VAE (Higgins et al. 2017). The logs
            and the ELBO always have weight 1.
        distortion: None, or a share such as 0.1: in training the encoder sees each image moved, scaled and turned by up
            to so much (distortion.distorted), and the decoder makes the image as it is. Codes then hardly depend on
            place, which search wants; the logs of training, but not of validation, are worse for it.
        hidden_pixels: None, or a share such as 0.1: in training the encoder sees so many of the numbers of each image
            as 0, drawn anew each time, and the others larger (dropout); the decoder makes the image as it is. The
            encoder then does better on images that it has not been trained on.
        seed: integer from which all noise is drawn; default one from Python's `random`, as Keras layers do, so that
            keras.utils.set_random_seed fixes it. Step t and replica r of a run draw noise from (seed, t, r) only.

    Raises:
        TypeError, ValueError: parts of the wrong kind, or whose shapes do not fit together.

    Example:
        >>> latent = BernoulliLatent(5)
        >>> encoder = networks.dense_encoder((8, 8, 1), latent.encoder_units)
        >>> decoder = networks.dense_decoder(latent.units, (8, 8, 1))
        >>> model = DiscreteVAE(encoder, latent, decoder, estimator=estimators.DisARM(), seed=0)
        >>> model.compile(optimizer=keras.optimizers.Adam(1e-3))
        >>> images = np.random.default_rng(0).random((100, 8, 8, 1), np.float32)
        >>> sorted(model.fit(images, epochs=1, verbose=0).history)
        ['kl', 'log_likelihood', 'loss']
        >>> model.encode(images).shape, model.generate(3, seed=0).shape, model.elbo(images).shape
        ((100, 5), (3, 8, 8, 1), (100,))
    """

    def __init__(
        self,
        encoder: keras.Model,
        latent: latents.Latent,
        decoder: keras.Model,
        *,
        estimator: str | Callable | None = None,
        likelihood: str | likelihoods.Likelihood | None = None,
        prior: str | priors.Prior | None = None,
        kl_weight: float = 1.0,
        distortion: float | None = None,
        hidden_pixels: float | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        likelihood = likelihoods.Bernoulli() if likelihood is None else likelihoods.get(likelihood)
        latents.check(latent)
        networks.check("encoder", encoder)
        networks.check("decoder", decoder)
        networks.check_shapes(encoder, latent, decoder, likelihood)
        self.encoder = encoder
        self.latent = latent
        self.decoder = decoder
        self.estimator = estimators.ImportanceSampling() if estimator is None else estimators.get(estimator)
        estimators.check(self.estimator, latent)
        self.likelihood = likelihood
        self.prior = priors.get("uniform" if prior is None else prior).build_for(latent)
        self.distortion = None if distortion is None else checks.share("distortion", distortion)
        self.hidden_pixels = None if hidden_pixels is None else checks.share("hidden_pixels", hidden_pixels)
        self.seed = random.randint(0, 2**31 - 1) if seed is None else checks.integer("seed", seed, None)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.image_shape = tuple(encoder.input_shape[1:])
        # The weight of the KL term in training is the product of these; the logs ignore both. The first is the
        # model's, and saved with it. The second is of one training (callbacks.KLAnnealing): no weight of the model, and
        # 1 after every `fit`, however that ends.
        initial = keras.initializers.Constant(checks.positive("kl_weight", kl_weight))
        self.kl_weight = self.add_weight(
            name="kl_weight", shape=(), initializer=initial, trainable=False, dtype="float32"
        )
        self.kl_annealing = tf.Variable(1.0, trainable=False, name="kl_annealing")
        if not latent.built:  # for `summary`
            latent.build((None, latent.encoder_units))
        self.phase = objective.Phase()
        self._trackers = [keras.metrics.Mean(name=name) for name in ("loss", "log_likelihood", "kl")]
        self.build(encoder.input_shape)

    def build(self, input_shape):
        self.built = True

    # --- training -----------------------------------------------------------------------------------------------

    def __call__(self, images, *args, **kwargs):
        checks.eager_images("images", images, self.image_shape)
        return super().__call__(images, *args, **kwargs)

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
        seed = tf.random.experimental.stateless_fold_in(priors.stateless_seed(self.seed), tf.cast(step, tf.int32))
        return tf.random.experimental.stateless_fold_in(seed, replica)

    def log_likelihood_of(self, images, training: bool = False) -> estimators.LogLikelihood:
        """ln p(x|z) of the batch as a function of z, as the estimators take it."""

        def log_likelihood(z):
            samples, batch = tf.shape(z)[0], tf.shape(z)[1]
            output = self.decoder(tf.reshape(z, (-1, self.latent.units)), training=training)
            if z.shape[1] == 1:
                return self.likelihood.log_prob_of_each(output, images)
            output = tf.reshape(output, tf.concat([[samples, batch], self.decoder.output_shape[1:]], 0))
            return self.likelihood.log_prob(output, images)

        return log_likelihood

    def _estimate(self, posterior, function, seed, training: bool = False) -> estimators.Estimate:
        estimator = self.phase.training_estimator(self.estimator) if training else self.estimator
        return estimators.check_estimate(estimator(posterior, function, seed), estimator)

    def _seen(self, images, seed):
        """What the encoder sees of the images in training."""
        fold_in = tf.random.experimental.stateless_fold_in
        distortion = self.phase.distortion if self.phase.categories_wait else self.distortion
        if distortion:
            images = distorted(images, distortion, fold_in(seed, _DISTORTION))
        if self.hidden_pixels:
            images = tf.nn.experimental.stateless_dropout(images, self.hidden_pixels, fold_in(seed, _HIDING))
        return images

    def _terms_of(self, posterior, images, seed) -> tuple[estimators.Estimate, tf.Tensor]:
        """The two terms of eq. 1 (objective.terms), as they are outside of training."""
        return objective.terms(self._estimate, self.prior, posterior, self.log_likelihood_of(images), seed)

    def _training_terms(self, images, seed) -> tuple[estimators.Estimate, tf.Tensor, tf.Tensor]:
        """The two terms of eq. 1, and the loss of each image, with its weights (objective.training_terms)."""
        images = tf.cast(images, tf.float32)
        eta = self.encoder(self._seen(images, seed), training=True)
        posterior = self.latent.posterior(self.latent.undecided(eta) if self.phase.categories_wait else eta)
        annealing, rest = self.latent.annealed(posterior, self.kl_annealing)
        estimate, kl, losses = objective.training_terms(
            phase=self.phase,
            estimate=functools.partial(self._estimate, training=True),
            latent=self.latent,
            prior=self.prior,
            posterior=posterior,
            log_likelihood=self.log_likelihood_of(images, training=True),
            seed=seed,
            kl_weight=self.kl_weight * annealing,
        )
        return estimate, kl, losses if rest is None else losses + self.kl_weight * rest

    def enter(self, phase: objective.Phase) -> None:
        """Training steps from here on are those of this phase of a run, which callbacks choose."""
        if phase != self.phase:
            self.phase = phase
            self.make_train_function(force=True)

    def _update_metrics(self, estimate, kl) -> dict:
        for tracker, values in zip(self._trackers, (kl - estimate.value, estimate.value, kl), strict=True):
            tracker.update_state(values)
        results = {metric.name: metric.result() for metric in self.metrics}
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync > _private_apis.local_replicas(strategy):
            # Keras takes the mean over several workers along the first axis.
            results = {name: tf.reshape(value, (1,)) for name, value in results.items()}
        return results

    def train_step(self, data):
        images = only_images(data)
        replica = tf.distribute.get_replica_context()
        # The mean over the global batch, exact also if the replicas' shares differ (the last batch): Keras sums
        # the replicas' gradients.
        global_batch = tf.cast(tf.shape(images)[0], tf.float32)
        if replica.num_replicas_in_sync > 1:
            global_batch = replica.all_reduce(tf.distribute.ReduceOp.SUM, global_batch)
        seed = self.noise_seed(_private_apis.batches_seen(self.optimizer))
        with tf.GradientTape() as tape:
            estimate, kl, losses = self._training_terms(images, seed)
            loss = tf.reduce_sum(losses) / global_batch
            if self.losses:  # regularisers of the user's networks, in the dtypes of their layers
                regularisation = tf.add_n([tf.cast(term, tf.float32) for term in self.losses])
                loss += regularisation / replica.num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)
        if self.phase.categories_wait:  # the prior takes no part
            pairs = zip(gradients, weights, strict=True)
            gradients = [keras.ops.zeros_like(weight) if own is None else own for own, weight in pairs]
        self.optimizer.apply(gradients, weights)
        return self._update_metrics(estimate, kl)

    def test_step(self, data):
        images = only_images(data)
        # The count of images seen so far tells the batches of one evaluation apart, and starts anew with the next.
        # Negative steps never meet those of training.
        step = -1 - tf.cast(self._trackers[0].count, tf.int32)
        images, seed = tf.cast(images, tf.float32), self.noise_seed(step)
        posterior = self.latent.posterior(self.encoder(images, training=False))
        return self._update_metrics(*self._terms_of(posterior, images, seed))

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None, **kwargs):
        """keras.Model.compile, without a loss and metrics: those of a DiscreteVAE are its own."""
        given = {"loss": loss, "loss_weights": loss_weights, "metrics": metrics, "weighted_metrics": weighted_metrics}
        checks.left_out("compile", OWN_LOSS, **given)
        super().compile(optimizer, **kwargs)

    def compile_from_config(self, config):
        # Keras does so itself, but not for a class with its own `compile`. Files of 0.1.0 may hold what was ignored.
        config = {name: value for name, value in config.items() if name not in IGNORED}
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, *args, **kwargs):
        """keras.Model.fit on images (n, H, W, C) in [0, 1], or on a tf.data.Dataset of batches of them.

        Labels are ignored. Arrays are checked whole, data sets by their first batch, before training starts.
        """
        checks.training_images("images", x, self.image_shape)
        if kwargs.get("validation_data") is not None:
            checks.training_images("validation images", kwargs["validation_data"], self.image_shape)
        if self.compiled:  # or Keras says that it is not
            checks.optimizer(self.optimizer, self.distribute_strategy.num_replicas_in_sync)
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
            self.enter(objective.Phase())

    def evaluate(self, x=None, *args, **kwargs):
        """keras.Model.evaluate on images or a tf.data.Dataset of batches: loss (= -ELBO), log_likelihood, kl (nats)."""
        if not _private_apis.is_validation(kwargs):
            checks.training_images("images", x, self.image_shape)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """keras.Model.predict on images or a tf.data.Dataset of batches: what `model(images)` gives."""
        checks.training_images("images", x, self.image_shape)
        return super().predict(x, *args, **kwargs)

    # --- using a trained model ----------------------------------------------------------------------------------

    def encode(self, images, refine: int = 0) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Codes of images: the mode of q(z|x).

        Args:
            images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, whose labels are ignored.
            refine: how many gradient steps are made on each image's own q, from the encoder's: Adam(0.1), of the exact
                ELBO if there are at most 4,096 codes, else of eight draws of the model's estimator. The encoder is one
                network for all images, and leaves nats that a few hundred steps find (semi-amortised inference, Kim et
                al. 2018, arXiv:1802.02550). The noise is the same in every call.

        Returns:
            int32: Bernoulli bits (n, units), Categorical indices (n, variables). Gaussian: the mean, float32. A
            ProductLatent with a continuous part: a pair, the codes and the features, float32 (n, feature_units).

        Raises:
            ValueError: images of another shape or range, or `refine` is not an integer of at least 0.
        """
        return chunks.collected(functools.partial(self._encode, refine=_steps(refine)), self._chunks(images))

    def decode(self, codes, features=None) -> np.ndarray:
        """Mean images, float32 (n, H, W, C) in [0, 1], of codes, and of features if the latent has any, as `encode`
        gives them.

        Raises ValueError for codes or features of another shape or range.
        """
        stored = self.latent.check_stored(codes, features)
        if len(stored) == 1:
            return chunks.collected(self._decode, chunks.of_array(*stored, CHUNK))
        rows = zip(chunks.of_array(stored[0], CHUNK), chunks.of_array(stored[1], CHUNK), strict=True)
        return chunks.collected(self._decode, ((i, (codes, features)) for (i, codes), (_, features) in rows))

    def reconstruct(self, images, seed: int | None = None) -> np.ndarray:
        """Mean images of one sample of q(z|x) for each image: (n, H, W, C) in [0, 1]. `seed` fixes the sample.

        `images` are an array, or a tf.data.Dataset of batches.
        """
        return chunks.collected(self._reconstruct, self._chunks(images), self._fresh_seed(seed))

    def generate(self, n: int, seed: int | None = None) -> np.ndarray:
        """Mean images of n samples of the prior p(z): (n, H, W, C) in [0, 1]. `seed` fixes the samples."""
        n = checks.integer("generate: n", n)
        z = self.prior.sample(n, seed=self._fresh_seed(seed))
        return self.decode(*(each.numpy() for each in chunks.parts_of(self.latent.stored(z))))

    def elbo(self, images, seed: int | Sequence[int] | None = None, refine: int = 0) -> np.ndarray:
        """The evidence lower bound of each image: (n,) float32, nats, with the model's estimator of E_q[ln p(x|z)].

        `images` are an array, or a tf.data.Dataset of batches. `seed` fixes the draw; of several, it is the mean of one
        of each. `refine`: of so many gradient steps on each image's own q, as in `encode`.
        """
        function = functools.partial(self._elbo, refine=_steps(refine))
        seeds = seed if isinstance(seed, Sequence) and len(seed) else [seed]
        return chunks.collected(function, self._chunks(images), *map(self._fresh_seed, seeds))

    def log_likelihood(self, images, num_samples: int = 100, seed: int | None = None, refine: int = 0) -> np.ndarray:
        """ln p(x) of each image: (n,) float32, nats.

        Exact if the latent has at most 4,096 codes: ln sum_z p(x|z) p(z). Otherwise the importance-weighted bound

            ln 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x),   K = num_samples

        (Burda, Grosse & Salakhutdinov, arXiv:1509.00519), which in the mean never lies above ln p(x) and grows with K.

        Args:
            images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches.
            num_samples: K.
            seed: an integer that fixes the samples.
            refine: of so many gradient steps on each image's own q(z|x), as in `encode`: a tighter bound.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        refine = _steps(refine)
        num_samples = checks.integer("log_likelihood: num_samples", num_samples)
        if seed is not None:
            seed = checks.integer("seed", seed, None)
        if self.latent.enumerable:
            return chunks.collected(self._exact_log_likelihood, self._chunks(images))
        # A chunk of images and of samples at a time: at most about CHUNK decoded images in memory.
        sizes = [min(CHUNK, num_samples - begin) for begin in range(0, num_samples, CHUNK)]
        images = self._chunks(images, max(1, CHUNK // sizes[0]))
        seed = self._fresh_seed(seed)
        seeds = [tf.random.experimental.stateless_fold_in(seed, i) for i in range(len(sizes))]
        log_shares = tf.constant(np.log(np.array(sizes, np.float32) / num_samples)[:, None])

        def log_mean_weight(chunk, *seeds):
            pairs = zip(sizes, seeds, strict=True)
            parts = [self._log_mean_weight(chunk, tf.constant(n), part, refine=refine) for n, part in pairs]
            return tf.reduce_logsumexp(tf.stack(parts) + log_shares, axis=0)

        return chunks.collected(log_mean_weight, images, *seeds)

    def _log_joint_of_codes(self, images) -> tuple[tf.Tensor, tf.Tensor]:
        """z of all codes (codes, units), and ln p(x|z) + ln p(z) of each image (codes, batch)."""
        z = self.latent.from_codes(self.latent.all_codes())
        return z, self.log_likelihood_of(images)(z[:, None]) + self.prior.log_prob(z)[:, None]

    def _eta(self, images, refine: int):
        """eta (batch, encoder_units) of the images: the encoder's, or refined by so many steps."""
        eta = self.encoder(images, training=False)
        if not refine:
            return eta
        images = tf.cast(images, tf.float32)
        if self.latent.enumerable:
            loss = refinement.exact_loss(self.latent, *self._log_joint_of_codes(images))
        else:
            loss = refinement.drawn_loss(self.latent, self._terms_of, images, priors.stateless_seed(self.seed))
        return refinement.refined(eta, loss, refine)

    @_private_apis.graph_method
    def _encode(self, images, refine=0):
        return self.latent.stored(self.latent.posterior(self._eta(images, refine)).mode())

    @_private_apis.graph_method
    def _decode(self, *stored):
        return self.likelihood.mean(self.decoder(self.latent.from_codes(*stored), training=False))

    @_private_apis.graph_method
    def _reconstruct(self, images, seed):
        z = self.latent(self.encoder(images, training=False), training=True, seed=seed)
        return self.likelihood.mean(self.decoder(z, training=False))

    @_private_apis.graph_method
    def _elbo(self, images, *seeds, refine=0):
        posterior = self.latent.posterior(self._eta(images, refine))
        terms = [self._terms_of(posterior, images, seed) for seed in seeds]
        return tf.add_n([estimate.value - kl for estimate, kl in terms]) / len(seeds)

    @_private_apis.graph_method
    def _exact_log_likelihood(self, images):
        _, log_joint = self._log_joint_of_codes(images)
        return tf.reduce_logsumexp(log_joint, axis=0)

    @_private_apis.graph_method
    def _log_mean_weight(self, images, num_samples, seed, refine=0):
        q = self.latent.posterior(self._eta(images, refine))
        z = q.sample(num_samples, seed=seed)
        # A batch of one image would be read as "each z with every image"; for it, that is the same.
        log_weights = self.log_likelihood_of(images)(z) + self.prior.log_prob(z) - q.log_prob(z)
        return tf.reduce_logsumexp(log_weights, axis=0) - tf.math.log(tf.cast(num_samples, tf.float32))

    def _chunks(self, images, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        return chunks.of_images(images, self.image_shape, CHUNK if size is None else size)

    def _fresh_seed(self, seed: int | None) -> tf.Tensor:
        """A stateless seed, int32 (2,): from the integer, or the next one of the model's own generator."""
        if seed is None:
            return tf.cast(self.seed_generator.next(), tf.int32)
        return priors.stateless_seed(seed)

    def with_prior(self, prior: str | priors.Prior) -> DiscreteVAE:
        """A model of the same networks with another prior, not compiled. The networks are shared, not copied.

        Example:
            >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3).with_prior("autoregressive")
            >>> type(model.prior).__name__
            'Autoregressive'
        """
        names = ("estimator", "likelihood", "name", "seed", "distortion", "hidden_pixels")
        parts = {name: getattr(self, name) for name in names}
        kl_weight = float(keras.ops.convert_to_numpy(self.kl_weight))
        return type(self)(self.encoder, self.latent, self.decoder, prior=prior, kl_weight=kl_weight, **parts)

    # --- serialisation ------------------------------------------------------------------------------------------

    def get_config(self) -> dict:
        parts = ("encoder", "latent", "decoder", "estimator", "likelihood", "prior")
        serialise = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "dtype": serialise(self.dtype_policy),
            **{part: serialise(getattr(self, part)) for part in parts},
            "kl_weight": float(keras.ops.convert_to_numpy(self.kl_weight)),
            "distortion": self.distortion,
            "hidden_pixels": self.hidden_pixels,
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


def _steps(refine: int) -> int:
    return checks.integer("refine", refine, 0)


def only_images(data):
    """Images of a batch of a data set, which may come with labels. Raises ValueError if weights come with them."""
    images, _, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError(NO_WEIGHTS)
    return images
