"""What a run shows and records while it trains: Keras callbacks."""

from __future__ import annotations

import math

import keras


class NonFiniteLoss(FloatingPointError):
    """Raised by `StopOnNonFiniteLoss`; its text names the epoch and the step."""


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stops `fit` with `NonFiniteLoss` at the first step whose loss is NaN or infinite.

    The model is left with the weights that it had at the end of the last finite epoch (or at the start).
    """

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.last_good = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        # The previous epoch ended with a finite loss, or its last step would have raised.
        self.last_good = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if math.isfinite(loss):
            return
        self.model.set_weights(self.last_good)
        kept = f"the weights after epoch {self.epoch} are kept" if self.epoch else "the initial weights are kept"
        raise NonFiniteLoss(
            f"the loss became {loss} in epoch {self.epoch + 1}, step {batch + 1}; {kept}. "
            "Lower the learning rate, or look for extreme values in the data."
        )
