"""What a finished run leaves behind: the model, the final figures and the pictures."""

from __future__ import annotations

import math
import shutil

import keras

from tf_isvae import files, plotting
from tf_isvae.model import DiscreteVAE
from tf_isvae.precision import in_precision
from tf_isvae.training.config import Config
from tf_isvae.training.data import Data
from tf_isvae.training.recorder import SAMPLES, Recorder


def metrics(recorder: Recorder) -> dict:
    """What metrics.json holds: the last row of the history, its loss in bits a value if the likelihood is a density of
    grey or coloured images, and the size and length of the run.
    """
    last = recorder.history[-1]
    model = recorder.model
    values = math.prod(model.image_shape)
    bits = {
        f"{prefix}bits_per_dimension": model.likelihood.bits_per_dimension(-last[f"{prefix}loss"], values)
        for prefix in ("", "val_")
        if f"{prefix}loss" in last
    }
    return {
        **{name: value for name, value in last.items() if name != "epoch"},
        **{name: value for name, value in bits.items() if value is not None},
        "epochs": last["epoch"],
        "steps": recorder.step,
        "parameters": parameters(model),
        "seconds": round(recorder.seconds[-1], 3),
    }


def parameters(model: DiscreteVAE) -> int:
    """How many weights the model has."""
    return sum(part.count_params() for part in (model.encoder, model.decoder, model.prior))


def save_model(recorder: Recorder) -> None:
    """Writes model.keras, on the chief: the model in float32, whatever it was trained in, with its optimizer."""
    if recorder.directory.writable:
        with files.atomic_write(recorder.directory.path / "model.keras") as path:
            _in_float32(recorder.model).save(path)


def _in_float32(model: DiscreteVAE) -> DiscreteVAE:
    copy = in_precision(model, "float32")
    if copy is not model:
        copy.compile(optimizer=type(model.optimizer).from_config(model.optimizer.get_config()))
        copy.optimizer.build(copy.trainable_variables)
        for own, theirs in zip(copy.optimizer.variables, model.optimizer.variables, strict=True):
            own.assign(keras.ops.convert_to_numpy(theirs))
    return copy


def write(recorder: Recorder, config: Config, data: Data) -> None:
    """Writes model.keras, the history, the figures of some images, and last metrics.json, on the chief.

    Raises OSError if something cannot be written.
    """
    directory = recorder.directory
    if not directory.writable:
        return
    try:
        save_model(recorder)
        recorder.write_history()
        _draw(recorder, config, data)
        files.write_json(directory.path / "metrics.json", metrics(recorder))
    except OSError as error:
        raise OSError(
            f"the trained model cannot be written to {directory.path} ({error.strerror or error}); make room there, "
            f"then {directory.how_to_resume} goes on from the last checkpoint"
        ) from None
    shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)


def _draw(recorder: Recorder, config: Config, data: Data) -> None:
    images = data.first_images(20)
    figures = recorder.directory.path / "figures"
    figures.mkdir(exist_ok=True)
    title, model, seed = f"{config.model}, {config.dataset}", recorder.model, config.seed
    history = {name: [row[name] for row in recorder.history] for name in recorder.history[-1]}
    plotting.training_curves(history, figures / "training_curves.png", title=title)
    reconstructions = model.reconstruct(images, seed=seed)
    plotting.reconstructions(images, reconstructions, figures / "reconstructions.png", title=title)
    plotting.image_grid(model.generate(SAMPLES, seed=seed), figures / "prior_samples.png", title=title)
    if model.latent.feature_units:
        plotting.traversals(model, data.held_out(2000), figures / "traversals.png", title=title)
