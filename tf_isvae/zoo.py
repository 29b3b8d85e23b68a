"""Names for ready combinations of networks, latent, estimator and recipes, and trained models by name."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras

from tf_isvae import checks, estimators, keras_files, likelihoods, networks, recipes
from tf_isvae.latents import BernoulliLatent, CategoricalLatent, GaussianLatent, Latent
from tf_isvae.model import DiscreteVAE
from tf_isvae.precision import in_precision
from tf_isvae.products import ProductLatent


class Row(NamedTuple):
    """One model: all that its name stands for."""

    latent: Callable[[int | tuple[int, int]], Latent]
    """Makes the latent from `latent_dim`."""
    encoder: Callable[[Sequence[int], int], keras.Model]
    """Makes it from the image shape and the width of its output."""
    decoder: Callable[[int, Sequence[int]], keras.Model]
    """Makes it from the width of z and the image shape."""
    latent_dim: int | tuple[int, int]
    estimator: Callable[[int | tuple[int, int]], str]
    recipes: dict[str, dict]
    """These three are those of recipes.MODELS."""


def _categorical(latent_dim: int | tuple[int, int]) -> CategoricalLatent:
    variables, categories = recipes.variables_and_categories(latent_dim)
    return CategoricalLatent(categories, variables)


def _hybrid(discrete: type[Latent], latent_dim: int | tuple[int, int]) -> ProductLatent:
    size, gaussians = recipes.discrete_and_gaussians(latent_dim)
    return ProductLatent([discrete(size), GaussianLatent(gaussians)])


# Of VaDE (arXiv:1611.05148). With the paper's one hidden layer, a mixture of Gaussians tells fewer digits apart
# (docs/hybrid.md).
_DEEP = (500, 500, 2000)

# Of bits with Gaussians: a second layer is worth 4 nats; in _DEEP all bits stay idle (docs/hybrid.md).
_DEEPER_DECODER = (512, 1024)

# The paper's table 1; last, with the same networks, the conventional VAE of its sections 1 and 2, and the hybrids that
# its section 7 hopes for: `fc_hvae` with deeper networks, `fc_hbvae` with a deeper decoder.
MODELS = {
    "fc_bvae": Row(
        latent=BernoulliLatent,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        **recipes.MODELS["fc_bvae"]._asdict(),
    ),
    "fc_cvae": Row(
        latent=_categorical,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        **recipes.MODELS["fc_cvae"]._asdict(),
    ),
    "cnn_bvae": Row(
        latent=BernoulliLatent,
        encoder=networks.conv_encoder,
        decoder=networks.conv_decoder,
        **recipes.MODELS["cnn_bvae"]._asdict(),
    ),
    "cnn_cvae": Row(
        latent=_categorical,
        encoder=networks.conv_encoder,
        decoder=networks.conv_decoder,
        **recipes.MODELS["cnn_cvae"]._asdict(),
    ),
    "fc_vae": Row(
        latent=GaussianLatent,
        encoder=networks.dense_encoder,
        decoder=networks.dense_decoder,
        **recipes.MODELS["fc_vae"]._asdict(),
    ),
    "fc_hvae": Row(
        latent=functools.partial(_hybrid, CategoricalLatent),
        encoder=functools.partial(networks.dense_encoder, hidden=_DEEP),
        decoder=functools.partial(networks.dense_decoder, hidden=_DEEP[::-1]),
        **recipes.MODELS["fc_hvae"]._asdict(),
    ),
    "cnn_hvae": Row(
        latent=functools.partial(_hybrid, CategoricalLatent),
        encoder=networks.conv_encoder,
        decoder=networks.conv_decoder,
        **recipes.MODELS["cnn_hvae"]._asdict(),
    ),
    "fc_hbvae": Row(
        latent=functools.partial(_hybrid, BernoulliLatent),
        encoder=networks.dense_encoder,
        decoder=functools.partial(networks.dense_decoder, hidden=_DEEPER_DECODER),
        **recipes.MODELS["fc_hbvae"]._asdict(),
    ),
}

# Names the folder of trained models of an installed package; each of them is a folder as scripts/export.py writes it.
MODELS_VARIABLE = "TF_ISVAE_MODELS"


def build(
    name: str,
    image_shape: Sequence[int] = (28, 28, 1),
    latent_dim: int | tuple[int, int] | str | None = None,
    *,
    estimator=None,
    likelihood=None,
    prior=None,
    kl_weight: float = 1.0,
    distortion: float | None = None,
    hidden_pixels: float | None = None,
    seed: int | None = None,
) -> DiscreteVAE:
    """An untrained DiscreteVAE of the paper's table 1, with the best estimator known for its latent.

    For one Categorical that is the exact gradient, which wants `callbacks.KLAnnealing(30, epochs=0.5)` in `fit`:
    without it, most categories are given up in the first epochs.

    Args:
        name: fc_bvae, fc_cvae, cnn_bvae or cnn_cvae; fc_vae, whose latent is Gaussian; fc_hvae or
            cnn_hvae, whose latent has categories and Gaussians; or fc_hbvae, bits and Gaussians.
        image_shape: (H, W, C), any positive integers.
        latent_dim: the number of bits, categories or Gaussians; (24, 4) or "24x4" for 24 Categoricals of 4 categories.
            Default the paper's: 50 bits, 100 categories; or 50 Gaussians. Of a hybrid, "10x10", the default, is 10
            categories with 10 Gaussians; of fc_hbvae, "40x10", its default, 40 bits with 10 Gaussians.
        estimator: as `estimators.get` takes it: an object, or text such as "ARMS:4". Default DisARM() for bits,
            Enumerated() for categories (LeaveOneOut() beyond 4,096 codes), Reparameterized() for fc_vae,
            Hybrid(LeaveOneOut()) for hybrids, Hybrid(DisARM()) for that of bits.
        likelihood: as `likelihoods.get` takes it: an object, or text such as "Gaussian:0.1". Default
            `likelihoods.default`: Bernoulli() for images of 1 channel, DiscretizedLogistic("channel") for others.
        prior, kl_weight, distortion, hidden_pixels, seed: as for DiscreteVAE. (keras.utils.set_random_seed fixes the
            initial weights.)

    Returns:
        A DiscreteVAE, not compiled.

    Raises:
        ValueError: an unknown name, or a size that is not a positive integer.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(8, 8, 1), latent_dim="3x4")
        >>> model.latent.num_codes
        64
    """
    row = MODELS[recipes.check_name(name)]
    latent_dim = row.latent_dim if latent_dim is None else checks.integer_or_pair("latent_dim", latent_dim)
    latent = row.latent(latent_dim)
    encoder = row.encoder(image_shape, latent.encoder_units)
    *grid, channels = encoder.input_shape[1:]
    likelihood = likelihoods.get(likelihoods.default(channels) if likelihood is None else likelihood)
    return DiscreteVAE(
        encoder,
        latent,
        row.decoder(latent.units, (*grid, likelihood.output_channels(channels))),
        estimator=estimators.get(row.estimator(latent_dim) if estimator is None else estimator),
        likelihood=likelihood,
        prior=prior,
        kl_weight=kl_weight,
        distortion=distortion,
        hidden_pixels=hidden_pixels,
        seed=seed,
        name=name,
    )


def names() -> list[str]:
    """The trained models that `load` finds by name: in the folder that TF_ISVAE_MODELS names, and the package's own.

    Example:
        >>> [name for name in zoo.names() if name.startswith("fc_bvae")]
        ['fc_bvae_ar_mnist', 'fc_bvae_fashion_mnist', 'fc_bvae_mnist']
    """
    return sorted(_trained())


def load(name: str | os.PathLike, precision: str | None = "float32") -> DiscreteVAE:
    """A trained DiscreteVAE, ready to encode.

    Args:
        name: one of `names()`; or the path of a .keras file, or of a folder that holds one: of an exported model, or
            a run directory.
        precision: what the networks compute in, whatever they were trained in: "float32" or "mixed_bfloat16", which is
            fast on processors with instructions for it only; None for the precision of the file.

    A name is first looked for in the folder that the environment variable TF_ISVAE_MODELS names, then among the models
    that come with the package: exported_models/ beside it in a clone of the repository, in it after an installation.

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
    return in_precision(keras_files.read(find(name)), precision)


def find(name: str | os.PathLike) -> Path:
    """The .keras file of a trained model, given as `load` takes it.

    Raises:
        FileNotFoundError: no such model; the text says which there are.

    Example:
        >>> zoo.find("fc_bvae_mnist").name
        'fc_bvae_mnist.keras'
    """
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
    package = Path(__file__).resolve().parent
    clone, installed = package.parent / "exported_models", package / "exported_models"  # setup.py maps one to the other
    return [*([Path(named)] if named else []), installed if installed.is_dir() else clone]


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
