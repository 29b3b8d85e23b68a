"""Functions that several test files use; fixtures are in conftest.py."""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_isvae.precision import cap_below_bfloat16

ROOT = Path(__file__).resolve().parents[1]
# What pytest itself changes from one phase of a test to the next.
PYTEST_VARIABLES = ("PYTEST_CURRENT_TEST",)
# For a test that multiplies in bfloat16, which would end its process.
needs_bfloat16 = pytest.mark.skipif(cap_below_bfloat16() is not None, reason=f"{cap_below_bfloat16()}: no bfloat16")


def tfds_has(name):
    folder = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return any(Path(folder, name).glob("*/dataset_info.json"))


def same_run(one, other):
    """Two run directories hold the same history and the same trained model, bit for bit."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    models = [keras.models.load_model(folder / "model.keras") for folder in (one, other)]
    weights = [model.get_weights() + [v.numpy() for v in model.optimizer.variables] for model in models]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def one_line(text, *parts):
    """A text for users, or the message of an error, is one line with these parts and nothing of the program's own."""
    text = str(getattr(text, "value", text)).removesuffix("\n")
    assert text and "\n" not in text and len(text) < 700 and "Traceback" not in text and "user code" not in text, text
    for part in parts:
        assert str(part) in text, text


def call_program(connection, program, arguments, devices):
    """What the fixture `apart` runs in a new process: sends (what main returned, None) or (None, the traceback)."""
    tf.config.set_visible_devices([], "GPU")
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    try:
        connection.send((importlib.import_module(f"programs.{program}").main(*arguments), None))
    except Exception:
        connection.send((None, traceback.format_exc()))


def process_state():
    """The settings of this process that a later test, or a process started later, would inherit."""
    state = {f"os.environ[{name!r}]": text for name, text in os.environ.items() if name not in PYTEST_VARIABLES}
    state |= {f"the handler of {number!r}": signal.getsignal(number) for number in signal.valid_signals()}
    figures = sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []
    return state | {
        "the working directory": os.getcwd(),
        "keras.config.dtype_policy": keras.config.dtype_policy().name,
        "keras.config.floatx": keras.config.floatx(),
        "keras.config.epsilon": keras.config.epsilon(),
        "keras.config.image_data_format": keras.config.image_data_format(),
        "keras.config.backend": keras.config.backend(),
        "keras.config.is_interactive_logging_enabled": keras.config.is_interactive_logging_enabled(),
        "keras.config.is_traceback_filtering_enabled": keras.config.is_traceback_filtering_enabled(),
        "tf.config.functions_run_eagerly": tf.config.functions_run_eagerly(),
        "tf.distribute.has_strategy": tf.distribute.has_strategy(),
        "threads within an operation": tf.config.threading.get_intra_op_parallelism_threads(),
        "threads between operations": tf.config.threading.get_inter_op_parallelism_threads(),
        "figures of matplotlib that are open": tuple(figures),
    }


def differences(before, after):
    """One line for each setting that differs between two states of the process."""
    return [
        f"{name} was {before.get(name, 'not set')!r} and is {after.get(name, 'not set')!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
