"""Variational auto encoders with binary and categorical latents, for TensorFlow and Keras 3.

The examples of the reference begin with

    import keras
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp

    from tf_isvae import *
    from tf_isvae import plotting, posteriors, search, training, wrappers
"""

import os
import sys
from typing import TYPE_CHECKING

from tf_isvae import _lazy

__version__ = "0.1.0"

if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ImportError(
        f"KERAS_BACKEND is {os.environ['KERAS_BACKEND']}; tf_isvae needs it to be tensorflow: set it so, or unset it, "
        "before Keras is imported."
    )

if TYPE_CHECKING:
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
    from tf_isvae.fitting import fit_clusters, fit_prior
    from tf_isvae.latents import BernoulliLatent, CategoricalLatent, GaussianLatent
    from tf_isvae.model import DiscreteVAE
    from tf_isvae.products import ProductLatent

__all__ = [
    "BernoulliLatent",
    "CategoricalLatent",
    "DiscreteVAE",
    "GaussianLatent",
    "ProductLatent",
    "callbacks",
    "datasets",
    "estimators",
    "evaluation",
    "export",
    "fit_clusters",
    "fit_prior",
    "latents",
    "likelihoods",
    "networks",
    "optimizers",
    "priors",
    "zoo",
]

__getattr__ = _lazy.attributes(
    __name__,
    {
        **dict.fromkeys(__all__),
        **dict.fromkeys(("BernoulliLatent", "CategoricalLatent", "GaussianLatent"), "tf_isvae.latents"),
        "ProductLatent": "tf_isvae.products",
        "DiscreteVAE": "tf_isvae.model",
        **dict.fromkeys(("fit_clusters", "fit_prior"), "tf_isvae.fitting"),
    },
)


def import_all() -> None:
    """Imports what `__all__` names. Raises ImportError if Keras has another backend than TensorFlow."""
    import keras
    import numpy as np

    # glibc gives freed memory back to the system, and takes it again page by page, until a large block has been freed
    # once: with TensorFlow's kernels without oneDNN, 500 to 1,000 page faults a step (docs/speed.md). This is that
    # block, of the largest size that counts; it is never written to.
    np.empty((32 << 20) - (64 << 10), np.uint8)
    # A file of Keras's settings may name another one too.
    if keras.config.backend() != "tensorflow":
        raise ImportError(
            f"Keras's backend is {keras.config.backend()}; tf_isvae needs it to be tensorflow: set KERAS_BACKEND so "
            "before Keras is imported."
        )
    for name in __all__:
        __getattr__(name)
    __getattr__("export").import_all()


# All of it at once, so that Keras can make what is in a .keras file: only the command line begins with less.
if "tf_isvae_command" not in sys.modules:
    import_all()
