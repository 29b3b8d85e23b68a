"""The Keras callback that records a training in its run directory, and stops it when it is asked to."""

from __future__ import annotations

import signal
import time
import warnings
from pathlib import Path

import keras

from tf_isvae import files, plotting
from tf_isvae.model import DiscreteVAE
from tf_isvae.training import checkpoints
from tf_isvae.training.run_directory import RunDirectory
from tf_isvae.training.signals import Interrupted, StopRequest
from tf_isvae.training.tensorboard import Events
from tf_isvae.training.workers import Workers

# A checkpoint is saved at the end of an epoch if that keeps all saving below this share of the training time,
CHECKPOINT_SHARE = 0.01
# and inside an epoch if, besides, the last one is older than this.
SAVE_AFTER_SECONDS = 300
# TensorBoard gets samples of the prior about so many times in a run, and at its end; so many samples.
SAMPLE_TIMES = 20
SAMPLES = 100


class Recorder(keras.callbacks.Callback):
    """Writes history.csv, timing.csv, TensorBoard events and checkpoints, and goes back to a checkpoint.

    TensorBoard also gets samples of the prior, every few epochs.

    It records whatever is in the logs at the end of an epoch: put the callbacks that add to them before it.

    Args:
        model: compiled, its optimizer built.
        directory: the run's, claimed.
        workers: of this run; they agree here on when to stop and to save.
        steps_per_epoch: of one epoch of the history.
        data_identity: JSON values that identify the data; a checkpoint keeps them.
    """

    def __init__(
        self,
        model: DiscreteVAE,
        directory: RunDirectory,
        workers: Workers,
        steps_per_epoch: int,
        data_identity: dict | None = None,
    ):
        super().__init__()
        self.set_model(model)
        self.directory = directory
        self.workers = workers
        self.steps_per_epoch = steps_per_epoch
        self.data_identity = data_identity
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []  # training time at the end of each epoch
        self.learning_rates: list[float] = []  # and the learning rate
        self.stop_request = StopRequest()
        self._seconds_before = 0.0  # training time of the run before it was resumed
        self._began = self._saved = time.monotonic()
        self._save_seconds = 0.0
        self._running_means = checkpoints.RunningMeans(model)
        self._restored_means = None
        self._events = None
        self._epochs = 0  # of the whole run

    @property
    def step(self) -> int:
        """How many steps have been taken since the run began."""
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))  # also if replicas mirror it

    def fit(self, train_set, test_set, epochs: int, callbacks: list[keras.callbacks.Callback] = (), **options) -> None:
        """Trains from the present step to the end of `epochs` epochs.

        Args:
            train_set: a tf.data.Dataset of all batches from the present step on.
            test_set: one of one pass over the test images, or None.
            callbacks: see the class.
            options: of keras.Model.fit.
        """
        validation, validation_steps = self.workers.share_for_validation(test_set)
        options.update(validation_data=validation, validation_steps=validation_steps, callbacks=[*callbacks, self])

        def fit(batches, first_epoch, last_epoch, steps):
            self.model.fit(
                self.workers.share(batches),
                initial_epoch=first_epoch,
                epochs=last_epoch,
                steps_per_epoch=steps,
                **options,
            )

        self._epochs = epochs
        self._began = self._saved = time.monotonic()
        with self.stop_request.listening(), Events(self.directory) as self._events:
            for epoch in range(len(self.history)):  # a run that was killed may have written more or less than these
                self._show(epoch)
            epoch, taken = divmod(self.step, self.steps_per_epoch)
            if taken:  # a run that was stopped inside an epoch first finishes that one
                rest = self.steps_per_epoch - taken
                with warnings.catch_warnings():  # the run does not end there
                    warnings.filterwarnings("ignore", "KLAnnealing: epochs is")
                    fit(train_set.take(rest), epoch, epoch + 1, rest)
                train_set, epoch = train_set.skip(rest), epoch + 1
            if epoch < epochs:
                fit(train_set, epoch, epochs, self.steps_per_epoch)

    # --- as a Keras callback ------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored_means is not None:
            self._running_means.set(self._restored_means)
            self._restored_means = None

    def on_train_batch_end(self, batch, logs=None):
        # The last step of an epoch is left to on_epoch_end, when its row of the history is complete.
        if self.step % self.steps_per_epoch and self.step % self.workers.agree_steps == 0:
            longest = max(SAVE_AFTER_SECONDS, self._save_seconds / CHECKPOINT_SHARE)
            self._save_or_stop(due=time.monotonic() - self._saved > longest)

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self.seconds.append(self._elapsed())
        self.learning_rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self._try_to_write("history.csv", self.write_history)
        self._show(epoch)
        self._show_samples(epoch)
        self._save_or_stop(due=time.monotonic() - self._saved >= self._save_seconds / CHECKPOINT_SHARE)

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _try_to_write(self, what: str, write) -> bool:
        return self.directory.try_to_write(what, write, self.step)

    def _show(self, epoch: int) -> None:
        row = {name: value for name, value in self.history[epoch].items() if name != "epoch"}
        row["learning_rate"] = self.learning_rates[epoch]
        self._try_to_write("tensorboard", lambda: self._events.write(epoch, row))

    def _show_samples(self, epoch: int) -> None:
        done, epochs = epoch + 1, self._epochs
        if self.directory.writable and (done % -(-epochs // SAMPLE_TIMES) == 0 or done == epochs):
            # The same noise each time, so that the pictures show what the weights change; those of the final figure.
            samples = plotting.grid(self.model.generate(SAMPLES, seed=self.model.seed))
            self._try_to_write("tensorboard", lambda: self._events.write_picture(epoch, "prior samples", samples))

    def write_history(self) -> None:
        """Writes history.csv and timing.csv."""
        files.write_csv(self.directory.path / "history.csv", self.history)
        timing = [{"epoch": i, "seconds": round(seconds, 3)} for i, seconds in enumerate(self.seconds, start=1)]
        files.write_csv(self.directory.path / "timing.csv", timing)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _save_or_stop(self, due: bool) -> None:
        """Saves if it is due, and stops if a signal came: to any of the workers, which agree on it here."""
        number = self.stop_request.number
        wishes = [number == signal.SIGINT, number == signal.SIGTERM, due and self.workers.is_chief]
        interrupted, terminated, due = self.workers.sum(wishes)
        saved = self.save() if due or interrupted or terminated else True
        if interrupted or terminated:
            number = signal.SIGTERM if terminated else signal.SIGINT
            raise Interrupted(number, self.directory.path, saved, self.directory.how_to_resume)

    def save(self) -> bool:
        """Saves a checkpoint; False if it cannot be written. All workers must call it at the same point."""
        began = time.monotonic()
        means = self._running_means.get()
        progress = {
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "learning_rates": self.learning_rates,
            "elapsed": self._elapsed(),
            "data": self.data_identity,
        }
        path = self.directory.path
        saved = self._try_to_write("a checkpoint", lambda: checkpoints.save(path, self.model, means, progress))
        self._saved = time.monotonic()
        self._save_seconds = self._saved - began
        return saved

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Goes back to a checkpoint. Raises ValueError if it is of another model, or of other data."""
        _check_same_data(checkpoint.progress.get("data"), self.data_identity, self.directory.path)
        checkpoints.restore(self.model, checkpoint, self.directory.path)
        progress = checkpoint.progress
        self.history, self.seconds = progress["history"], progress["seconds"]
        self.learning_rates = progress["learning_rates"]
        self._seconds_before = progress["elapsed"]
        # Inside an epoch; Keras sets its running means to 0 when it begins.
        if self.step % self.steps_per_epoch:
            self._restored_means = checkpoint.means


def _check_same_data(then: dict | None, now: dict | None, run_dir: Path) -> None:
    """Raises ValueError if the data is not what it was. Checkpoints of version 0.1 do not say what it was: None."""
    if then in (None, now) or now is None:
        return

    def describe(split):
        return ", ".join(f"{name} {value}" for name, value in (split or {}).items())

    changed = [
        f"{split}: {describe(then.get(split))}; now {describe(now.get(split))}"
        for split in sorted({*then, *now})
        if then.get(split) != now.get(split)
    ]
    raise ValueError(
        f"the data of the run in {run_dir} has changed ({'; '.join(changed)}): it cannot be resumed; put the data back "
        "as it was, or begin a new run."
    )
