"""SavedModel: <folder>/<version>/, as TensorFlow Serving and the C API load it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tf_isvae import checks
from tf_isvae.export import card, picture, serving, versions
from tf_isvae.export.signatures import signatures, write
from tf_isvae.model import DiscreteVAE, check_model
from tf_isvae.precision import in_precision


def saved_model(
    model: DiscreteVAE,
    folder: str | os.PathLike,
    config: dict | None = None,
    metrics: dict | None = None,
    *,
    warmup: bool | None = None,
    precision: str | None = "float32",
    examples: np.ndarray | None = None,
) -> Path:
    """Writes the model as the next version of its SavedModel.

    The signatures are those of `tf_isvae.export.signatures`. A version appears whole or not at all, and two exports
    at once get two versions. README.md, metadata.json and picture.png in the folder, the card, describe the newest.

    Args:
        model: a DiscreteVAE.
        folder: where the versions are, <folder>/1, <folder>/2 ...; it is created.
        config: the settings of the run, as its config.json has them, for the card.
        metrics: the figures of the run, for the card.
        warmup: True to add requests that TensorFlow Serving runs before it takes the model into service, which needs
            the package tensorflow-serving-api; default: if that is installed.
        precision: what the networks compute in, whatever they were trained in: "float32" or "mixed_bfloat16"; None for
            the model's own.
        examples: images (n, H, W, C) in [0, 1] of the kind that the model was trained on, for the picture of the card;
            default: samples of the model.

    Returns:
        The path of the version.

    Raises:
        TypeError: `model` is not a DiscreteVAE, or `config` or `metrics` is not a dict.
        ValueError: `precision` is none of these.
        FileExistsError: `folder` is a file, or holds a README.md, metadata.json or picture.png of another kind.
        OSError: it cannot be written.
        ModuleNotFoundError: `warmup` is True, and tensorflow-serving-api is not installed.
        RuntimeError: a warm-up request fails. Every server would refuse the model.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> print(export.saved_model(model, "exported/digits"))
        exported/digits/1
        >>> encode = tf.saved_model.load("exported/digits/1").signatures["encode"]
        >>> encode(images=tf.zeros((5, 8, 8, 1)))["codes"].shape
        TensorShape([5, 4])
    """
    return write_version(model, folder, config, metrics, warmup, precision, examples)


def write_version(
    model: DiscreteVAE,
    folder: str | os.PathLike,
    config: dict | None,
    metrics: dict | None,
    warmup: bool | None = None,
    precision: str | None = "float32",
    examples: np.ndarray | None = None,
    quantized: dict[str, dict] | None = None,
) -> Path:
    """`saved_model`, with what is known of quantized files beside the versions, for the card."""
    check_model(model)
    if examples is not None:
        examples = checks.images("examples", examples, model.image_shape)
    if warmup:
        serving.require("warm-up requests")
    for name, value in (("config", config), ("metrics", metrics)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"{name} is {value!r}; it must be a dict, what {name}.json of the run holds, or None.")
    folder = Path(folder)
    card.check_folder(folder)
    model = in_precision(model, precision)
    graphs = signatures(model)
    with versions.new_version(folder) as staging:
        write(model, graphs, staging)
        if warmup or (warmup is None and serving.available()):
            serving.write_warmup(staging, folder.resolve().name)
        description = card.describe(model, graphs, staging, config, metrics, quantized)
        drawn = picture.draw(model, graphs, examples)
        # One at a time, so that the card is that of the newest version.
        with versions.lock(folder):
            version = versions.commit(staging, folder)
            card.write(folder, int(version.name), description, drawn)
    return version
