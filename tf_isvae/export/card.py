"""The card of an export: README.md and metadata.json beside the versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path

import keras
import tensorflow as tf

from tf_isvae import estimators, files, training
from tf_isvae.export import bad_input
from tf_isvae.export.signatures import inputs
from tf_isvae.model import DiscreteVAE

_KIND = "tf_isvae export"
_PACKAGES = ("tf_isvae", "tensorflow", "keras", "tensorflow-probability", "ai-edge-litert", "numpy")


def check_folder(folder: Path) -> None:
    """Raises FileExistsError where it is a file, or the card would overwrite what somebody else wrote."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give a folder in which versions can be written.")
    if not (folder / "README.md").exists() and not (folder / "metadata.json").exists():
        return
    try:
        ours = json.loads((folder / "metadata.json").read_text())["kind"] == _KIND
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise FileExistsError(f"{folder} holds a README.md or metadata.json of another kind; choose another folder.")


def describe(model: DiscreteVAE, graphs: dict, path: Path, config: dict | None, metrics: dict | None) -> dict:
    """What metadata.json says of one version, whose files are at `path`; `write` adds its number and LiteRT files."""
    config = {name: value for name, value in (config or {}).items() if name not in ("run_dir", "data_dir")}
    if "dataset" in config:
        config["dataset"] = Path(str(config["dataset"])).name
    estimator = {"class": type(model.estimator).__name__}
    if isinstance(model.estimator, estimators.Estimator):  # or any function of one's own
        estimator["config"] = model.estimator.get_config()
    return {
        "kind": _KIND,
        "model": {
            "name": model.name,
            "latent": type(model.latent).__name__,
            "codes": f"{model.latent.code_dtype} (n, {model.latent.code_units})",
            "values_per_code": model.latent.code_values,
            "image_shape": list(model.image_shape),
            "likelihood": type(model.likelihood).__name__,
            "estimator": estimator,
            "precision": _precision(model.encoder),
            "weights": _weights(model),
            "parameters": model.encoder.count_params() + model.decoder.count_params(),
        },
        "training": {"command": training.command(config), "config": config} if config else None,
        "metrics": metrics,
        "signatures": {
            name: {
                "inputs": {key: _tensor(spec) for key, spec in inputs(graph).items()},
                "outputs": {key: _tensor(spec) for key, spec in graph.structured_outputs.items()},
            }
            for name, graph in graphs.items()
        },
        "packages": _versions(),
        "files": {str(file.relative_to(path)): _file(file) for file in sorted(path.rglob("*")) if file.is_file()},
    }


def _precision(network: keras.Model) -> str:
    """That of its first layer with weights; the network as a whole has the policy under which it was put together."""
    first = next((layer for layer in network.layers if layer.weights), None)
    if isinstance(first, keras.Model):
        return _precision(first)
    return (first or network).dtype_policy.name


def _weights(model: DiscreteVAE) -> str:
    matrices = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights if len(weight.shape) > 1]
    rounded = all((matrix == matrix.astype(tf.bfloat16.as_numpy_dtype)).all() for matrix in matrices)
    dtype = matrices[0].dtype.name if matrices else model.variable_dtype
    return f"{dtype}, matrices rounded to bfloat16" if matrices and rounded and dtype != "bfloat16" else dtype


def write(folder: Path, version: int, description: dict) -> None:
    """Writes metadata.json and README.md, each whole or not at all."""
    beside = {
        kind: {file.name: _file(file) for file in sorted(folder.glob(f"[!.]*.{suffix}"))}
        for kind, suffix in (("litert", "tflite"), ("keras", "keras"))
    }
    card = {**description, "name": folder.resolve().name, "version": version, **beside}
    files.write_json(folder / "metadata.json", card)
    with files.atomic_write(folder / "README.md") as temporary:
        temporary.write_text(_readme(card))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        # tf_isvae may be run from its source, and LiteRT be absent.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _tensor(spec) -> str:
    shape = ", ".join("n" if size is None else str(size) for size in spec.shape)
    return f"{spec.dtype.name} ({shape}{',' if len(spec.shape) == 1 else ''})"


def _file(path: Path) -> dict:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _readme(card: dict) -> str:
    model, training, metrics = card["model"], card["training"], card["metrics"]
    parts = [
        f"# {card['name']}, version {card['version']}\n",
        f"A variational auto encoder, exported by tf_isvae: images of shape "
        f"{tuple(model['image_shape'])} in [0, 1] to codes {model['codes']}, and back. metadata.json holds the same "
        "for programs.\n",
        "## Model\n",
        _table(("", ""), [(name, _plain(value)) for name, value in model.items()]),
    ]
    if training:
        parts += [
            "## Training\n",
            f"Data: {training['config'].get('dataset', 'unknown')}.\n\n```\n{training['command']}\n```\n",
        ]
    if metrics:
        rows = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in metrics.items()]
        text = (
            "Nats per image; loss = -ELBO. `val_` and `test_`: test images, `first_1000_`: the first 1,000 of them; "
            "otherwise training images. ln_p: ln p(x), or a bound of it, as `test_ln_p_kind` says.\n"
        )
        parts += ["## Figures\n", text, _table(("figure", "value"), rows)]
    rows = [
        (name, *("; ".join(f"{key}: {tensor}" for key, tensor in io[side].items()) for side in ("inputs", "outputs")))
        for name, io in card["signatures"].items()
    ]
    parts += [
        "## Signatures\n",
        "`encode` is also `serving_default`. A row's seed alone determines its noise. In LiteRT files, `noise` float32 "
        "(n, units), uniform in (0, 1), takes the place of `seed`.\n",
        _table(("signature", "inputs", "outputs"), rows),
        f"{bad_input.SAVED_MODEL} {bad_input.LITERT}\n",
        "## Files\n",
        _table(
            ("file", "bytes", "SHA-256"),
            [(f"{card['version']}/{name}", file["bytes"], file["sha256"]) for name, file in card["files"].items()]
            + [(name, file["bytes"], file["sha256"]) for name, file in {**card["litert"], **card["keras"]}.items()],
        ),
        "## Packages\n",
        "Written with " + ", ".join(f"{name} {version}" for name, version in card["packages"].items()) + ".\n",
    ]
    return "\n".join(parts)


def _plain(value) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
