"""What a run shows while it trains: what it is, then one line of less than 80 columns for each epoch."""

from __future__ import annotations

import sys
import time

import keras

from tf_isvae.training.config import Config
from tf_isvae.training.settings import Size

# A terminal is told of the steps of an epoch at most so often, in seconds.
REFRESH = 0.2


def banner(config: Config, parameters: int, images: dict[str, int], image_shape, steps_per_epoch: int, path) -> str:
    """What is about to be trained, on what data, and where the run is kept: five lines.

    Args:
        config: of the run.
        parameters: the number of weights.
        images: split -> number of images.
        image_shape: (H, W, C).
        steps_per_epoch: of one pass over the training images.
        path: the run directory.
    """
    data = " and ".join(f"{count:,} {split}" for split, count in images.items())
    latent, shape = Size().write(config.latent_dim), "x".join(map(str, image_shape))
    rate = f"learning rate {config.learning_rate:g}, {config.schedule}"
    return "\n".join(
        (
            f"data           {config.dataset}: {data} images of {shape}",
            f"model          {config.model}: latent {latent}, {parameters:,} parameters, {config.precision}",
            f"estimator      {config.estimator if isinstance(config.estimator, str) else 'of your own'}",
            f"likelihood     {config.likelihood if isinstance(config.likelihood, str) else 'of your own'}",
            f"steps          {config.epochs:,} epochs of {steps_per_epoch:,}, batch {config.batch_size:,}, {rate}",
            f"run directory  {path}",
        )
    )


class EpochLine(keras.callbacks.Callback):
    """Prints one line an epoch: -ELBO of the training and the test images, KL, seconds, and the time that is left.

    In a terminal, the line also tells how much of the epoch under way is done.

    Args:
        epochs: of the whole run.
        validated_on: what the images are called that are validated on, if there are any: "test" or "held out".

    Example:
        >>> from tf_isvae.training.progress import EpochLine
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=3)
        >>> model.compile(optimizer="adam")
        >>> history = model.fit(np.zeros((8, 4, 4, 1)), epochs=2, verbose=0, callbacks=[EpochLine(2)])
        epoch 1/2  -ELBO ...  KL ...
        epoch 2/2  -ELBO ...  KL ...
    """

    def __init__(self, epochs: int, validated_on: str = "test"):
        super().__init__()
        self.epochs = epochs
        self.validated_on = validated_on
        self._terminal = sys.stdout.isatty()
        self._is_open = False
        self._shortest = float("inf")

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._began = self._shown = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        steps = self.params.get("steps")
        if self._terminal and steps and now - self._shown > REFRESH:
            self._shown = now
            done = 20 * (batch + 1) // steps
            self._is_open = True
            print(f"\r{self._number()}  [{'=' * done}{' ' * (20 - done)}]", end="", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.monotonic() - self._began
        # The first epoch of a process also traces: the shortest so far tells what the others will take.
        self._shortest = min(self._shortest, seconds)
        parts = [self._number(), f"-ELBO {_nats(logs['loss'])}"]
        if "val_loss" in logs:
            parts.append(f"{self.validated_on} {_nats(logs['val_loss'])}")
        parts += [f"KL {_nats(logs['kl'])}", f"{seconds:.1f} s"]
        left = self.epochs - epoch - 1
        if left:
            parts.append(f"{_duration(left * self._shortest)} left")
        line = "  ".join(parts)
        print(f"\r{line:79}" if self._terminal else line, flush=True)
        self._is_open = False

    def close(self) -> None:
        """Ends the line of an epoch that was stopped."""
        if self._is_open:
            print(flush=True)
        self._is_open = False

    def _number(self) -> str:
        width = len(str(self.epochs))
        return f"epoch {self._epoch + 1:{width}}/{self.epochs}"


def _nats(value: float) -> str:
    return f"{value:8.2f}" if abs(value) < 1e5 else f"{value:8.4g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
