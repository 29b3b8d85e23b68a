"""Names for ready combinations of networks, latent and estimator."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tf_isvae import networks
from tf_isvae.latents import BernoulliLatent, CategoricalLatent
from tf_isvae.model import DiscreteVAE

# The paper's table 1: name -> (latent, encoder, decoder, the paper's latent size).
ARCHITECTURES = {
    "fc_bvae": (BernoulliLatent, networks.dense_encoder, networks.dense_decoder, 50),
    "fc_cvae": (CategoricalLatent, networks.dense_encoder, networks.dense_decoder, 100),
    "cnn_bvae": (BernoulliLatent, networks.conv_encoder, networks.conv_decoder, 50),
    "cnn_cvae": (CategoricalLatent, networks.conv_encoder, networks.conv_decoder, 100),
}


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
    """An untrained DiscreteVAE of the paper's table 1.

    Args:
        name: fc_bvae, fc_cvae, cnn_bvae or cnn_cvae.
        image_shape: (H, W, C), any positive integers.
        latent_dim: c, the number of bits or of categories; default the paper's (50 bits, 100 categories).
        estimator, likelihood, seed: as for DiscreteVAE. (keras.utils.set_random_seed fixes the initial weights.)

    Raises:
        ValueError: an unknown name, or a size that is not a positive integer.
    """
    check_name(name)
    latent_class, encoder, decoder, default_dim = ARCHITECTURES[name]
    latent = latent_class(default_dim if latent_dim is None else latent_dim)
    return DiscreteVAE(
        encoder(image_shape, latent.encoder_units),
        latent,
        decoder(latent.units, image_shape),
        estimator=estimator,
        likelihood=likelihood,
        seed=seed,
        name=name,
    )
