"""The card of an export: README.md, metadata.json and picture.png beside the versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import re
from pathlib import Path

from tf_isvae import datasets, estimators, files, likelihoods, precision, training
from tf_isvae.export import bad_input, formats, usage
from tf_isvae.export.signatures import inputs
from tf_isvae.model import DiscreteVAE

README = "README.md"
METADATA = "metadata.json"
PICTURE = "picture.png"
_KIND = "tf_isvae export"
# What the README says of each figure. It leaves out what is not here; metadata.json has all.
_FIGURES = {
    "loss": "-ELBO, nats an image",
    "log_likelihood": "its first part: E_q[ln p(x given z)]",
    "kl": "its second part: KL(q to p)",
    "neg_elbo": "-ELBO, nats an image, at the end",
    "bits_per_dimension": "the same in bits a value of an 8-bit image",
    "ln_p": "ln p(x), nats an image: exact, or a bound of it from below",
    "ln_p_kind": "which of the two",
    "images": "how many",
    "epochs": "how often training saw its images",
    "seconds": "of training",
    "gradient_variance": "of the estimator, nats squared a parameter of the encoder",
    "active_units": "entries of the code that depend on the image",
    "codes_used": "different codes",
    "perplexity": "of the categories: as many, equally frequent, would have the same entropy",
    "detail_kept": "differences of neighbouring pixels in decoded images, as a share of those in the images",
    "retrieval_map_100": "mean average precision of the 100 nearest codes among 10,000 training images",
    "samples_like_one_class": "share of the model's samples whose nearest training images are of one class",
    "like_one_class": "the same share of the images themselves",
    "cluster_accuracy": "share of images whose category is of their class, each category given its most frequent one",
    "cluster_matched_accuracy": "the same, each class given one category",
    "cluster_nmi": "normalised mutual information of categories and classes",
}
# Of which images it is; those without a name here are of the test images.
_OF = {"val_": "test", "test_": "test", "first_1000_": "first 1,000 test"}
_OF |= {**dict.fromkeys(("loss", "log_likelihood", "kl", "epochs", "seconds"), "training")}
_OF |= {"samples_like_one_class": "1,000 samples"}
_PACKAGES = ("tf_isvae", "tensorflow", "keras", "tensorflow-probability", "ai-edge-litert", "numpy")


def check_folder(folder: Path) -> None:
    """Raises FileExistsError if it is a file, or the card would overwrite what somebody else wrote."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; it must be a folder, in which versions can be written.")
    if not any((folder / name).exists() for name in (README, METADATA, PICTURE)):
        return
    try:
        ours = json.loads((folder / METADATA).read_text())["kind"] == _KIND
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{folder} holds a {README}, {METADATA} or {PICTURE} of another kind; choose another folder."
        )


def describe(
    model: DiscreteVAE,
    graphs: dict,
    path: Path,
    config: dict | None,
    metrics: dict | None,
    quantized: dict[str, dict] | None = None,
) -> dict:
    """What metadata.json says of one version, whose files are at `path`; `write` adds its number and other formats.

    `quantized` says of files beside the versions how many of the model's codes they give.
    """
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
            **({"features": f"float32 (n, {features})"} if (features := model.latent.feature_units) else {}),
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
        "quantized": quantized or {},
        "licence": "Apache-2.0",
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


def write(folder: Path, version: int, description: dict, drawn: tuple[bytes, str, str | None]) -> None:
    """Writes metadata.json, README.md and picture.png, `picture.draw` has drawn, each whole or not at all."""
    beside = {
        kind: {
            file.name: _file(file)
            for extension in sorted({row.extension for row in rows.values()})
            for file in sorted(folder.glob(f"[!.]*{extension}"))
        }
        for kind, rows in formats.kinds().items()
    }
    png, shows, ground = drawn
    shown = {"file": PICTURE, "shows": shows, "ground": ground}
    card = {**description, "name": folder.resolve().name, "version": version, "picture": shown, **beside}
    with files.atomic_write(folder / PICTURE) as temporary:
        temporary.write_bytes(png)
    files.write_json(folder / METADATA, card)
    with files.atomic_write(folder / README) as temporary:
        temporary.write_text(_readme(card))


def _and_features(model: dict) -> str:
    return f" and features {model['features']}" if "features" in model else ""


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
    ground = f", {card['picture']['ground']}" if card["picture"]["ground"] else ""
    parts = [
        f"# {_text(card['name'])}, version {card['version']}\n",
        f"Expects images of shape {tuple(model['image_shape'])} with values in [0, 1]{ground}, as in this picture.\n",
        f"![{card['picture']['shows']}]({PICTURE})\n",
        f"*{card['picture']['shows']}.*\n",
        f"A variational auto encoder, exported by tf_isvae: images of shape {tuple(model['image_shape'])} in [0, 1] to "
        f"codes {model['codes']}{_and_features(model)}, and back. {METADATA} holds the same for programs.\n",
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
        text = "Test images are those of the data, or if it has none, those that the run held out.\n"
        parts += ["## Figures\n", text, _table(("figure", "value", "images", "what it is"), _figures(metrics))]
    rows = [
        (name, *("; ".join(f"{key}: {tensor}" for key, tensor in io[side].items()) for side in ("inputs", "outputs")))
        for name, io in card["signatures"].items()
    ]
    in_version = {f"{card['version']}/{name}": file for name, file in card["files"].items()}
    beside = {name: file for kind in formats.kinds() for name, file in card[kind].items()}
    parts.append("## Use\n")
    files_beside = ([*card[kind]] for kind in ("keras", "litert"))
    for heading, block in usage.snippets(
        card["version"], model["image_shape"], *files_beside, features="features" in model
    ):
        parts += [f"{heading}:\n", _block(block.rstrip("\n"), "python")]
    parts += [
        "## Signatures\n",
        "`encode` is also `serving_default` and `serve`, the defaults of TensorFlow Serving and Keras. "
        "A row's seed alone determines its noise. In LiteRT files, `noise` float32 "
        "(n, units), uniform in (0, 1), takes the place of `seed`, and there is no `encode_png`.\n",
        _table(("signature", "inputs", "outputs"), rows),
        f"{bad_input.SAVED_MODEL} {bad_input.LITERT}\n",
        "## Files\n",
        _table(
            ("file", "bytes", "SHA-256"),
            [(name, file["bytes"], file["sha256"]) for name, file in {**in_version, **beside}.items()],
        ),
        *(
            f"{_code(name)} gives {found['codes_equal']:.2%} of the entries of the codes of {found['images']} training "
            "images as the model does.\n"
            for name, found in card["quantized"].items()
        ),
        "## Licence\n",
        f"{card['licence']}, as tf_isvae. The images that it was trained on have terms of their own.\n",
        "## Packages\n",
        "Written with " + ", ".join(f"{name} {version}" for name, version in card["packages"].items()) + ".\n",
    ]
    return "\n".join(parts)


def _figures(metrics: dict) -> list[tuple]:
    """Rows (figure, value, images, what it is) of the figures that are explained."""
    rows = []
    for name, value in metrics.items():
        prefix = next((prefix for prefix in ("val_", "test_", "first_1000_") if name.startswith(prefix)), None)
        key = name if prefix is None else name.removeprefix(prefix)
        if key in _FIGURES:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            rows.append((name, shown, _OF.get(prefix or name, "test"), _FIGURES[key]))
    return rows


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


def _block(text: str, language: str = "") -> str:
    """Text as a code block, which none of its lines can end."""
    fence = "`" * max(3, _longest_run_of_ticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def _longest_run_of_ticks(text: str) -> int:
    return max((len(list(run)) for tick, run in itertools.groupby(text) if tick == "`"), default=0)


def _plain(value) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
