"""SavedModel: <folder>/<version>/, as TensorFlow Serving and the C API load it."""

from __future__ import annotations

import os
from pathlib import Path

from tf_isvae.export import card, serving, versions
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
) -> Path:
    """Writes the model as the next version of its SavedModel.

    The signatures are those of `tf_isvae.export.signatures`. A version appears whole or not at all, and two exports
    at once get two versions. README.md and metadata.json in the folder, the card, describe the newest.

    Args:
        model: a DiscreteVAE.
        folder: where the versions are, <folder>/1, <folder>/2 ...; it is created.
        config: the settings of the run, as its config.json has them, for the card.
        metrics: the figures of the run, for the card.
        warmup: True to add requests that TensorFlow Serving runs before it takes the model into service, which needs
            the package tensorflow-serving-api; default: if that is installed.
        precision: what the networks compute in, whatever they were trained in: "float32" or "mixed_bfloat16"; None for
            the model's own.

    Returns:
        The path of the version.

    Raises:
        TypeError: `model` is not a DiscreteVAE, or `config` or `metrics` is not a dict.
        ValueError: `precision` is none of these.
        FileExistsError: `folder` is a file, or holds a README.md or metadata.json of another kind.
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
    check_model(model)
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
        description = card.describe(model, graphs, staging, config, metrics)
        # One at a time, so that the card is that of the newest version.
        with versions.lock(folder):
            version = versions.commit(staging, folder)
            card.write(folder, int(version.name), description)
    return version
