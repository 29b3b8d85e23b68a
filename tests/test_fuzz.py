"""Files that users bring, damaged in any way: one line that says so, or a result; no crash, no hang, nothing written.

The first tier makes a few of each kind, the second ten times as many, and FUZZ_MUTATIONS=5000 pytest -m all
tests/test_fuzz.py that many.
"""

import dataclasses
import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_isvae import BernoulliLatent, DiscreteVAE, datasets, export, networks, training
from tf_isvae.training import checkpoints
from tf_isvae.training.run_directory import RunDirectory

MANY = int(os.environ.get("FUZZ_MUTATIONS", 0))
JSON = [None, True, -1, 0, 1e400, "", "\n", [], {}, [[]], 10**400, "a" * 300]
DTYPES = ["|u1", "<f4", "|O", "<U9", "|V0", "<M8[s]", "?", "<f999", "", "\0", [("a", "<f4")], 3]
SHAPES = [(), (0,), (-1, 2, 2), (10**15, 8, 8), (2**63,), (2**31, 2**31, 4), (1.5,), "ab", [5, 8, 8], (5, 8, 8, 10**9)]


def npy(rng):
    """An array file whose header lies, or is no header at all."""
    header = {
        "descr": DTYPES[rng.integers(len(DTYPES))] if rng.random() < 0.5 else "|u1",
        "fortran_order": [True, False, None][rng.integers(3)],
        "shape": SHAPES[rng.integers(len(SHAPES))],
    }
    text = repr(header)
    if rng.random() < 0.3:
        text = ["(" * 200, "{'descr': ", "0x", "{" + "[" * 99, "\\", "1_0_", "'''", "{'shape': ()}"][rng.integers(8)]
    text = text.encode("latin1")
    return b"\x93NUMPY" + bytes([rng.integers(1, 4), 0]) + len(text).to_bytes(2, "little") + text + bytes(320)


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def mutate(rng, content, others):
    """The bytes, damaged in one to three ways."""
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(6), int(rng.integers(len(content) + 1))
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = content[:place] + bytes(rng.integers(0, 256, rng.integers(1, 20), np.uint8)) + content[place:]
        elif kind == 2:
            content = content[:place] + content[place + int(rng.integers(1, 50)) :]
        elif kind == 3:
            content = others[rng.integers(len(others))]
        elif content:
            altered = bytearray(content)
            for at in rng.integers(0, len(content), rng.integers(1, 5)):
                altered[at] = rng.integers(256)
            content = bytes(altered)
    return content


def mutate_json(rng, content):
    """Well-formed JSON with a value of another kind, or none."""
    value = json.loads(content)
    for _ in range(rng.integers(1, 3)):
        name = list(value)[rng.integers(len(value))]
        value[name] = JSON[rng.integers(len(JSON))]
        if rng.random() < 0.1:
            del value[name]
            break
    return json.dumps(value).encode()


def mutate_zip(rng, content):
    """A whole archive with right checksums, of which one member is damaged, missing, renamed or replaced."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[rng.integers(len(members))]
    kind = rng.integers(5)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members["../" * int(rng.integers(2)) + "line\nline"] = members.pop(name)
    elif name.endswith(".npy"):
        members[name] = npy(rng)
    else:  # of the same length, so that no size becomes enormous
        altered = bytearray(members[name])
        for at in rng.integers(0, len(altered), 3):
            altered[at] ^= 1 << int(rng.integers(7))
        members[name] = bytes(altered)
    return zipped(members)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """kind -> (the name of the file, its bytes), as the package and others write them."""
    folder = tmp_path_factory.mktemp("valid")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8), np.uint8)
    np.savez(folder / "a.npz", images=images, labels=np.arange(5))
    np.savez_compressed(folder / "b.npz", x_train=images, y_train=np.arange(5))
    Image.fromarray(images[0]).save(folder / "a.png")
    Image.fromarray(images.reshape(20, 16)).save(folder / "a.jpg")
    config = training.Config(dataset="digits", image_size=(8, 8), run_dir="a")
    (folder / "run").mkdir()
    RunDirectory(folder / "run").begin(dataclasses.asdict(config))
    progress = json.dumps({"step": 3, "history": [], "seconds": [], "elapsed": 1.0})
    np.savez(folder / "000000000003.npz", progress=progress, means=np.zeros((1, 6)), **{"model/0": np.ones((3, 2))})
    shape = (2, 2, 1)
    encoder, decoder = networks.dense_encoder(shape, 2, ()), networks.dense_decoder(2, shape, ())
    DiscreteVAE(encoder, BernoulliLatent(2), decoder).save(folder / "model.keras")
    (folder / "metadata.json").write_text(json.dumps({"kind": "tf_isvae export", "version": 1}))
    return {
        "npz": ("a.npz", (folder / "a.npz").read_bytes()),
        "compressed npz": ("b.npz", (folder / "b.npz").read_bytes()),
        "png": ("images/a.png", (folder / "a.png").read_bytes()),
        "jpeg": ("images/a.jpg", (folder / "a.jpg").read_bytes()),
        "config.json": ("run/config.json", (folder / "run" / "config.json").read_bytes()),
        "checkpoint": ("run/checkpoints/000000000003.npz", (folder / "000000000003.npz").read_bytes()),
        "keras": ("model.keras", (folder / "model.keras").read_bytes()),
        "metadata.json": ("card/metadata.json", (folder / "metadata.json").read_bytes()),
    }


def read_npz(path):
    (batch,) = datasets.load(path, batch_size=10**6)
    assert float(tf.reduce_max(batch)) <= 1


def read_folder(path):
    for _ in datasets.load(path.parent, batch_size=2):
        pass


READ = {
    "npz": (read_npz, 30),
    "compressed npz": (read_npz, 20),
    "png": (read_folder, 15),
    "jpeg": (read_folder, 15),
    "config.json": (lambda path: training.stored_config(path.parent), 30),
    "checkpoint": (lambda path: checkpoints.newest(path.parents[1]), 30),
    "keras": (training.read_trained, 15),
    "metadata.json": (lambda path: export.card.check_folder(path.parent), 15),
}


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.all
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("kind", list(READ))
def test_damaged_files(valid, tmp_path, monkeypatch, capsys, kind, many):
    monkeypatch.chdir(tmp_path)
    read, few = READ[kind]
    number = (MANY or 10 * few) if many else few
    name, content = valid[kind]
    others = [other for _, other in valid.values()] + [b"", b"{", b"[" * 100_000, b"null", b"PK\5\6" + bytes(18)]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    refused = 0
    for seed in range(number):
        rng = np.random.default_rng(seed)
        if seed % 3 or kind in ("png", "jpeg"):
            damaged = mutate(rng, content, others)
        else:
            damaged = mutate_json(rng, content) if name.endswith(".json") else mutate_zip(rng, content)
        path.write_bytes(damaged)
        before = contents(tmp_path)
        try:
            read(path)
        except (ValueError, OSError, tf.errors.InvalidArgumentError) as error:
            refused += 1
            text = str(error)
            if isinstance(error, tf.errors.OpError):  # raised while the data is read; TensorFlow says where as well
                text = re.search(r"\[([^\n]*)\]", text)[1]
            assert "\n" not in text and len(text) < 1000, (seed, text)
        except BaseException as error:
            pytest.fail(f"mutation {seed} of {kind}: {type(error).__name__}: {error}")
        assert contents(tmp_path) == before, seed
        warning = capsys.readouterr().err
        assert warning.count("\n") <= 1, (seed, warning)
        refused += "is damaged" in warning
    print(f"{kind}: {refused} of {number} refused")
    assert refused > 0


# --- What fuzzing found.


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"image_size": ' + b"[" * 100_000])
def test_json_that_is_nested_too_deeply(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config.json is not the config.json of a run \(") as error:
        training.stored_config(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value, word",
    [("learning_rate", 10**400, "positive number"), ("model", [], "no model"), ("recipe", {}, "best, paper")],
)
def test_settings_of_another_kind(valid, tmp_path, name, value, word):
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(valid["config.json"][1]), name: value}))
    with pytest.raises(ValueError, match=word) as error:
        training.stored_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "members",
    [
        {"images.txt": b"no array"},
        {"images.npy": b"\x93NUMPY\1\0\x0a\0" + b"{'descr': " + bytes(9)},
        {"images.npy": b"\x93NUMPY\1\0\x41\0" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**15, 8, 8)}"},
        {
            "images.npy": b"\x93NUMPY\1\0\x45\0"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999,)}   "
        },
    ],
    ids=["no array", "half a header", "a sum", "too large"],
)
def test_archives_with_strange_members(tmp_path, members):
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(members))
    with pytest.raises(ValueError, match="a.npz") as error:
        datasets.load(path, batch_size=2)
    assert "\n" not in str(error.value)


def test_a_file_name_of_two_thousand_bytes(valid, tmp_path):
    """zipfile would quote them all, and print the rest of the file."""
    content = bytearray(valid["npz"][1] + bytes(2000))
    content[26:28] = (2000).to_bytes(2, "little")  # the length of the first member's name
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole .npz file") as error:
        datasets.load(path, batch_size=2)
    assert len(str(error.value)) < 600


def test_a_line_break_in_a_member(valid, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(zipped({"line\nline": b""}))
    with pytest.raises(ValueError, match="line line") as error:
        training.read_trained(path)
    assert "\n" not in str(error.value)
