"""Variational auto encoders with binary and categorical latents, for TensorFlow and Keras 3.

The examples of the reference begin with

    import keras
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp

    from tf_isvae import *
    from tf_isvae import plotting, posteriors, search, training, wrappers
"""

from tf_isvae import (
    callbacks,
    datasets,
    estimators,
    evaluation,
    export,
    latents,
    likelihoods,
    networks,
    optimizers,
    priors,
    zoo,
)
from tf_isvae.fitting import fit_prior
from tf_isvae.latents import BernoulliLatent, CategoricalLatent, GaussianLatent
from tf_isvae.model import DiscreteVAE

__all__ = [
    "BernoulliLatent",
    "CategoricalLatent",
    "DiscreteVAE",
    "GaussianLatent",
    "callbacks",
    "datasets",
    "estimators",
    "evaluation",
    "export",
    "fit_prior",
    "latents",
    "likelihoods",
    "networks",
    "optimizers",
    "priors",
    "zoo",
]
