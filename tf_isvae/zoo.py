"""Names for ready combinations of networks, latent and estimator, and trained models by name."""

from __future__ import annotations

import difflib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras

from tf_isvae import estimators, networks
from tf_isvae.latents import BernoulliLatent, CategoricalLatent, GaussianLatent
from tf_isvae.model import DiscreteVAE, in_precision

# The paper's table 1: name -> (latent, encoder, decoder, the paper's latent size); last, the conventional VAE of its
# sections 1 and 2, with the same networks.
ARCHITECTURES = {
    "fc_bvae": (BernoulliLatent, networks.dense_encoder, networks.dense_decoder, 50),
    "fc_cvae": (CategoricalLatent, networks.dense_encoder, networks.dense_decoder, 100),
    "cnn_bvae": (BernoulliLatent, networks.conv_encoder, networks.conv_decoder, 50),
    "cnn_cvae": (CategoricalLatent, networks.conv_encoder, networks.conv_decoder, 100),
    "fc_vae": (GaussianLatent, networks.dense_encoder, networks.dense_decoder, 50),
}

# Names the folder of trained models of an installed package; each of them is a folder as scripts/export.py writes it.
MODELS_VARIABLE = "TF_ISVAE_MODELS"
# All that DiscreteVAE.save writes. Keras would unpack other members of the archive to disk.
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}


def check_name(name: str) -> None:
    """Raises ValueError where `build` knows no model of this name."""
    if name not in tuple(ARCHITECTURES):  # which takes a name of any type
        near = difflib.get_close_matches(str(name), ARCHITECTURES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no model is called {name!r}; there are {', '.join(ARCHITECTURES)}.{hint}")


def build(
    name: str,
    image_shape: Sequence[int] = (28, 28, 1),
    latent_dim: int | None = None,
    *,
    estimator=None,
    likelihood=None,
    seed: int | None = None,
) -> DiscreteVAE:
    """An untrained DiscreteVAE of the paper's table 1, with the best estimator known for its latent.

    For one Categorical that is the exact gradient, which wants `callbacks.KLAnnealing(30, epochs / 2)` in `fit`:
    without it, most categories are given up in the first epochs.

    Args:
        name: fc_bvae, fc_cvae, cnn_bvae or cnn_cvae; or fc_vae, whose latent is Gaussian.
        image_shape: (H, W, C), any positive integers.
        latent_dim: c, the number of bits, categories or Gaussians; default the paper's: 50 bits, 100 categories; or 50.
        estimator: default DisARM() for bits, Enumerated() for a category (LeaveOneOut() beyond 4,096 categories),
            Reparameterized() for fc_vae.
        likelihood, seed: as for DiscreteVAE. (keras.utils.set_random_seed fixes the initial weights.)

    Raises:
        ValueError: an unknown name, or a size that is not a positive integer.
    """
    check_name(name)
    latent_class, encoder, decoder, default_dim = ARCHITECTURES[name]
    latent = latent_class(default_dim if latent_dim is None else latent_dim)
    if estimator is None:
        estimator = _best_estimator(latent)
    return DiscreteVAE(
        encoder(image_shape, latent.encoder_units),
        latent,
        decoder(latent.units, image_shape),
        estimator=estimator,
        likelihood=likelihood,
        seed=seed,
        name=name,
    )


def _best_estimator(latent) -> estimators.Estimator:
    # docs/estimators.md has the figures.
    if isinstance(latent, BernoulliLatent):
        return estimators.DisARM()
    if isinstance(latent, GaussianLatent):
        return estimators.Reparameterized()
    if latent.enumerable:
        return estimators.Enumerated()
    return estimators.LeaveOneOut()


def names() -> list[str]:
    """The trained models that `load` finds by name: those of the folder that TF_ISVAE_MODELS names, and of a clone."""
    return sorted(_trained())


def load(name: str | os.PathLike, precision: str | None = "float32") -> DiscreteVAE:
    """A trained DiscreteVAE, ready to encode.

    Args:
        name: one of `names()`; or the path of a .keras file, or of a folder that holds one: of an exported model, or
            a run directory.
        precision: what the networks compute in, whatever they were trained in: "float32" or "mixed_bfloat16", which is
            fast on processors with instructions for it only; None for the precision of the file.

    A name is first looked for in the folder that the environment variable TF_ISVAE_MODELS names, then in
    exported_models/ beside the package, as in a clone of the repository.

    Raises:
        FileNotFoundError: no such model; the text says which there are. ValueError: its file is damaged, altered, or
        of another kind; or a precision that is none of these.
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"name is {name!r}; give one of zoo.names(), or the path of a model.")
    return in_precision(load_keras(_find(name)), precision)


def _find(name: str | os.PathLike) -> Path:
    """The .keras file of a trained model, given as `load` takes it."""
    found = _trained()
    if str(name) in found:
        return found[str(name)]
    path = Path(name)
    if path.is_dir():
        files = _keras_files(path)
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds {len(files)} .keras files; give the path of one.")
        return files[0]
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(name), found, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"{MODELS_VARIABLE} may name another folder."
    raise FileNotFoundError(
        f"no trained model is called {str(name)!r}, nor is it a path; there are {', '.join(sorted(found)) or 'none'} "
        f"in {' and '.join(map(str, _model_folders()))}. {hint}"
    )


def _model_folders() -> list[Path]:
    named = os.environ.get(MODELS_VARIABLE)
    return [*([Path(named)] if named else []), Path(__file__).resolve().parents[1] / "exported_models"]


def _trained() -> dict[str, Path]:
    """Name -> .keras file. Of two folders of one name, the first in the order of _model_folders counts."""
    found = {}
    for parent in _model_folders():
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            files = _keras_files(folder)
            if len(files) == 1:
                found.setdefault(folder.name, files[0])
    return found


def _keras_files(folder: Path) -> list[Path]:
    # A name that begins with a dot is of a file that is being written.
    return sorted(path for path in folder.glob("*.keras") if not path.name.startswith("."))


def load_keras(path: str | os.PathLike) -> DiscreteVAE:
    """The model of a .keras file that DiscreteVAE.save wrote, not compiled.

    Nothing is unpickled, and no code that the file may hold is run: Keras's safe_mode is on, Lambda layers are refused.

    Raises ValueError where the file is damaged, altered, or of another kind, or there is none.
    """
    path = Path(path)
    what = "it must be a model that DiscreteVAE.save wrote, ending in .keras"
    if path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file; {what}.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            damaged = archive.testzip() if members <= _MEMBERS else None
            config = json.loads(archive.read("config.json")) if "config.json" in members else {}
        lambda_layer = "Lambda" in _class_names(config)
    except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs and json
        raise ValueError(f"{path} is damaged, or of another kind ({_line(error)}); {what}.") from None
    if damaged is not None:
        raise ValueError(f"{path} is damaged ({damaged} has a wrong checksum); {what}.")
    kind = config.get("registered_name") if isinstance(config, dict) else None
    if members != _MEMBERS or kind != "tf_isvae>DiscreteVAE":
        names = " ".join(", ".join(sorted(members)).split())[:200]
        raise ValueError(f"{path} holds {str(kind or 'something else')[:100]!r} in {names}; {what}.")
    if lambda_layer:
        raise ValueError(f"{path} has a Lambda layer, which could run any code; it is not loaded.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # an altered file may fail anywhere in Keras
        raise ValueError(f"{path} cannot be loaded ({_line(error)}); {what}.") from None


def _class_names(config) -> set:
    if isinstance(config, dict):
        own = {config["class_name"]} if isinstance(config.get("class_name"), str) else set()
        return own.union(*map(_class_names, config.values()))
    return set().union(*map(_class_names, config)) if isinstance(config, list) else set()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
