"""The models of the zoo by name: the paper's size of each, its best estimator, and its recipes.

Plain data, for which nothing is imported: the command line shows it at once. `zoo` has the parts of the models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tf_isvae import checks

# Names of Keras's dtype policies that the networks of a model may compute in.
PRECISIONS = ("float32", "mixed_bfloat16")
# The names of estimators.names().
ESTIMATORS = (
    *("ImportanceSampling", "LeaveOneOut", "DisARM", "ARMS", "Enumerated", "Reparameterized", "StraightThrough"),
    *("ReinMax", "Linearized", "Hybrid"),
)
# Those of priors.names().
PRIORS = ("uniform", "factorized", "autoregressive", "mixture", "clusters")


class Settings(NamedTuple):
    """What is fixed for one model unless a setting of a run says otherwise."""

    latent_dim: int | tuple[int, int]
    """The paper's."""
    estimator: Callable[[int | tuple[int, int]], str]
    """The name of the best estimator known for a `latent_dim` (docs/estimators.md has the figures)."""
    recipes: dict[str, dict]
    """Recipe -> what it fixes of the settings of a run (training.Config); without an estimator, it takes that above.

    All models have best and paper; hash, for search, only those of bits for which it was tuned.
    """


def variables_and_categories(latent_dim: int | tuple[int, int]) -> tuple[int, int]:
    """The two numbers that a `latent_dim` of categorical variables stands for."""
    return latent_dim if isinstance(latent_dim, tuple) else (1, latent_dim)


def discrete_and_gaussians(latent_dim: int | tuple[int, int]) -> tuple[int, int]:
    """The two numbers that a `latent_dim` of a hybrid latent stands for; one alone is the categories', or the bits'."""
    return latent_dim if isinstance(latent_dim, tuple) else (latent_dim, 10)


def _hybrid(latent_dim: int | tuple[int, int]) -> str:
    # Enumerated decodes an image for each category, of which all but one or two have a probability of nearly 0.
    return "Hybrid+LeaveOneOut:2"


def _enumerated_if_possible(latent_dim: int | tuple[int, int]) -> str:
    variables, categories = variables_and_categories(latent_dim)
    return "Enumerated" if categories**variables <= checks.MAX_ENUMERATED_CODES else "LeaveOneOut"


# What a recipe fixes, unless a setting of the run says otherwise. `kl_start` and `kl_epochs` are those of
# callbacks.KLAnnealing; the schedule "cosine" takes the learning rate to 0 at the end of the run; start_at_mean is
# networks.start_at_mean.
#
# The figures that chose them: test -ELBO in nats per image, grey MNIST, seed 0, and seconds on one core of an AMD EPYC
# with avx512_bf16, beside other jobs.
#   fc_bvae   paper 124.6 (300 epochs, 2,180 s); best passes 124.6 in the second epoch and ends at 102.9. With Adam
#             103.8, and from 1e-3 with DisARM alone 106.2 (2,164 s); with Linearized() for that 0.8 nats lower after 10
#             epochs, no lower after the same seconds.
#   cnn_bvae  paper 129.5 (300 epochs, 7,078 s); best below 115 after 67 epochs (1,965 s) and
#             112.4 after 160 (5,464 s), in mixed_bfloat16.
#   fc_cvae   paper 158.1 (300 epochs, 2,360 s); best 139.3 (249 s), all 100 codes used.
#             Without annealing 192.7 and 4 codes, from a weight of 100 151.5 and 45 (the prototype).
#   fc_hvae   best 101.1, ACC 0.839 (522 s); docs/hybrid.md has what led to it. cnn_hvae: the same recipe, not tuned.
#   cnn_cvae  paper 205.9 after 300 epochs (one code); best 140.4 in mixed_bfloat16 (713 s), all 100 codes used.
# On the digits (FC BVAE, 60 epochs at batch 64, cosine): ImportanceSampling 374, DisARM 304, with start_at_mean 301,
# with a KL weight from 10 in 10 epochs besides 308; the recipe 295.
_PAPER = {  # section 6 of the paper, for all models
    "estimator": "ImportanceSampling",
    "epochs": 300,
    "batch_size": 2048,
    "optimizer": "Adam",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "kl_weight": 1.0,
    "kl_start": 1.0,
    "kl_epochs": 0,
    "start_at_mean": False,
    "precision": "float32",
}
_BEST = {name: value for name, value in _PAPER.items() if name != "estimator"}
_BITS = {**_BEST, "batch_size": 256, "schedule": "cosine", "start_at_mean": True}
# Tuned for retrieval on held-out training images (docs/guides/search.md has the figures), not for the likelihood.
_HASH = {**_BITS, "kl_weight": 0.3, "distortion": 0.1, "epochs": 25}
_ANNEALED = {**_BEST, "schedule": "cosine", "kl_start": 30.0}
# For bits that have Gaussians beside them: callbacks.FirstEstimator, and a share of the pixels hidden from the encoder
# (docs/hybrid.md).
_FAST_FIRST = {"first_estimator": "Hybrid+ReinMax", "first_epochs": 150, "hidden_pixels": 0.1}
# Muon, and a larger rate, learn faster, and learn the training images by heart sooner, against which are decay and
# hidden pixels (docs/estimators.md).
_DECAYING = {
    **{"optimizer": "Muon", "learning_rate": 3e-3, "weight_decay": 0.03, "hidden_pixels": 0.1},
    **{"first_estimator": "ReinMax", "first_epochs": 11},
}
# The Gaussians first, alone (callbacks.WarmStart).
_HYBRID = {**_BITS, "prior": "clusters", "precision": "fastest"}


MODELS = {
    "fc_bvae": Settings(
        latent_dim=50,
        estimator=lambda latent_dim: "DisARM",
        recipes={"best": {**_BITS, **_DECAYING, "epochs": 220, "precision": "fastest"}, "paper": _PAPER, "hash": _HASH},
    ),
    "fc_cvae": Settings(
        latent_dim=100,
        estimator=_enumerated_if_possible,
        recipes={"best": {**_ANNEALED, "epochs": 60, "kl_epochs": 30}, "paper": _PAPER},
    ),
    "cnn_bvae": Settings(
        latent_dim=50,
        estimator=lambda latent_dim: "DisARM",
        recipes={"best": {**_BITS, "epochs": 160}, "paper": _PAPER},
    ),
    "cnn_cvae": Settings(
        latent_dim=100,
        estimator=_enumerated_if_possible,
        recipes={"best": {**_ANNEALED, "epochs": 40, "kl_epochs": 20}, "paper": _PAPER},
    ),
    # The conventional VAE, with an estimator of its own in both recipes.
    "fc_vae": Settings(
        latent_dim=50,
        estimator=lambda latent_dim: "Reparameterized",
        recipes={"best": _BEST, "paper": _BEST},
    ),
    # What the paper's section 7 hopes for: categories, and Gaussians for what varies within each. CATEGORIESxGAUSSIANS.
    "fc_hvae": Settings(
        latent_dim=(10, 10),
        estimator=_hybrid,
        recipes={"best": {**_HYBRID, "epochs": 24, "warm_epochs": 8}, "paper": _BEST},
    ),
    "cnn_hvae": Settings(
        latent_dim=(10, 10),
        estimator=_hybrid,
        recipes={"best": {**_HYBRID, "epochs": 15, "warm_epochs": 5}, "paper": _BEST},
    ),
    # Bits, and Gaussians beside them: no clusters. BITSxGAUSSIANS.
    "fc_hbvae": Settings(
        latent_dim=(40, 10),
        estimator=lambda latent_dim: "Hybrid+DisARM:1",
        recipes={"best": {**_BITS, **_FAST_FIRST, "epochs": 250, "precision": "fastest"}, "paper": _BEST},
    ),
}


def by_recipe(recipe: str) -> dict[str, dict]:
    """Model that has the recipe -> what it fixes, with the estimator for the paper's size."""
    return {
        name: {"estimator": row.estimator(row.latent_dim), **row.recipes[recipe]}
        for name, row in MODELS.items()
        if recipe in row.recipes
    }


def check_name(name: str) -> str:
    """`name` itself. Raises ValueError if there is no model of this name."""
    if name not in tuple(MODELS):  # which takes a name of any type
        import difflib

        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}.{hint}")
    return name
