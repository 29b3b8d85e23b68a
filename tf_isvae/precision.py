"""What the networks of a model compute in, and what their weights are stored in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from tf_isvae import checks
from tf_isvae.model import DiscreteVAE, check_model
from tf_isvae.recipes import PRECISIONS

# Log-densities and their sums are float32 in either.
# Values of ONEDNN_MAX_CPU_ISA, in lower case, that leave oneDNN without instructions for bfloat16 products; it ignores
# what it does not know. (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html)
CAPS_BELOW_BFLOAT16 = {
    *("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2"),
    *("avx512_mic", "avx512_mic_4ops", "avx512_core", "avx512_core_vnni"),
}


@contextlib.contextmanager
def layers_in(policy: str) -> Iterator[None]:
    """Layers made inside compute in this precision.

    Args:
        policy: the name of a Keras dtype policy, for instance "mixed_bfloat16".

    Example:
        >>> import keras
        >>> from tf_isvae.precision import layers_in
        >>> with layers_in("mixed_bfloat16"):
        ...     layer = keras.layers.Dense(3)
        >>> layer.compute_dtype, keras.layers.Dense(3).compute_dtype
        ('bfloat16', 'float32')
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def cap_below_bfloat16() -> str | None:
    """The setting of the environment that keeps oneDNN from instructions for bfloat16, if there is one.

    TensorFlow does not heed it when it chooses oneDNN for a product in bfloat16. Where the processor has the
    instructions, such a product then ends the process.
    """
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):  # oneDNN reads the older name if the newer is not set
        value = os.environ.get(name)
        if value:
            return f"{name}={value}" if value.lower() in CAPS_BELOW_BFLOAT16 else None
    return None


def multiplies_bfloat16() -> bool:
    """True if this machine has instructions for bfloat16 products: a GPU, AVX512-BF16, AMX, or Arm's BF16."""
    if tf.config.list_physical_devices("GPU"):
        return True
    if cap_below_bfloat16():
        return False
    with contextlib.suppress(OSError):  # there is no such file except on Linux
        return "bf16" in Path("/proc/cpuinfo").read_text()
    return False


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
        >>> from tf_isvae import zoo
        >>> from tf_isvae.precision import in_precision, layers_in
        >>> with layers_in("mixed_bfloat16"):
        ...     trained = zoo.build("cnn_bvae")
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


def computed_in(model: DiscreteVAE) -> str:
    """The name of Keras's dtype policy that the layers of the model compute in."""

    # Of the first layer with weights: a network as a whole has the policy under which it was put together.
    def policy(network):
        first = next((layer for layer in network.layers if layer.weights), None)
        return policy(first) if isinstance(first, keras.Model) else (first or network).dtype_policy.name

    return policy(model.encoder)


def stored_in(model: DiscreteVAE) -> str:
    """The type of the model's weights, and whether its matrices have been rounded to bfloat16."""
    matrices = [keras.ops.convert_to_numpy(weight) for weight in _matrices(model)]
    rounded = all((matrix == matrix.astype(tf.bfloat16.as_numpy_dtype)).all() for matrix in matrices)
    dtype = matrices[0].dtype.name if matrices else model.variable_dtype
    return f"{dtype}, matrices rounded to bfloat16" if matrices and rounded and dtype != "bfloat16" else dtype


def round_matrices(model: DiscreteVAE) -> None:
    """Rounds the matrices of the model, and its convolutions' kernels, to the nearest bfloat16. They remain float32.

    A compressed .keras file is half the size then. A model that was trained in mixed_bfloat16 has never multiplied by
    more. Biases are left as they are.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> from tf_isvae.precision import round_matrices, stored_in
        >>> round_matrices(model)
        >>> stored_in(model)
        'float32, matrices rounded to bfloat16'
    """
    for weight in _matrices(model):
        weight.assign(tf.cast(tf.cast(weight, tf.bfloat16), weight.dtype))


def _matrices(model: DiscreteVAE) -> list:
    return [weight for weight in model.trainable_weights if len(weight.shape) > 1]


def _layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from _layers(part)
