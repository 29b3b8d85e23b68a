"""keras_files: .keras files are written small, and a small file cannot take much memory."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from helpers import one_line

from tf_isvae import keras_files, zoo


@pytest.fixture(scope="module")
def small():
    return zoo.build("fc_bvae", image_shape=(3, 3, 1), latent_dim=2, seed=0)


@pytest.fixture
def path(small, tmp_path):
    keras_files.write(small, tmp_path / "model.keras")
    return tmp_path / "model.keras"


def altered(path, **members):
    """The same archive with other members, by name, each compressed."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in {**contents, **members}.items():
            archive.writestr(name, content)
    return path


def weights_with(path, change):
    """The HDF5 file of the archive, after change(file)."""
    with zipfile.ZipFile(path) as archive:
        buffer = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def refused(path, *words):
    with pytest.raises(ValueError) as error:
        keras_files.read(path)
    one_line(error, str(path), *words)


def test_what_is_written_is_read_and_is_smaller(small, path, tmp_path):
    small.save(tmp_path / "stored.keras")
    assert path.stat().st_size < (tmp_path / "stored.keras").stat().st_size
    for name in ("model.keras", "stored.keras"):
        for a, b in zip(keras_files.read(tmp_path / name).get_weights(), small.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert {file.name for file in tmp_path.iterdir()} == {"model.keras", "stored.keras"}


def test_a_data_set_that_holds_nothing(path):
    """4 GiB declared and never written: HDF5 would make zeros of it."""
    altered(path, **{"model.weights.h5": weights_with(path, lambda file: file.create_dataset("x", (2**15, 2**15)))})
    assert path.stat().st_size < 1_000_000
    refused(path, "declares more than it holds", "x of (32768, 32768) in 0 bytes")


def test_a_data_set_that_is_compressed(path):
    def add(file):
        file.create_dataset("x", data=np.zeros((1000, 1000), np.float32), chunks=(1000, 1000), compression="gzip")

    altered(path, **{"model.weights.h5": weights_with(path, add)})
    refused(path, "declares more than it holds", "x of (1000, 1000)")


def test_blanks_in_the_configuration(path):
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    altered(path, **{"config.json": config + b" " * 32 * 1024**2})
    refused(path, "declares more than it holds", "config.json of ")
    altered(path, **{"config.json": config})
    assert json.loads(config)["registered_name"] == "tf_isvae>DiscreteVAE"
    keras_files.read(path)


def test_bytes_of_no_weight(path):
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    altered(path, **{"model.weights.h5": weights + bytes(8 * 1024**2)})
    refused(path, "declares more than it holds", "model.weights.h5 of ")
    # Random bytes do not shrink; they are refused for what the weights need.
    altered(path, **{"model.weights.h5": weights + np.random.default_rng(0).bytes(8 * 1024**2)})
    refused(path, "declares more than it holds", "bytes of weights")
