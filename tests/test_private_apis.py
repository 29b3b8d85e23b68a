"""_private_apis: one test a name of Keras or TensorFlow that is not public, which says what breaks without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_isvae import _private_apis, optimizers, zoo


def stepped(optimizer, steps):
    """The optimizer after steps with gradients of 3, and its only weight."""
    weight = keras.Variable(np.zeros(2), dtype="float32")
    optimizer.build([weight])
    for _ in range(steps):
        optimizer.apply([tf.fill((2,), 3.0)], [weight])
    return optimizer, weight


def test_iterations_counts_micro_batches():
    """Without `Optimizer._iterations`, micro-batches of one update would draw the same noise."""
    optimizer, _ = stepped(keras.optimizers.SGD(gradient_accumulation_steps=2), 3)
    assert int(_private_apis.batches_seen(optimizer)) == 3 and int(optimizer.iterations) == 1
    plain, _ = stepped(keras.optimizers.SGD(), 3)
    assert _private_apis.batches_seen(plain) is plain.iterations


def test_iterations_of_a_loss_scale_optimizer():
    """Without its `inner_optimizer`, a model in mixed_float16 would draw the same noise in every step."""
    optimizer, _ = stepped(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(gradient_accumulation_steps=2)), 3)
    assert int(_private_apis.batches_seen(optimizer)) == 3


@pytest.mark.parametrize("cls", [optimizers.Adam, keras.optimizers.Adam])
def test_momentums_and_velocities_of_a_variable(cls):
    """Without `_momentums`, `_velocities` and `_get_variable_index`, optimizers.Adam cannot find its state."""
    optimizer, weight = stepped(cls(beta_1=0.9, beta_2=0.99), 1)
    momentum, velocity = _private_apis.moments(optimizer, weight)
    np.testing.assert_allclose(momentum, [0.3, 0.3], rtol=1e-5)  # (1 - beta_1) g
    np.testing.assert_allclose(velocity, [0.09, 0.09], rtol=1e-5)  # (1 - beta_2) g^2


@pytest.mark.all
def test_worker_devices_are_the_replicas_of_this_process(apart):
    """Without `strategy.extended.worker_devices`, logs of several workers would have the wrong shape for Keras."""
    assert _private_apis.local_replicas(tf.distribute.get_strategy()) == 1
    assert apart("count_replicas", devices=2) == 2


@pytest.fixture
def recorded():
    """A model that records how `evaluate` and `_maybe_symbolic_build` are called."""
    calls = {"evaluate": [], "build": 0}
    model = zoo.build("fc_bvae", (2, 2, 1), 3, seed=0)

    class Recorded(type(model)):
        def evaluate(self, *args, **kwargs):
            calls["evaluate"].append(_private_apis.is_validation(kwargs))
            return super().evaluate(*args, **kwargs)

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            calls["build"] += 1
            return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    model = Recorded(model.encoder, model.latent, model.decoder, seed=0)
    model.compile("sgd", run_eagerly=True)
    return model, calls


IMAGES = np.zeros((4, 2, 2, 1), np.float32)


def test_use_cached_eval_dataset_marks_the_validation_of_fit(recorded):
    """Without the argument `_use_cached_eval_dataset`, validation would be checked anew after every epoch; and under
    a strategy, whose data sets cannot be checked, it would fail."""
    model, calls = recorded
    model.evaluate(IMAGES, verbose=0)
    model.fit(IMAGES, validation_data=(IMAGES,), epochs=2, verbose=0)
    assert calls["evaluate"] == [False, True, True]


def test_maybe_symbolic_build_is_what_keras_calls(recorded):
    """Without `Model._maybe_symbolic_build` being called, `fit` under a strategy fails if the last batch is smaller
    than the replicas (test_model.test_two_replicas_step_as_one)."""
    model, calls = recorded
    assert callable(keras.Model._maybe_symbolic_build)
    model.fit(IMAGES, verbose=0)
    assert calls["build"] >= 1 and model.optimizer.built


def test_converter_error_is_what_the_converter_raises():
    """Without `tensorflow.lite.python.convert.ConverterError`, export.litert could not say which models it refuses."""
    graph = tf.function(tf.math.erfinv, input_signature=[tf.TensorSpec((1,), tf.float32)]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    with pytest.raises(_private_apis.converter_error()):
        converter.convert()


def test_a_graph_of_each_object(caplog):
    """Without it, or if tf.function counted otherwise, seven objects whose method is used once are warned of."""

    class Counter:
        def __init__(self):
            self.traces = 0

        @_private_apis.graph_method
        def doubled(self, values):
            self.traces += 1
            return 2 * values

    for _ in range(7):
        counter = Counter()
        assert [int(counter.doubled(tf.constant(value))) for value in (1, 2)] == [2, 4] and counter.traces == 1
    assert not [record for record in caplog.records if "retracing" in record.getMessage()]


def test_a_fingerprint_written_anew(tmp_path):
    """Without `write_fingerprint`, a SavedModel would have the fingerprint of the graph that was changed after it."""
    tf.saved_model.save(tf.Module(), str(tmp_path))
    read = tf.saved_model.experimental.read_fingerprint
    saved, file = read(str(tmp_path)), tmp_path / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    content.meta_graphs[0].graph_def.node.add(name="one", op="NoOp")
    file.write_bytes(content.SerializeToString())
    _private_apis.write_fingerprint(tmp_path)
    assert read(str(tmp_path)).graph_def_program_hash != saved.graph_def_program_hash
