"""Visual search: the index, its file, and the script."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import one_line
from PIL import Image

from tf_isvae import BernoulliLatent, CategoricalLatent, DiscreteVAE, datasets, networks, search

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
# Away from one half, so that no rounding changes a bit.
IMAGES = np.where(RNG.random((50, *SHAPE)) < 0.5, 0.2, 0.8).astype(np.float32)


def make_model(scale=6.0, bits=10):
    """A model whose bits say whether the first pixels are above one half, with q = sigmoid(scale * (pixel - 1/2))."""
    encoder = networks.dense_encoder(SHAPE, bits, ())
    encoder.set_weights([scale * np.eye(16, bits, dtype=np.float32), np.full(bits, -scale / 2, np.float32)])
    return DiscreteVAE(encoder, BernoulliLatent(bits), networks.dense_decoder(bits, SHAPE, ()))


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def index(model):
    index = search.Index(model, "a model")
    index.add([f"/photos/{i % 5}/{i}.png" for i in range(50)], IMAGES)
    return index


@pytest.fixture(scope="module")
def photos(tmp_path_factory, model):
    """A folder of 50 images, and the model's file."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(IMAGES):
        path = folder / "images" / f"{i % 5}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * image[..., 0]).astype(np.uint8)).save(path)
    model.save(folder / "model.keras")
    return folder


def sorted_distances(distances, positions, neighbours):
    """The sorted distances of each row; checks that the positions found have these distances."""
    np.testing.assert_allclose(
        np.take_along_axis(distances, positions, 1), np.sort(distances, 1)[:, :neighbours], rtol=1e-5
    )


def test_hamming_distance(index):
    bits = (IMAGES.reshape(50, 16)[:, :10] > 0.5).astype(int)
    positions, distances = index.nearest(IMAGES[:6], neighbours=7)
    expected = np.abs(bits[:6, None] - bits[None]).sum(-1)
    sorted_distances(expected, positions, 7)
    np.testing.assert_array_equal(np.take_along_axis(expected, positions, 1), distances)


def test_expected_hamming_distance(index, model):
    """The mean over q, by enumerating all codes of the query."""
    bits = (IMAGES.reshape(50, 16)[:, :10] > 0.5).astype(int)
    codes = model.latent.all_codes()
    q = 1 / (1 + np.exp(-6.0 * (IMAGES[:3].reshape(3, 16)[:, :10].astype(float) - 0.5)))
    weights = np.where(codes[None] == 1, q[:, None], 1 - q[:, None]).prod(-1)
    expected = weights @ np.abs(codes[:, None] - bits[None]).sum(-1)
    positions, distances = index.nearest(IMAGES[:3], neighbours=50, distance="expected")
    sorted_distances(expected, positions, 50)
    np.testing.assert_allclose(np.take_along_axis(expected, positions, 1), distances, rtol=1e-5)


@pytest.mark.parametrize("probes", [9, 1])
def test_lists_hold_what_all_comparisons_find(index, monkeypatch, tmp_path, probes):
    """With as many probes as lists. With one, a query that asks for all codes gets them too."""
    neighbours = 5 if probes == 9 else 50
    exact = [index.nearest(IMAGES[:6], neighbours, distance)[1] for distance in search.DISTANCES]
    settings = {"LARGEST_FLAT": 20, "LISTS": 9, "PROBES": probes, "_FEWEST_IN_A_LIST": 5}
    for name, value in settings.items():
        monkeypatch.setattr(search, name, value)
    index._engine = None
    index.save(tmp_path / "an.index")
    loaded = search.load(tmp_path / "an.index", index.model)
    engine = loaded._engine  # of the file
    assert type(engine).__name__ == "IndexBinaryIVF" and engine.nlist == 9
    for distance, expected in zip(search.DISTANCES, exact, strict=True):
        np.testing.assert_allclose(loaded.nearest(IMAGES[:6], neighbours, distance)[1], expected, rtol=1e-6)
    index.add(["one more"], IMAGES[:1])
    assert 50 in index.nearest(IMAGES[:1], 5)[0]


def test_removing(index):
    assert index.remove(["/photos/3", "/photos/0/10.png"]) == 11
    assert len(index) == len(index.codes) == 39 and "/photos/0/10.png" not in index.paths
    position = index.paths.index("/photos/1/21.png")
    assert index.nearest(IMAGES[21:22], neighbours=39)[1][0].min() == 0
    assert position in index.nearest(IMAGES[21:22], neighbours=39)[0][0]
    with pytest.raises(ValueError) as error:
        index.remove(["/photos/3"])
    one_line(error, "/photos/3", "not in the index")


def test_a_file_of_an_index(index, model, tmp_path):
    index.paths[0] = "/photos/\udcff\n \u00e4.png"  # a name that is no UTF-8, and a line break
    index.save(tmp_path / "an.index")
    loaded = search.load(tmp_path / "an.index", model)
    assert loaded.paths == index.paths and loaded.name == "a model"
    np.testing.assert_array_equal(loaded.codes, index.codes)
    assert [path.name for path in tmp_path.iterdir()] == ["an.index"]


@pytest.mark.parametrize("damage", ["cut", "changed", "text", "npz", "model", "bits"])
def test_a_damaged_or_foreign_index_is_refused(index, model, tmp_path, damage):
    path = tmp_path / "an.index"
    index.save(path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":  # one bit of the codes
        begin = whole.index(index.codes.tobytes())
        path.write_bytes(whole[:begin] + bytes([whole[begin] ^ 1]) + whole[begin + 1 :])
    elif damage == "text":
        path.write_text("photos")
    elif damage == "npz":
        with open(path, "wb") as file:
            np.savez(file, images=IMAGES)
    other = {"model": make_model(scale=5.0), "bits": make_model(bits=12)}.get(damage, model)
    with pytest.raises(ValueError) as error:
        search.load(path, other)
    one_line(error, path, "another model" if damage in ("model", "bits") else "an index that search.py index wrote")
    assert "pickle" not in str(error.value)  # which NumPy recommends for what is no archive


def test_an_index_without_images(model):
    with pytest.raises(ValueError) as error:
        search.Index(model, "a model").nearest(IMAGES, neighbours=1)
    one_line(error, "the index has no images", "add some")


def test_stopped_and_going_on(model, photos, tmp_path, monkeypatch):
    """Stopped in the third chunk of ten images; the same call goes on, and encodes only what is left."""
    monkeypatch.setattr(search, "CHUNK", 10)
    files, to, seen = datasets.image_files(photos / "images"), tmp_path / "an.index", []

    def stop(done, in_all):
        seen.append((done, in_all))
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped after 30 images"):
        search.extend(search.Index(model, "a model"), files, to, stop)
    assert not to.exists() and seen == [(10, 50), (20, 50), (30, 50)]
    read = []
    monkeypatch.setattr(
        datasets, "read_images", lambda names, shape, f=datasets.read_images: read.append(names) or f(names, shape)
    )
    index = search.Index(model, "a model")
    assert search.extend(index, files, to) == 50
    assert sum(read, []) == files[30:] and index.paths == files
    assert [path.name for path in tmp_path.iterdir()] == ["an.index"]
    whole = search.Index(model, "a model")
    whole.add(files, datasets.read_images(files, SHAPE))
    np.testing.assert_array_equal(search.load(to, model).codes, whole.codes)
    # What is in the index already is not added again.
    assert search.extend(index, files[:3], to) == 0


def test_a_broken_image_leaves_what_was_done(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "CHUNK", 10)
    shutil.copytree(photos / "images", tmp_path / "images")
    files = datasets.image_files(tmp_path / "images")
    broken = Path(files[25])
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with pytest.raises(OSError) as error:
        search.extend(search.Index(model, "a model"), files, tmp_path / "an.index")
    one_line(error, files[25], "repair or remove it", "20 images are kept")
    broken.write_bytes(whole)
    assert search.extend(search.Index(model, "a model"), files, tmp_path / "an.index") == 50


def test_bad_input(index, model):
    categories = CategoricalLatent(4)
    other = DiscreteVAE(networks.dense_encoder(SHAPE, 4, ()), categories, networks.dense_decoder(4, SHAPE, ()))
    for call, parts in (
        (lambda: index.nearest(IMAGES, 0), ["neighbours is 0"]),
        (lambda: index.nearest(IMAGES, 51), ["neighbours is 51", "at most 50"]),
        (lambda: index.nearest(IMAGES, 1, "cosine"), ["distance is 'cosine'", "hamming, expected"]),
        (lambda: index.nearest(255 * IMAGES, 1), ["divide by 255"]),
        (lambda: index.add(["a.png"], IMAGES), ["paths are 1", "50"]),
        (lambda: search.Index(other, "fc_cvae_mnist"), ["fc_cvae_mnist are no bits", "BernoulliLatent"]),
        (lambda: datasets.read_images([], SHAPE), ["files are none"]),
        (lambda: datasets.read_images(["no.png"], SHAPE), ["no.png is no file"]),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            call()
        one_line(error, *parts)


# --- The script.


def test_the_script(script, photos, tmp_path):
    images = photos / "images"
    status, output, errors = script("search.py", "index", images, "--model", photos / "model.keras", "--to", "an.index")
    assert (status, errors) == (0, "") and "50 images added, 50 in all, 2 bytes each" in output
    one = images / "2" / "07.png"
    query = ["search.py", "query", "an.index", one, "--neighbours", 4, "--picture", "result.png"]
    status, output, errors = script(*query, "--distance", "expected")
    lines = output.splitlines()
    assert (status, errors, lines[0], len(lines)) == (0, "", str(one), 5)
    distances = [float(line.split()[0]) for line in lines[1:]]
    # 10 bits, q of each 1 / (1 + exp(-6 * 0.3)) for its own value.
    assert distances == sorted(distances) and abs(distances[0] - 10 / (1 + np.exp(1.8))) < 1e-2
    with Image.open("result.png") as picture:
        assert picture.width > 5 * 4
    assert script("search.py", "remove", "an.index", images / "2")[:2] == (0, "an.index: 10 images removed, 40 left\n")
    status, output, errors = script("search.py", "add", "an.index", one, images / "3")
    assert (status, errors) == (0, "") and "1 images added, 41 in all" in output
    assert sorted(os.listdir()) == ["an.index", "result.png"]


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("index EMPTY --model MODEL --to new.index", ["holds no images"]),
        ("index no_such --model MODEL --to new.index", ["no_such is no folder", "PNG or JPEG"]),
        ("index INDEX --model MODEL --to new.index", ["an.index is no folder"]),
        ("index PHOTOS --model no_such --to new.index", ["no_such", "fc_bvae_mnist"]),
        ("index PHOTOS --model MODEL --to no/new.index", ["--to is no/new.index", "make it"]),
        ("index PHOTOS --model fc_cvae_mnist --to new.index", ["are no bits"]),
        ("index PHOTOS --to new.index", ["--model"]),
        ("query new.index PHOTOS/2/07.png", ["new.index is no file"]),
        ("query INDEX PHOTOS/2/07.png --neighbours 51", ["neighbours is 51", "at most 50"]),
        ("query INDEX PHOTOS/2/07.png --neighbours 0", ["neighbours is 0"]),
        ("query INDEX no.png", ["no.png"]),
        ("query INDEX PHOTOS/2/07.png --picture a.jpg", ["a.jpg", ".png"]),
        ("query INDEX PHOTOS/2/07.png --distance far", ["--distance is 'far'"]),
        ("query INDEX PHOTOS/2/07.png --model fc_bvae_mnist", ["another model of 10 bits", "has 50"]),
        ("query MODEL PHOTOS/2/07.png", ["is damaged, or of another kind"]),
        ("remove INDEX no.png", ["no.png is not in the index"]),
        ("add INDEX no.png", ["no.png does not exist"]),
        ("find INDEX", ["find"]),
    ],
)
def test_bad_arguments(script, photos, index, tmp_path, arguments, parts):
    if not (photos / "an.index").exists():
        stored = search.Index(index.model, str(photos / "model.keras"))
        stored.paths, stored._parts = index.paths, [index.codes]
        stored.save(photos / "an.index")
    (tmp_path / "empty").mkdir()
    names = {
        "EMPTY": "empty",
        "MODEL": photos / "model.keras",
        "PHOTOS": photos / "images",
        "INDEX": photos / "an.index",
    }
    for name, path in names.items():
        arguments = arguments.replace(name, str(path))
    before = sorted(tmp_path.rglob("*"))
    status, output, errors = script("search.py", *arguments.split())
    assert (status, output) == (2, "")
    one_line(errors, *parts)
    assert sorted(tmp_path.rglob("*")) == before and zipfile.is_zipfile(photos / "an.index")


def test_the_script_of_speed(script, tmp_path):
    """The flat engine is exact; what is kept is not built again."""
    command = ["search_speed.py", "--codes", 900, "--bits", 12, "--engines", "flat", "hnsw", "ivf", "--keep", "g.faiss"]
    for _ in range(2):
        status, output, errors = script(*command)
        assert (status, errors) == (0, "")
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()[2:]]
        assert [row[0] for row in rows] == ["flat", "hnsw", "ivf"] and rows[0][-1] == "1.000"
        assert 2 <= float(rows[0][2]) < float(rows[1][2]) and all(0 < float(row[-1]) <= 1 for row in rows)
    status, output, errors = script("search_speed.py", "--codes", 9)
    assert (status, output) == (2, "")
    one_line(errors, "--codes is 9")
