"""SIGINT and SIGTERM: the first one stops a run after the current step, with a checkpoint; the second, at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """A run was stopped by SIGINT or SIGTERM, after a checkpoint was saved if possible. `signal` is its number."""

    def __init__(self, signum: int, run_dir: str | os.PathLike, saved: bool, how_to_resume: str):
        what = "everything done so far is kept" if saved else "what was done up to the last good checkpoint is kept"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what} in {run_dir}: {how_to_resume} goes on")
        self.signal = signum


@contextlib.contextmanager
def handlers(by_signal: dict) -> Iterator[dict]:
    """Installs these handlers and yields the previous ones; Python allows it in the main thread only."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number, handler in by_signal.items()}
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether SIGINT or SIGTERM has come while `listening()`: `number` is the signal's, or None."""

    def __init__(self):
        self.number: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        def remember(number, frame):
            self.number = number
            for each, handler in previous.items():  # so that a second signal stops the run at once
                signal.signal(each, handler)

        with handlers({signal.SIGINT: remember, signal.SIGTERM: remember}) as previous:
            yield
