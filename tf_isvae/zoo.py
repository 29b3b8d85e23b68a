"""Names for ready combinations of networks, latent, estimator and recipes, and trained models by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras

from tf_isvae import checks, estimators, keras_files, likelihoods, networks
from tf_isvae.latents import BernoulliLatent, CategoricalLatent, GaussianLatent, Latent
from tf_isvae.model import DiscreteVAE
from tf_isvae.posteriors import MAX_ENUMERATED_CODES
from tf_isvae.precision import in_precision


class Row(NamedTuple):
    """One model: all that its name stands for."""

    latent: Callable[[int | tuple[int, int]], Latent]
    """Makes the latent from `latent_dim`."""
    latent_dim: int | tuple[int, int]
    """The paper's."""
    encoder: Callable[[Sequence[int], int], keras.Model]
    """Makes it from the image shape and the width of its output."""
    decoder: Callable[[int, Sequence[int]], keras.Model]
    """Makes it from the width of z and the image shape."""
    estimator: Callable[[int | tuple[int, int]], str]
    """The name of the best estimator known for a `latent_dim` (docs/estimators.md has the figures)."""
    recipes: dict[str, dict]
    """Recipe -> what it fixes of the settings of a run (training.Config); without an estimator, it takes that above."""


def _categorical(latent_dim: int | tuple[int, int]) -> CategoricalLatent:
    variables, categories = _variables_and_categories(latent_dim)
    return CategoricalLatent(categories, variables)


def _enumerated_if_possible(latent_dim: int | tuple[int, int]) -> str:
    variables, categories = _variables_and_categories(latent_dim)
    return "Enumerated" if categories**variables <= MAX_ENUMERATED_CODES else "LeaveOneOut"


def _variables_and_categories(latent_dim: int | tuple[int, int]) -> tuple[int, int]:
    return latent_dim if isinstance(latent_dim, tuple) else (1, latent_dim)


# What a recipe fixes, unless a setting of the run says otherwise. `kl_start` and `kl_epochs` are those of
# callbacks.KLAnnealing; the schedule "cosine" takes the learning rate to 0 at the end of the run; start_at_mean is
# networks.start_at_mean.
#
# The figures that chose them: test -ELBO in nats per image, grey MNIST, seed 0, and seconds on one core of an AMD EPYC
# with avx512_bf16, beside other jobs.
#   fc_bvae   paper 124.6 (300 epochs, 2,180 s); best passes 124.6 after 49 s and ends at 106.2 (2,164 s).
#             With Linearized() for DisARM(): 0.8 nats lower after 10 epochs, no lower after the same seconds.
#   cnn_bvae  paper 129.5 (300 epochs, 7,078 s); best below 115 after 67 epochs (1,965 s) and
#             112.4 after 160 (5,464 s), in mixed_bfloat16.
#   fc_cvae   paper 158.1 (300 epochs, 2,360 s); best 139.3 (249 s), all 100 codes used.
#             Without annealing 192.7 and 4 codes, from a weight of 100 151.5 and 45 (the prototype).
#   cnn_cvae  paper 205.9 after 100 epochs (one code); best 140.4 in mixed_bfloat16 (713 s), all 100 codes used.
# On the digits (FC BVAE, 60 epochs at batch 64, cosine): ImportanceSampling 374, DisARM 304, with start_at_mean 301,
# with a KL weight from 10 in 10 epochs besides 308.
_PAPER = {  # section 6 of the paper, for all models
    "estimator": "ImportanceSampling",
    "epochs": 300,
    "batch_size": 2048,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "kl_start": 1.0,
    "kl_epochs": 0,
    "start_at_mean": False,
    "precision": "float32",
}
_BEST = {name: value for name, value in _PAPER.items() if name != "estimator"}
_BITS = {**_BEST, "batch_size": 256, "schedule": "cosine", "start_at_mean": True}
_ANNEALED = {**_BEST, "schedule": "cosine", "kl_start": 30.0}

# The paper's table 1; last, the conventional VAE of its sections 1 and 2, with the same networks and an estimator of
# its own in both recipes.
MODELS = {
    "fc_bvae": Row(
        latent=BernoulliLatent,
        latent_dim=50,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        estimator=lambda latent_dim: "DisARM",
        recipes={"best": {**_BITS, "epochs": 220, "precision": "fastest"}, "paper": _PAPER},
    ),
    "fc_cvae": Row(
        latent=_categorical,
        latent_dim=100,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        estimator=_enumerated_if_possible,
        recipes={"best": {**_ANNEALED, "epochs": 60, "kl_epochs": 30}, "paper": _PAPER},
    ),
    "cnn_bvae": Row(
        latent=BernoulliLatent,
        latent_dim=50,
        encoder=networks.conv_encoder,
        decoder=networks.conv_decoder,
        estimator=lambda latent_dim: "DisARM",
        recipes={"best": {**_BITS, "epochs": 160}, "paper": _PAPER},
    ),
    "cnn_cvae": Row(
        latent=_categorical,
        latent_dim=100,
        encoder=networks.conv_encoder,
        decoder=networks.conv_decoder,
        estimator=_enumerated_if_possible,
        recipes={"best": {**_ANNEALED, "epochs": 40, "kl_epochs": 20}, "paper": _PAPER},
    ),
    "fc_vae": Row(
        latent=GaussianLatent,
        latent_dim=50,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        estimator=lambda latent_dim: "Reparameterized",
        recipes={"best": _BEST, "paper": _BEST},
    ),
}

# Names the folder of trained models of an installed package; each of them is a folder as scripts/export.py writes it.
MODELS_VARIABLE = "TF_ISVAE_MODELS"


def check_name(name: str) -> str:
    """`name` itself. Raises ValueError if `build` knows no model of this name."""
    if name not in tuple(MODELS):  # which takes a name of any type
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}.{hint}")
    return name


def build(
    name: str,
    image_shape: Sequence[int] = (28, 28, 1),
    latent_dim: int | tuple[int, int] | str | None = None,
    *,
    estimator=None,
    likelihood=None,
    prior=None,
    seed: int | None = None,
) -> DiscreteVAE:
    """An untrained DiscreteVAE of the paper's table 1, with the best estimator known for its latent.

    For one Categorical that is the exact gradient, which wants `callbacks.KLAnnealing(30, epochs=0.5)` in `fit`:
    without it, most categories are given up in the first epochs.

    Args:
        name: fc_bvae, fc_cvae, cnn_bvae or cnn_cvae; or fc_vae, whose latent is Gaussian.
        image_shape: (H, W, C), any positive integers.
        latent_dim: the number of bits, categories or Gaussians; (24, 4) or "24x4" for 24 Categoricals of 4 categories.
            Default the paper's: 50 bits, 100 categories; or 50 Gaussians.
        estimator: as `estimators.get` takes it: an object, or text such as "ARMS:4". Default DisARM() for bits,
            Enumerated() for categories (LeaveOneOut() beyond 4,096 codes), Reparameterized() for fc_vae.
        likelihood, prior, seed: as for DiscreteVAE. (keras.utils.set_random_seed fixes the initial weights.)

    Returns:
        A DiscreteVAE, not compiled.

    Raises:
        ValueError: an unknown name, or a size that is not a positive integer.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(8, 8, 1), latent_dim="3x4")
        >>> model.latent.num_codes
        64
    """
    row = MODELS[check_name(name)]
    latent_dim = row.latent_dim if latent_dim is None else checks.integer_or_pair("latent_dim", latent_dim)
    latent = row.latent(latent_dim)
    likelihood = likelihoods.Bernoulli() if likelihood is None else likelihood
    likelihoods.check(likelihood)
    encoder = row.encoder(image_shape, latent.encoder_units)
    *grid, channels = encoder.input_shape[1:]
    return DiscreteVAE(
        encoder,
        latent,
        row.decoder(latent.units, (*grid, likelihood.output_channels(channels))),
        estimator=estimators.get(row.estimator(latent_dim) if estimator is None else estimator),
        likelihood=likelihood,
        prior=prior,
        seed=seed,
        name=name,
    )


def names() -> list[str]:
    """The trained models that `load` finds by name: in the folder that TF_ISVAE_MODELS names, and in a clone.

    Example:
        >>> [name for name in zoo.names() if name.startswith("fc_bvae")]
        ['fc_bvae_fashion_mnist', 'fc_bvae_mnist']
    """
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
        FileNotFoundError: no such model; the text says which there are.
        ValueError: its file is damaged, altered, or of another kind; or a precision that is none of these.

    Example:
        >>> model = zoo.load("fc_bvae_mnist")
        >>> model.encode(np.zeros((2, 28, 28, 1))).shape
        (2, 50)
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"name is {name!r}; give one of zoo.names(), or the path of a model.")
    return in_precision(keras_files.read(_find(name)), precision)


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
