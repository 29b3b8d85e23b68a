"""The processes that train one model together. A single process is the plain form of `Workers`.

Several workers (strategy "multi_worker") run the same command; the chief, the first of them, alone writes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tf_isvae import _private_apis
from tf_isvae.training import signals

# Several workers ask each other in every so many steps whether to stop or to save: one more small all-reduce.
AGREE_STEPS = 10


class WorkerLost(ConnectionError):
    """Another worker of the run does not answer any more, or never did."""


def for_strategy(strategy: str) -> Workers:
    """The workers of a run with this strategy, and which of them this process is.

    TensorFlow is not touched until `Workers.strategy` is asked for.

    Args:
        strategy: "default", "mirrored" or "multi_worker".

    Raises:
        ValueError: the strategy is multi_worker and TF_CONFIG does not say who the workers are.

    Example:
        >>> workers = training.for_strategy("default")
        >>> workers.count, workers.is_chief
        (1, True)
    """
    if strategy != "multi_worker":
        return Workers(_mirrored if strategy == "mirrored" else tf.distribute.get_strategy)
    return SeveralWorkers(*_from_tf_config())


class Workers:
    """One process that trains alone, on one device or on several."""

    index = 0  # of this process
    count = 1
    agree_steps = 1  # the workers agree in every so many steps on whether to stop or to save

    def __init__(self, make_strategy: Callable[[], tf.distribute.Strategy]):
        self._make_strategy = make_strategy

    @functools.cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """Made when it is first asked for, which must be before any other use of TensorFlow."""
        return self._make_strategy()

    @property
    def is_chief(self) -> bool:
        """True if this process is the one that writes."""
        return self.index == 0

    def sum(self, values) -> np.ndarray:
        """The sum over the workers of what each gives, float64. All must call it at the same point."""
        return np.asarray(values, np.float64)

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """The mean of the rows of all workers. All must call it at the same point."""
        return rows.mean(axis=0)

    def check_agreement(self, settings: dict, step: int) -> None:
        """Raises ValueError if the workers were given different settings, or read different checkpoints."""

    def share(self, batches: tf.data.Dataset):
        """What this worker's `fit` takes, from this worker's part of each batch."""
        return batches  # Keras deals them out to the devices

    def share_for_validation(self, batches: tf.data.Dataset | None):
        """As `share`, and the number of steps of one validation (None: all there are)."""
        return batches, None

    @contextlib.contextmanager
    def losses_named(self, run_dir: str | os.PathLike) -> Iterator[None]:
        """Turns TensorFlow's error for a worker that ended into WorkerLost."""
        yield


class SeveralWorkers(Workers):
    """Several processes, of which this is number `index` of `count`."""

    def __init__(self, index: int, count: int):
        super().__init__(_multi_worker)
        self.index, self.count = index, count

    @property
    def agree_steps(self) -> int:
        return AGREE_STEPS

    def sum(self, values) -> np.ndarray:
        devices = _private_apis.local_replicas(self.strategy)
        return self._summing(tf.constant(values, tf.float64)).numpy() / devices

    @functools.cached_property
    def _summing(self):
        sum_of = tf.distribute.ReduceOp.SUM
        return tf.function(lambda values: self.strategy.reduce(sum_of, self.strategy.run(lambda: values), axis=None))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        sums = self.sum(np.append(rows.sum(axis=0, dtype=np.float64), len(rows)))
        return (sums[:-1] / sums[-1]).reshape(rows.shape[1:])

    def check_agreement(self, settings: dict, step: int) -> None:
        ours = np.array([zlib.crc32(repr(settings).encode()), step], np.float64)
        same = self.sum(ours) == self.count * ours
        if not same[0]:
            raise ValueError("the workers were started with different settings; start all with the same command.")
        if not same[1]:
            raise ValueError(
                f"worker {self.index} would resume at step {step}, and others elsewhere: run_dir must be the same "
                "directory on a file system that all workers share."
            )

    def share(self, batches: tf.data.Dataset):
        replicas = self.strategy.num_replicas_in_sync // self.count

        def split(images):
            count = tf.shape(images, tf.int64)[0]
            parts = tf.data.Dataset.range(replicas)
            return parts.map(lambda i: images[count * i // replicas : count * (i + 1) // replicas])

        parts = batches.flat_map(split).prefetch(2)
        return self.strategy.distribute_datasets_from_function(lambda context: parts)

    def share_for_validation(self, batches: tf.data.Dataset | None):
        if batches is None:
            return None, None
        return self.share(batches.repeat()), int(batches.cardinality())  # what is dealt out does not know its length

    @contextlib.contextmanager
    def losses_named(self, run_dir: str | os.PathLike) -> Iterator[None]:
        try:
            yield
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            lost = {f"{job} {i}" for job, i in re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message)}
            raise WorkerLost(
                f"{' and '.join(sorted(lost)) or 'another worker'} ended or cannot be reached; start all {self.count} "
                f"workers again with --resume --run-dir {run_dir}"
            ) from None


def _from_tf_config() -> tuple[int, int]:
    """The number of this worker and how many there are, from TF_CONFIG. Worker 0 is the chief."""

    def wrong(what):
        return ValueError(
            f"strategy multi_worker: {what}. Set the environment variable TF_CONFIG on each worker, such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        )

    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        raise wrong("TF_CONFIG is not set")
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise wrong(f"TF_CONFIG is not JSON ({error})") from None
    cluster, task = (stored.get(key) if isinstance(stored, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not cluster or not set(cluster) <= {"chief", "worker"}:
        raise wrong(f'the "cluster" in TF_CONFIG is {cluster!r}; it must have lists "worker", or "chief" and "worker"')
    for job, addresses in cluster.items():
        if not isinstance(addresses, list) or not addresses:
            raise wrong(f'"{job}" in TF_CONFIG is {addresses!r}; it must be a list of addresses')
        for address in addresses:
            if not isinstance(address, str) or not address.rpartition(":")[0] or not address.split(":")[-1].isdigit():
                raise wrong(f"the address {address!r} in TF_CONFIG is not host:port")
    addresses = [address for job in sorted(cluster) for address in cluster[job]]
    if len(set(addresses)) < len(addresses) or len(cluster.get("chief", [])) > 1:
        raise wrong("TF_CONFIG names an address twice, or more than one chief")
    job, index = (task.get(key) if isinstance(task, dict) else None for key in ("type", "index"))
    if job not in cluster:
        raise wrong(f'the "type" of the "task" in TF_CONFIG is {job!r}; it must be one of {", ".join(cluster)}')
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(cluster[job]):
        raise wrong(f'the "index" of the "task" in TF_CONFIG is {index!r}; it must be 0 to {len(cluster[job]) - 1}')
    return addresses.index(cluster[job][index]), len(addresses)


def _mirrored() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


@functools.cache  # TensorFlow can be told of its workers only once in a process
def _multi_worker() -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    addresses = [a for job, some in sorted(resolver.cluster_spec().as_dict().items()) for a in some]
    print(f"waiting until all {len(addresses)} workers have started: {', '.join(addresses)}", flush=True)
    try:
        # Python cannot handle Ctrl-C while TensorFlow waits: nothing is lost if it ends the process. For SIGTERM
        # TensorFlow leaves behind a handler that swallows it.
        with signals.handlers({signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}):
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerLost(f"the workers that TF_CONFIG names do not come together: {reason}") from None
