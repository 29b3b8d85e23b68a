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


def _ask_for_onednn() -> None:
    """Has TensorFlow, if it is not imported yet, use oneDNN's kernels on any x86 processor, unless the user says no.

    TensorFlow chooses them by itself only where the processor has instructions such as avx512_vnni. With AVX2 alone
    they make a step of the CNNs a fifth shorter (docs/speed.md).
    """
    import platform

    if platform.machine() in ("x86_64", "AMD64") and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step, in place of giving it back to the system.

    Otherwise the memory of a step is taken again page by page, up to 218,000 page faults a step (docs/speed.md).
    M_TOP_PAD, the free memory that each thread keeps, is what still helps where TensorFlow has set M_MMAP_THRESHOLD
    to 128 KiB, as it does for every tf.data.Dataset.from_generator.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        # <malloc.h>: M_MMAP_THRESHOLD, whose largest value this is, M_TRIM_THRESHOLD, M_TOP_PAD.
        for option, mebibytes in ((-3, 32), (-1, 64), (-2, 64)):
            mallopt(option, mebibytes << 20)


def import_all() -> None:
    """Imports what `__all__` names. Raises ImportError if Keras has another backend than TensorFlow."""
    _ask_for_onednn()
    import keras

    _keep_freed_memory()
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
