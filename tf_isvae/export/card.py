"""The card of an export: README.md and metadata.json beside the versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import re
from pathlib import Path

from tf_isvae import datasets, estimators, files, likelihoods, precision, training
from tf_isvae.export import bad_input, formats
from tf_isvae.export.signatures import inputs
from tf_isvae.model import DiscreteVAE

README = "README.md"
METADATA = "metadata.json"
_KIND = "tf_isvae export"
_PACKAGES = ("tf_isvae", "tensorflow", "keras", "tensorflow-probability", "ai-edge-litert", "numpy")


def check_folder(folder: Path) -> None:
    """Raises FileExistsError if it is a file, or the card would overwrite what somebody else wrote."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; it must be a folder, in which versions can be written.")
    if not (folder / README).exists() and not (folder / METADATA).exists():
        return
    try:
        ours = json.loads((folder / METADATA).read_text())["kind"] == _KIND
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise FileExistsError(f"{folder} holds a {README} or {METADATA} of another kind; choose another folder.")


def describe(model: DiscreteVAE, graphs: dict, path: Path, config: dict | None, metrics: dict | None) -> dict:
    """What metadata.json says of one version, whose files are at `path`; `write` adds its number and other formats."""
    config = {name: value for name, value in (config or {}).items() if name not in ("run_dir", "data_dir")}
    if "dataset" in config:
        config["dataset"] = datasets.public_name(str(config["dataset"]))
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
            "likelihood": _name_of(model.likelihood),
            "prior": {"class": type(model.prior).__name__, "parameters": model.prior.count_params()},
            "estimator": estimator,
            "precision": precision.computed_in(model),
            "weights": precision.stored_in(model),
            "parameters": sum(part.count_params() for part in (model.encoder, model.decoder, model.prior)),
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


def write(folder: Path, version: int, description: dict) -> None:
    """Writes metadata.json and README.md, each whole or not at all."""
    beside = {
        kind: {
            file.name: _file(file)
            for extension in sorted({row.extension for row in rows.values()})
            for file in sorted(folder.glob(f"[!.]*{extension}"))
        }
        for kind, rows in formats.kinds().items()
    }
    card = {**description, "name": folder.resolve().name, "version": version, **beside}
    files.write_json(folder / METADATA, card)
    with files.atomic_write(folder / README) as temporary:
        temporary.write_text(_readme(card))


def _name_of(likelihood: likelihoods.Likelihood) -> str:
    try:
        return likelihoods.name_of(likelihood)
    except ValueError:  # one of one's own
        return type(likelihood).__name__


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


def _readme(card: dict) -> str:
    model, training, metrics = card["model"], card["training"], card["metrics"]
    parts = [
        f"# {_text(card['name'])}, version {card['version']}\n",
        f"A variational auto encoder, exported by tf_isvae: images of shape {tuple(model['image_shape'])} in [0, 1] to "
        f"codes {model['codes']}, and back. {METADATA} holds the same for programs.\n",
        "## Model\n",
        "precision: what the networks compute in. weights: what they are stored in.\n",
        _table(("", ""), [(name, _plain(value)) for name, value in model.items()]),
    ]
    if training:
        dataset = _code(training["config"].get("dataset", "unknown"))
        parts += [
            "## Training\n",
            f"Data: {dataset}. The command that makes the same model:\n",
            _block(training["command"]),
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
    in_version = {f"{card['version']}/{name}": file for name, file in card["files"].items()}
    beside = {name: file for kind in formats.kinds() for name, file in card[kind].items()}
    parts += [
        "## Signatures\n",
        "`encode` is also `serving_default` and `serve`, the defaults of TensorFlow Serving and Keras. "
        "A row's seed alone determines its noise. In LiteRT files, `noise` float32 "
        "(n, units), uniform in (0, 1), takes the place of `seed`.\n",
        _table(("signature", "inputs", "outputs"), rows),
        f"{bad_input.SAVED_MODEL} {bad_input.LITERT}\n",
        "## Files\n",
        _table(
            ("file", "bytes", "SHA-256"),
            [(name, file["bytes"], file["sha256"]) for name, file in {**in_version, **beside}.items()],
        ),
        "## Packages\n",
        "Written with " + ", ".join(f"{name} {version}" for name, version in card["packages"].items()) + ".\n",
    ]
    return "\n".join(parts)


# --- Markdown. Names of data sets and folders may hold anything.


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *(tuple(map(_text, row)) for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _text(value) -> str:
    """A value as text on one line, which stands for itself."""
    return re.sub(r"[\\`|<&*\[\]]", r"\\\g<0>", " ".join(str(value).split()))


def _code(value) -> str:
    """A value as a code span."""
    text = " ".join(str(value).split())
    ticks = "`" * (_longest_run_of_ticks(text) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _block(text: str) -> str:
    """Text as a code block, which none of its lines can end."""
    fence = "`" * max(3, _longest_run_of_ticks(text) + 1)
    return f"{fence}\n{text}\n{fence}\n"


def _longest_run_of_ticks(text: str) -> int:
    return max((len(list(run)) for tick, run in itertools.groupby(text) if tick == "`"), default=0)


def _plain(value) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
