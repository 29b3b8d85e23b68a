"""What exported models compute: the same signatures in a SavedModel and in a LiteRT file.

| signature | inputs | outputs |
|---|---|---|
| encode, also serving_default | images float32 (n, H, W, C) in [0, 1] | codes, the mode of q; logits float32, eta |
| decode | codes | images float32; logits float32, the decoder's output |
| reconstruct | images | images, codes (through the mode of q) |
| generate | seed int32 (n, 2) | images, codes of a sample of the prior |
| score | images, seed | elbo, log_likelihood of one sample of q, kl (closed form); float32 (n,), nats |

Codes are int32 (n, units or variables); with Gaussian latents float32. In LiteRT, which has no stateless random
numbers, `noise` float32 (n, units), uniform in (0, 1), takes the place of `seed`. A row's seed alone determines its
noise, whatever the batch and whenever the model was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from tf_isvae.latents import bernoulli_logits, categorical_logits
from tf_isvae.model import DiscreteVAE

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
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, Random123), elementwise on uint32 tensors that broadcast.

    TensorFlow's own stateless generators take one key for a whole tensor; a seed per row needs one per row.
    """
    keys = (*key, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(*key), tf.constant(0x1BD11BDA, tf.uint32)))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            left, right = tf.constant(bits, tf.uint32), tf.constant(32 - bits, tf.uint32)
            a = a + b
            b = tf.bitwise.bitwise_or(tf.bitwise.left_shift(b, left), tf.bitwise.right_shift(b, right))
            b = tf.bitwise.bitwise_xor(a, b)
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + tf.constant(i + 1, tf.uint32)
    return a, b


def uniforms(seed: tf.Tensor, width: int) -> tf.Tensor:
    """Uniform numbers in (0, 1), float32 (n, width): row i depends on seed[i] only; seed int32 (n, 2)."""
    key = tf.bitcast(seed, tf.uint32)
    counter = tf.range(math.ceil(width / 2), dtype=tf.int32)[None, :]
    bits = threefry((key[:, :1], key[:, 1:]), (tf.cast(counter, tf.uint32), tf.zeros((), tf.uint32)))
    # 23 bits and a half: never 0, never 1, and exact in float32.
    high = tf.bitwise.right_shift(tf.concat(bits, axis=1)[:, :width], tf.constant(9, tf.uint32))
    return (tf.cast(tf.bitcast(high, tf.int32), tf.float32) + 0.5) * 2.0**-23


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


def sample(q: tfp.distributions.Distribution, noise: tf.Tensor) -> tf.Tensor:
    """A sample of a posterior or prior of `tf_isvae.latents`, (n, units), made from uniform noise (n, units) alone.

    Bernoulli: 1 where the noise is below the probability. Categorical: Gumbel-max. Gaussian: the inverse CDF.
    """
    logits = bernoulli_logits(q)
    if logits is not None:
        return tf.cast(noise < tf.sigmoid(logits), tf.float32)
    logits = categorical_logits(q)
    if logits is not None:
        gumbel = -tf.math.log(-tf.math.log(tf.reshape(noise, (-1, *logits.shape[-2:]))))
        one_hots = tf.one_hot(tf.argmax(logits + gumbel, axis=-1, output_type=tf.int32), logits.shape[-1])
        return tf.reshape(one_hots, (-1, math.prod(logits.shape[-2:])))
    if isinstance(q, tfp.distributions.MultivariateNormalDiag):
        return q.mean() + q.stddev() * normal_quantile(noise)
    raise TypeError(
        f"the latent's distribution is {type(q).__name__}; a model whose latent is not a BernoulliLatent, "
        "CategoricalLatent or GaussianLatent cannot be exported."
    )


def signatures(model: DiscreteVAE, noise_input: bool = False) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The graph of each signature, by name.

    noise_input=True: sampling takes `noise` instead of `seed`, as LiteRT needs. Raises TypeError where the latent is
    none that `sample` knows.
    """
    latent, likelihood = model.latent, model.likelihood
    image_shape = tuple(model.image_shape)

    def eta(images):
        return tf.cast(model.encoder(images, training=False), tf.float32)

    def output(codes):
        z = tf.ensure_shape(latent.from_codes(codes), (None, latent.units))
        return tf.cast(model.decoder(z, training=False), tf.float32)

    def named_codes(codes):
        return tf.ensure_shape(codes, (None, latent.code_units))

    def uniform(noise):
        return noise if noise_input else uniforms(noise, latent.units)

    def encode(images):
        logits = eta(images)
        return {"codes": named_codes(latent.codes(logits)), "logits": logits}

    def decode(codes):
        logits = output(codes)
        return {"images": likelihood.mean(logits), "logits": logits}

    def reconstruct(images):
        codes = named_codes(latent.codes(eta(images)))
        return {"images": likelihood.mean(output(codes)), "codes": codes}

    def generate(noise):
        codes = named_codes(latent.to_codes(sample(latent.prior(), uniform(noise))))
        return {"images": likelihood.mean(output(codes)), "codes": codes}

    def score(images, noise):
        logits = eta(images)
        if noise_input and latent.code_values == 2:
            # LiteRT has no softplus: the converter writes the KL's ln(1 + e^l), infinite from l = 89 on. Of a Bernoulli
            # with logits beyond +-60 nothing changes in float32.
            logits = tf.clip_by_value(logits, -60.0, 60.0)
        q = latent.posterior(logits)
        z = sample(q, uniform(noise))
        log_likelihood = likelihood.log_prob(model.decoder(z, training=False), images)
        kl = latent.kl(q)
        return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}

    images = tf.TensorSpec((None, *image_shape), tf.float32, name="images")
    codes = tf.TensorSpec((None, latent.code_units), latent.code_dtype, name="codes")
    if noise_input:
        noise = tf.TensorSpec((None, latent.units), tf.float32, name="noise")
    else:
        noise = tf.TensorSpec((None, 2), tf.int32, name="seed")
    return {
        "encode": _graph(encode, images),
        "decode": _graph(decode, codes),
        "reconstruct": _graph(reconstruct, images),
        "generate": _graph(generate, noise),
        "score": _graph(score, images, noise),
    }


def inputs(graph: tf.types.experimental.ConcreteFunction) -> dict[str, tf.TensorSpec]:
    """The inputs of one of `signatures` by name; its outputs are `graph.structured_outputs`."""
    return {spec.name: spec for spec in graph.structured_input_signature[0]}


def _graph(function: Callable, *specs: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()
