"""How much an image is like those that a model was trained on."""

from __future__ import annotations

import numpy as np

from tf_isvae import checks
from tf_isvae.model import DiscreteVAE, check_model

SCORES = ("elbo", "log_likelihood")


def typicality(
    model: DiscreteVAE, images, score: str = "log_likelihood", num_samples: int = 100, seed: int = 0
) -> np.ndarray:
    """A score of each image: the higher, the more it is like the training images.

    Args:
        model: a DiscreteVAE.
        images: (n, H, W, C) in [0, 1].
        score: "elbo", the evidence lower bound; or "log_likelihood", the tighter bound of `num_samples` samples,
            which is exact for at most 4,096 codes.
        num_samples: how many draws of the model's estimator are averaged for the ELBO, or samples of the other bound.
        seed: fixes them.

    Returns:
        (n,) float32, nats.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> evaluation.typicality(model, np.zeros((5, 4, 4, 1)), "elbo", num_samples=2).shape
        (5,)
    """
    check_model(model)
    checks.one_of("score", score, SCORES)
    num_samples = checks.integer("num_samples", num_samples)
    seed = checks.integer("seed", seed, 0)
    if score == "log_likelihood":
        return model.log_likelihood(images, num_samples, seed=seed)
    return np.mean([model.elbo(images, seed=seed * num_samples + i) for i in range(num_samples)], axis=0)
