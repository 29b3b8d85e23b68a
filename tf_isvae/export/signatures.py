"""What exported models compute: the same signatures in a SavedModel and in a LiteRT file.

| signature | inputs | outputs |
|---|---|---|
| encode, serving_default, serve | images float32 (n, H, W, C) in [0, 1] | codes, the mode of q; logits float32, eta |
| encode_png | image_bytes string (n,), PNG or JPEG of any size; invert bool (n,), for dark on light | as encode |
| decode | codes | images float32; logits float32, the decoder's output |
| reconstruct | images | images, codes (through the mode of q) |
| generate | seed int32 (n, 2) | images, codes of a sample of the prior |
| score | images, seed | elbo, log_likelihood of one sample of q, kl; float32 (n,), nats |

Codes are int32 (n, units or variables); with Gaussian latents float32. A hybrid latent (ProductLatent) has `features`
float32 (n, feature_units) beside its codes, wherever those are given or taken. LiteRT has no stateless random numbers:
there, `noise` float32 (n, units), uniform in (0, 1), takes the place of `seed`. Nor does it decode files: `encode_png`
is of the SavedModel only, and only for images that are grey or in colour. A row's seed alone determines its noise,
whatever the batch and whenever the model was loaded. The KL is in closed form, or of the same sample if the prior has
none.
`bad_input` says what becomes of other values and shapes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_isvae import _private_apis, posteriors
from tf_isvae.chunks import parts_of
from tf_isvae.datasets.conversion import convert
from tf_isvae.export import bad_input
from tf_isvae.export.bad_input import Input
from tf_isvae.model import DiscreteVAE

# Other names of `encode`: what TensorFlow Serving takes, and keras.layers.TFSMLayer, if they are told no name.
DEFAULTS = ("serving_default", "serve")
# The least and greatest number that `uniforms` gives.
_NOISE = (2.0**-24, 1 - 2.0**-24)
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


def signatures(model: DiscreteVAE, for_litert: bool = False) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The graph of each signature, by name.

    Args:
        model: a DiscreteVAE.
        for_litert: True for graphs that take `noise` instead of `seed`, and clip bad input instead of refusing it.

    Returns:
        `generate` and `score` are left out if the latent is of one's own and its posterior cannot be sampled from
        uniform noise.
    """
    latent, likelihood = model.latent, model.likelihood
    image_shape = tuple(model.image_shape)

    def eta(images):
        return tf.cast(model.encoder(images, training=False), tf.float32)

    def output(*stored):
        z = tf.ensure_shape(latent.from_codes(*stored), (None, latent.units))
        return tf.cast(model.decoder(z, training=False), tf.float32)

    def named(stored):
        widths = {"codes": latent.code_units, "features": latent.feature_units}
        pairs = zip(widths.items(), parts_of(stored), strict=False)
        return {name: tf.ensure_shape(part, (None, width)) for (name, width), part in pairs}

    def mode(logits):
        return named(latent.stored(latent.posterior(logits).mode()))

    def uniform(noise):
        return noise if for_litert else uniforms(noise, latent.units)

    def encode(images):
        logits = eta(images)
        return {**mode(logits), "logits": logits}

    def decode(*stored):
        logits = output(*stored)
        return {"images": likelihood.mean(logits), "logits": logits}

    def reconstruct(images):
        stored = mode(eta(images))
        return {"images": likelihood.mean(output(*stored.values())), **stored}

    def generate(noise):
        stored = named(latent.stored(model.prior.sample_from(uniform(noise))))
        return {"images": likelihood.mean(output(*stored.values())), **stored}

    def score(images, noise):
        logits = eta(images)
        q = posteriors.of(latent.posterior(logits))
        if for_litert:
            q = q.bounded()
        z = q.sample_from(uniform(noise), "export")
        log_likelihood = likelihood.log_prob(model.decoder(z, training=False), images)
        kl = model.prior.kl(q)
        if kl is None:  # of the same sample
            kl = q.negative_entropy() - model.prior.log_prob(z)
        return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}

    images = Input(tf.TensorSpec((None, *image_shape), tf.float32, name="images"), 0, 1, "in [0, 1]")
    codes = tf.TensorSpec((None, latent.code_units), latent.code_dtype, name="codes")
    finite = (-tf.float32.max, tf.float32.max, "finite numbers")
    if latent.code_values is None:
        codes = Input(codes, *finite)
    else:
        codes = Input(codes, 0, latent.code_values - 1, f"from 0 to {latent.code_values - 1}")
    stored = [codes]
    if latent.feature_units:
        stored.append(Input(tf.TensorSpec((None, latent.feature_units), tf.float32, name="features"), *finite))
    if for_litert:
        noise = tf.TensorSpec((None, latent.units), tf.float32, name="noise")
        noise = Input(noise, *_NOISE, "in (0, 1)")
    else:
        noise = Input(tf.TensorSpec((None, 2), tf.int32, name="seed"))
    guard = bad_input.clip if for_litert else bad_input.refuse

    def graph(function, *inputs):
        specs = [given.spec for given in inputs]
        return tf.function(guard(function, *inputs), input_signature=specs, autograph=False).get_concrete_function()

    def encode_png(image_bytes, invert):
        shown = tf.map_fn(lambda content: _decoded(content, image_shape), image_bytes, fn_output_signature=tf.uint8)
        shown = tf.where(invert[:, None, None, None], 255 - shown, shown)
        scaled = tf.ensure_shape(tf.cast(shown, tf.float32) / 255, (None, *image_shape))
        return bad_input.even_of_no_rows(encode, [scaled])

    sampling = {}
    if posteriors.of(latent.prior()).takes_noise:
        sampling = {"generate": graph(generate, noise), "score": graph(score, images, noise)}
    files = {}
    if not for_litert and image_shape[-1] in (1, 3):
        image_bytes = Input(tf.TensorSpec((None,), tf.string, name="image_bytes"))
        invert = Input(tf.TensorSpec((None,), tf.bool, name="invert"))
        files = {"encode_png": graph(encode_png, image_bytes, invert)}
    return {
        "encode": graph(encode, images),
        **files,
        "decode": graph(decode, *stored),
        "reconstruct": graph(reconstruct, images),
        **sampling,
    }


def _decoded(content: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """A PNG or JPEG as datasets.load reads it from a folder: uint8 (H, W, C), without alpha; EXIF is not read."""
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image = convert(tf.ensure_shape(image, (None, None, 3)), image_shape[:2], image_shape[2], "an image")
    return tf.ensure_shape(image, image_shape)


def inputs(graph: tf.types.experimental.ConcreteFunction) -> dict[str, tf.TensorSpec]:
    """The inputs of one of `signatures` by name; its outputs are `graph.structured_outputs`."""
    return {spec.name: spec for spec in graph.structured_input_signature[0]}


def write(model: DiscreteVAE, graphs: dict, path: str | os.PathLike) -> None:
    """Writes the graphs, `signatures(model)`, as a SavedModel at `path`."""
    module = tf.Module()
    # Only what inference needs, once: neither the optimizer's state nor generators of noise.
    module.weights = [
        variable.value for part in (model.encoder, model.decoder, model.prior) for variable in part.variables
    ]
    # Without gradients of the operations, which only training would use.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), {**graphs, **dict.fromkeys(DEFAULTS, graphs["encode"])}, options)
    _forget_custom_gradients(Path(path))


def _forget_custom_gradients(path: Path) -> None:
    """Makes operations whose gradients are not saved forget their names: every import would warn of them."""
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                node.attr.pop("_gradient_op_type", None)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    _private_apis.write_fingerprint(path)
