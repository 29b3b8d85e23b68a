"""How a data set uses the codes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_isvae import checks
from tf_isvae.model import CHUNK, DiscreteVAE, check_model, only_images


def code_statistics(model: DiscreteVAE, images) -> dict[str, int | np.ndarray]:
    """How a whole data set uses the codes.

    Args:
        model: a DiscreteVAE.
        images: (n, H, W, C) in [0, 1], or a tf.data.Dataset of batches, whose labels are ignored if it has any.

    Returns:
        A dict of
        - active_units: how many entries of the posterior mean have a variance over the images above 0.01
          (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519).
        - kl_per_unit: float (code_units,), nats: the KL of each bit, categorical variable or Gaussian; not for a prior
          in which they depend on each other, since the KL then has no such parts.
        - codes_used: how many different codes the modes of the images' posteriors are.
        - usage: Bernoulli: (units,), the share of ones; Categorical: (variables, categories), the share of images in
          each category; not for Gaussian latents.
        - perplexity: Categorical: (variables,), exp of the entropy of `usage`: how many categories are in use.
        - mean_entropy: bits, of the mean of q(z|x) over the images, as if its variables were independent; not for
          Gaussian latents. Between it and the bound, log2 of the number of codes, lies what no image uses.

    Raises:
        TypeError, ValueError: the model or the images are not as described, or there are no images.

    Example:
        >>> model = zoo.build("fc_cvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> found = evaluation.code_statistics(model, np.zeros((8, 4, 4, 1), np.float32))
        >>> found["codes_used"], found["usage"].shape, found["perplexity"]
        (1, (1, 3), array([1.]))
    """
    check_model(model)
    batches = map(only_images, images) if isinstance(images, tf.data.Dataset) else [images]
    latent, codes, means, kls = model.latent, [], [], []
    for batch in batches:
        batch = checks.images("images", batch, model.image_shape)
        logits = np.concatenate(
            [model.encoder(batch[i : i + CHUNK], training=False) for i in range(0, len(batch), CHUNK)]
        )
        q = latent.posterior(logits)
        codes.append(latent.codes(logits).numpy())
        means.append(q.mean().numpy())
        kls.append(model.prior.kl_per_unit(q))
    if not codes:
        raise ValueError("images come as a data set without any batch; it must have at least 1.")
    codes, means = np.concatenate(codes), np.concatenate(means).astype(np.float64)
    entropy = latent.entropy(means.mean(axis=0))
    return {
        "active_units": int((means.var(axis=0) > 0.01).sum()),
        **({} if kls[0] is None else {"kl_per_unit": np.concatenate(kls).mean(axis=0)}),
        "codes_used": len(np.unique(codes, axis=0)),
        **latent.usage(codes),
        **({} if entropy is None else {"mean_entropy": entropy}),
    }
