"""A configured, resumable run: what scripts/train.py calls.

A run directory holds

    config.json    the settings, the versions of the packages, and the number of threads
    model.keras    the trained model
    history.csv    one row an epoch: loss (= -ELBO), log_likelihood, kl, and val_ for the test set; nats per image
    timing.csv     seconds since the run began at the end of each epoch (what history.csv leaves out, so that a
                   resumed run's history equals that of the uninterrupted one)
    metrics.json   the final figures
    figures/       training curves, reconstructions, samples of the prior
    tensorboard/   the same curves as TensorBoard events
    checkpoints/   what --resume goes on from

The rooms, each of which uses those above it:

    settings, config   what a run is told
    signals            how it is stopped
    workers            the processes that train together
    data               the images of a run
    run_directory      the directory that it alone writes to
    checkpoints        what it goes on from
    tensorboard        its curves for TensorBoard
    recorder           the Keras callback that records it
    progress           what it shows meanwhile
    report             what it leaves when it is finished
    run                the steps from a Config to a trained model
    trained            what a finished run has left
"""

from typing import TYPE_CHECKING

from tf_isvae import _lazy

if TYPE_CHECKING:
    from tf_isvae.precision import layers_in as layers_in
    from tf_isvae.training.config import PRECISIONS as PRECISIONS
    from tf_isvae.training.config import RECIPES as RECIPES
    from tf_isvae.training.config import SCHEDULES as SCHEDULES
    from tf_isvae.training.config import STRATEGIES as STRATEGIES
    from tf_isvae.training.config import Config as Config
    from tf_isvae.training.config import command as command
    from tf_isvae.training.config import read as read
    from tf_isvae.training.config import stored_config as stored_config
    from tf_isvae.training.recorder import Recorder as Recorder
    from tf_isvae.training.run import Run as Run
    from tf_isvae.training.run import finish as finish
    from tf_isvae.training.run import fit as fit
    from tf_isvae.training.run import prepare as prepare
    from tf_isvae.training.run import train as train
    from tf_isvae.training.run_directory import RunDirectory as RunDirectory
    from tf_isvae.training.settings import option as option
    from tf_isvae.training.signals import Interrupted as Interrupted
    from tf_isvae.training.trained import Trained as Trained
    from tf_isvae.training.trained import read_trained as read_trained
    from tf_isvae.training.workers import WorkerLost as WorkerLost
    from tf_isvae.training.workers import for_strategy as for_strategy

# The settings of a run are there at once; TensorFlow is imported with the first name that needs it.
_PLACES = {
    "layers_in": "tf_isvae.precision",
    "PRECISIONS": "tf_isvae.training.config",
    "RECIPES": "tf_isvae.training.config",
    "SCHEDULES": "tf_isvae.training.config",
    "STRATEGIES": "tf_isvae.training.config",
    "Config": "tf_isvae.training.config",
    "command": "tf_isvae.training.config",
    "read": "tf_isvae.training.config",
    "stored_config": "tf_isvae.training.config",
    "Recorder": "tf_isvae.training.recorder",
    "Run": "tf_isvae.training.run",
    "finish": "tf_isvae.training.run",
    "fit": "tf_isvae.training.run",
    "prepare": "tf_isvae.training.run",
    "train": "tf_isvae.training.run",
    "RunDirectory": "tf_isvae.training.run_directory",
    "option": "tf_isvae.training.settings",
    "Interrupted": "tf_isvae.training.signals",
    "Trained": "tf_isvae.training.trained",
    "read_trained": "tf_isvae.training.trained",
    "WorkerLost": "tf_isvae.training.workers",
    "for_strategy": "tf_isvae.training.workers",
}
__all__ = list(_PLACES)
__getattr__ = _lazy.attributes(__name__, _PLACES)
