"""Loads a model with this package alone, evaluates it and goes on training; the results go into a file beside it."""

import sys

import keras
import numpy as np

import tf_isvae  # noqa: F401

directory = sys.argv[1]
images = np.load(f"{directory}/images.npy")
model = keras.models.load_model(f"{directory}/m.keras")
results = {
    "iterations": model.optimizer.iterations.numpy(),
    "moments": np.concatenate([v.numpy().ravel() for v in model.optimizer.variables[2:]]),
    "codes": model.encode(images),
    "reconstructed": model.reconstruct(images, seed=1),
    "elbo": model.elbo(images, seed=1),
    "log_likelihood": model.log_likelihood(images, num_samples=20, seed=1),
    "generated": model.generate(7, seed=1),
}
results["loss"] = model.fit(images, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
np.savez(f"{directory}/results.npz", **results)
