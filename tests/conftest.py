"""What several test files share."""

import gc
import importlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from multiprocessing import forkserver

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the import of tf_isvae sets it, for programs that import Keras first: all compute the same bits.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import pytest
from helpers import ROOT, call_program, differences, process_state, tfds_has


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker for each processor that this process may use, if memory allows: each takes 2 to 3 GB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 3_000_000_000))


def pytest_collection_finish():
    """Takes imported objects out of garbage collection, since they stay: a fifth of the time went into scanning
    TensorFlow's again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def state():
    """The settings of the process that no test may leave changed."""
    # These set environment variables when they are first imported, which is no test's doing.
    for name in ("matplotlib.pyplot", "sklearn", "tensorflow_datasets"):
        importlib.import_module(name)
    return process_state()


@pytest.fixture(autouse=True)
def no_traces(state):
    """Fails a test that leaves the environment, the working directory, Keras's settings or the like changed."""
    yield
    after = process_state()
    left = differences(state, after)
    state.clear()
    state.update(after)  # so that only the test that did it fails
    assert not left, "the test left a trace: " + "; ".join(left)


@pytest.fixture
def prepared():
    """prepared(name) skips the test if TFDS has not prepared that data set."""

    def check(name):
        if not tfds_has(name):
            pytest.skip(f"{name} is not prepared: set TFDS_DATA_DIR to a folder that has it")

    return check


@pytest.fixture
def offline(monkeypatch):
    """No name can be resolved, as on a machine without a network."""

    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture
def script(monkeypatch, tmp_path, capfd):
    """Runs a script in this process, in an empty directory: (exit status, standard output, standard error)."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def fresh_python():
    """Runs a script, named from the root of the repository, in a Python of its own; returns the completed process.

    Importing TensorFlow takes it seconds: `apart` is faster if nothing depends on what is imported.
    """

    def run(script, *arguments, environment=None, timeout=200):
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}  # None removes a variable
        variables = {name: value for name, value in variables.items() if value is not None}
        return subprocess.run(
            [sys.executable, script, *map(str, arguments)],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def forks():
    """Makes processes, with `forks.Process`, in which TensorFlow is imported already and nothing else has happened.

    They cost a moment; a fresh Python takes seconds to import TensorFlow.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tf_isvae.training"])
    forkserver.ensure_running()  # now, with the environment that all tests have
    return context


@pytest.fixture(scope="session")
def apart(forks):
    """Calls main(*arguments) of a file in tests/programs/ in a process of its own, and gives what it returns.

    `devices`: how many logical devices TensorFlow has there (CPU:0, CPU:1).
    """

    def run(program, *arguments, devices=1, timeout=200):
        mine, theirs = forks.Pipe(duplex=False)
        process = forks.Process(target=call_program, args=(theirs, program, arguments, devices))
        process.start()
        theirs.close()
        try:
            assert mine.poll(timeout), f"{program} has not ended after {timeout} seconds"
            returned, failure = mine.recv()
        except EOFError:
            process.join()
            returned, failure = None, f"{program} ended with status {process.exitcode}"
        else:
            process.join(10)  # a process that measures coverage writes its file now
        finally:
            process.kill()
            process.join()
        assert not failure, failure
        return returned

    return run
