"""The guard of conftest.py: a test that leaves a trace in the process is told what it left."""

import signal

import keras
import pytest
from helpers import differences, process_state


def test_nothing_differs_from_itself():
    assert differences(process_state(), process_state()) == []


@pytest.mark.parametrize(
    "leave, line",
    [
        (lambda patch: patch.setenv("TF_NEW", "1"), "os.environ['TF_NEW'] was 'not set' and is '1'"),
        (lambda patch: patch.delenv("PATH"), "os.environ['PATH'] was "),
        (lambda patch: patch.chdir("/"), "the working directory was "),
        (
            lambda patch: keras.config.set_dtype_policy("float16"),
            "keras.config.dtype_policy was 'float32' and is 'floa",
        ),
        (lambda patch: keras.config.set_floatx("float64"), "keras.config.floatx was 'float32' and is 'float64'"),
        (lambda patch: keras.config.set_epsilon(0.1), "keras.config.epsilon was 1e-07 and is 0.1"),
        (lambda patch: signal.signal(signal.SIGTERM, signal.SIG_IGN), f"the handler of {signal.SIGTERM!r} was "),
    ],
)
def test_a_trace_is_named(monkeypatch, leave, line):
    before = process_state()
    handler, epsilon = signal.getsignal(signal.SIGTERM), keras.config.epsilon()
    try:
        leave(monkeypatch)
        (found,) = differences(before, process_state())
    finally:
        signal.signal(signal.SIGTERM, handler)
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(epsilon)
    assert found.startswith(line)
