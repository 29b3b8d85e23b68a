"""Prints the packages that `import tf_isvae` imports beside those that every program with Keras and TFP has."""

import sys

import keras  # noqa: F401
import tensorflow  # noqa: F401
import tensorflow_probability

tensorflow_probability.distributions  # noqa: B018  (TFP imports it at its first use)
known = set(sys.modules)

import tf_isvae  # noqa: E402, F401

print(*sorted({name.partition(".")[0] for name in set(sys.modules) - known}))
