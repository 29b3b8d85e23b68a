"""How much an image is like those that a model was trained on."""

from __future__ import annotations

import numpy as np

from tf_isvae import checks
from tf_isvae.model import DiscreteVAE, check_model

# Score -> how many draws or samples it takes by itself.
SCORES = {"elbo": 16, "log_likelihood": 100, "regret": 2, "overlap": 8}

_BLUR = 1 / 28
"""Standard deviation of the Gaussian that overlap blurs with, as a share of the height of the images."""


def typicality(
    model: DiscreteVAE,
    images,
    score: str = "log_likelihood",
    num_samples: int | None = None,
    steps: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """A score of each image: the higher, the more it is like the training images.

    Args:
        model: a DiscreteVAE.
        images: (n, H, W, C) in [0, 1].
        score: one of
            - "elbo", the evidence lower bound.
            - "log_likelihood", the tighter bound of several samples, which is exact for at most 4,096 codes.
            - "regret": how much the ELBO rises if q is fitted to the image, negative. The encoder has learnt to fit q
              to what it has seen, even if other images are simpler and so more likely (Likelihood Regret,
              Xiao et al. 2020, arXiv:2003.02977).
            - "overlap", Dice's coefficient of the image x and its reconstruction r, 2 sum(x r) / sum(x^2 + r^2), both
              blurred by a 28th of their height: for what is light on a dark ground. The likelihood of an image falls
              with its ink, and with each edge that is off by a pixel; of these, little remains.
        num_samples: how many draws of the model's estimator are averaged for the ELBO, samples of the other bound, or
            reconstructions whose mean is r; default 16 for elbo, 100 for log_likelihood, 2 for regret, 8 for
            overlap.
        steps: of regret, as `refine` of DiscreteVAE.elbo.
        seed: fixes the draws.

    Returns:
        (n,) float32: nats; 0 to 1 for overlap, and 1 if both are black.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> evaluation.typicality(model, np.zeros((5, 4, 4, 1)), "regret", steps=50).shape
        (5,)
    """
    check_model(model)
    checks.one_of("score", score, SCORES)
    num_samples = SCORES[score] if num_samples is None else checks.integer("num_samples", num_samples)
    steps = checks.integer("steps", steps)
    seed = checks.integer("seed", seed, 0)
    if score == "log_likelihood":
        return model.log_likelihood(images, num_samples, seed=seed)

    draws = range(seed * num_samples, (seed + 1) * num_samples)
    if score == "overlap":
        return _overlap(images, np.mean([model.reconstruct(images, draw) for draw in draws], axis=0))
    elbo = model.elbo(images, draws)
    return elbo - model.elbo(images, draws, refine=steps) if score == "regret" else elbo


def _overlap(images, reconstructions: np.ndarray) -> np.ndarray:
    """Dice's coefficient of each pair, with squares in the denominator (Milletari et al. 2016, arXiv:1606.04797)."""
    from scipy import ndimage

    images = np.asarray(images, np.float32)
    blurs = [_BLUR * images.shape[1]] * 2
    x, r = (ndimage.gaussian_filter(each, (0, *blurs, 0)) for each in (images, reconstructions))
    both, either = (2 * x * r).sum(axis=(1, 2, 3)), (x**2 + r**2).sum(axis=(1, 2, 3))
    return np.where(either > 0, both / np.where(either > 0, either, 1), 1).astype(np.float32)
