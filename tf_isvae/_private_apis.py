"""Every name of Keras or TensorFlow that is used here without being public, each with its reason.

tests/test_private_apis.py says what breaks when a new version changes one of them. (`_parameters` and
`_parameter_properties` in `posteriors` are TensorFlow Probability's documented way to make a subclass of a
distribution.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import keras
import tensorflow as tf


def batches_seen(optimizer: keras.optimizers.Optimizer):
    """The variable that counts every call of `optimizer.apply`, micro-batches of an accumulated gradient included.

    `iterations` is that count divided by gradient_accumulation_steps: it stands still within one update.
    """
    # keras.optimizers.LossScaleOptimizer counts in the optimizer that it wraps.
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def moments(optimizer: keras.optimizers.Adam, variable) -> tuple:
    """Adam's first and second moment of a weight: public only as a list in no documented order."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """The replicas of this process; `num_replicas_in_sync` counts those of all workers."""
    # The default strategy does not have it.
    return len(strategy.extended.worker_devices) if strategy.num_replicas_in_sync > 1 else 1


def is_validation(evaluate_arguments: dict) -> bool:
    """True for the call of `evaluate` that Keras makes within `fit`, whose data have been checked."""
    return bool(evaluate_arguments.get("_use_cached_eval_dataset"))


class BuildsOnlyTheOptimizer:
    """A mixin for keras.Model: what Keras does before `fit` under a strategy, for a model that is built already.

    Keras's own takes a batch out of the data to build the model with, and fails if the replicas' shares of that batch
    differ.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def converter_error() -> type[Exception]:
    """What tf.lite.TFLiteConverter raises if builtin operations cannot express a graph; it has no public name."""
    from tensorflow.lite.python.convert import ConverterError  # here, because it takes a moment to import

    return ConverterError


def write_fingerprint(path: os.PathLike) -> None:
    """Writes fingerprint.pb anew, for a SavedModel whose saved_model.pb was changed after tf.saved_model.save."""
    from tensorflow.python.saved_model import fingerprinting_utils

    fingerprinting_utils.write_fingerprint(str(path))


class graph_method:  # noqa: N801, a decorator
    """A method as a graph, which every object has for itself.

    tf.function on a method counts retracings by its code, whose object they belong to or not, and warns of the fifth
    model of a program that is used once. It counts by the function itself if that has no code.
    """

    def __init__(self, method: Callable):
        self.method = method

    def __set_name__(self, owner, name: str):
        self.name = name

    def __get__(self, owner, cls=None) -> Callable:
        if owner is None:
            return self
        graph = tf.function(functools.partial(self.method, owner), autograph=False, reduce_retracing=True)
        # Not by setattr, with which Keras would track it. From now on Python finds it there.
        return owner.__dict__.setdefault(self.name, graph)
