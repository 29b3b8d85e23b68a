"""Checkpoints: all that a run needs to go on.

All noise and the order of the data depend on the seed and the number of the step only, so a checkpoint holds the
weights, the optimizer's state, the running means of the epoch under way, and what was recorded so far:

    checkpoints/<step>.npz    model/<i>, optimizer/<i>: the variables in their order
                              means: the running means, as each replica holds its own, (replicas, variables) float32
                              progress: JSON text with the step, the history and the like
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import files
from tf_isvae.model import DiscreteVAE

KEPT = 2  # so that one is left if the newest is damaged


class Checkpoint(NamedTuple):
    """What a file holds: variables by name, the running means of the epoch, and JSON values."""

    variables: dict[str, np.ndarray]
    means: np.ndarray
    progress: dict


def save(run_dir: Path, model: DiscreteVAE, means: np.ndarray, progress: dict) -> None:
    """Writes checkpoints/<step>.npz, whole or not at all, and removes all but the last two."""
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in _variables(model).items()}
    with files.atomic_write(folder / f"{progress['step']:012d}.npz") as path, open(path, "wb") as file:
        np.savez(file, progress=json.dumps(progress), means=means, **arrays)
    for old in sorted(folder.glob("[0-9]*.npz"))[:-KEPT]:
        old.unlink()


def newest(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if there is none: the run then begins anew.

    A damaged one is passed over with a warning.
    """
    for path in sorted(run_dir.glob("checkpoints/[0-9]*.npz"), reverse=True):
        try:
            with np.load(path, allow_pickle=False) as archive:  # reading an array checks its CRC-32
                arrays = {name: archive[name] for name in archive.files}
            progress = json.loads(str(arrays.pop("progress")))
            int(progress["step"])
            return Checkpoint(arrays, arrays.pop("means"), progress)
        except Exception as error:  # a damaged file may fail anywhere in zipfile, its codecs, NumPy and json
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"warning: checkpoint {path} is damaged ({reason}); trying the one before.", file=sys.stderr)
    return None


def restore(model: DiscreteVAE, checkpoint: Checkpoint, run_dir: Path) -> None:
    """Gives the model and its optimizer the checkpoint's values.

    Raises ValueError if the checkpoint is of another model, or of another number of replicas.
    """
    variables = _variables(model)
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    if {name: array.shape for name, array in checkpoint.variables.items()} != expected:
        raise ValueError(f"the checkpoint in {run_dir} is of another model; it cannot be resumed.")
    replicas, now = len(checkpoint.means), model.distribute_strategy.num_replicas_in_sync
    if replicas != now:
        raise ValueError(
            f"the run in {run_dir} has {replicas} replicas (devices of all workers) and there are {now} now; "
            "resume it with as many."
        )
    for name, variable in variables.items():
        variable.assign(checkpoint.variables[name])


def _variables(model: DiscreteVAE) -> dict[str, keras.Variable]:
    groups = {"model": model.weights, "optimizer": model.optimizer.variables}
    return {f"{group}/{i}": variable for group, many in groups.items() for i, variable in enumerate(many)}


class RunningMeans:
    """The model's metrics in the middle of an epoch, as each replica holds its own: (replicas, variables) float32."""

    def __init__(self, model: DiscreteVAE):
        self.strategy = model.distribute_strategy
        self.variables = [variable for metric in model.metrics for variable in metric.variables]
        self._gather = tf.function(lambda: self.strategy.gather(self.strategy.run(self._own), axis=0))

    def get(self) -> np.ndarray:
        """Those of all replicas; all workers must call it at the same point."""
        return self._gather().numpy()

    def set(self, means: np.ndarray) -> None:
        def assign():
            own = tf.constant(means)[tf.distribute.get_replica_context().replica_id_in_sync_group]
            for i, variable in enumerate(self.variables):
                variable.assign(own[i])

        tf.function(lambda: self.strategy.run(assign))()

    def _own(self) -> tf.Tensor:
        return tf.stack([tf.convert_to_tensor(variable) for variable in self.variables])[None]
