"""Visual search: the index, its file, and the script."""

import copy
import os
import pickle
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import faiss
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


@pytest.fixture
def few_lists(monkeypatch):
    """Indexes of more than 20 codes are in 9 lists, of which a search looks through one."""
    for name, value in {"LARGEST_FLAT": 20, "LISTS": 9, "PROBES": 1, "_FEWEST_IN_A_LIST": 5}.items():
        monkeypatch.setattr(search, name, value)


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


def differing_bits(queries, codes):
    """In how many bits packed codes differ: (queries, codes)."""
    return np.unpackbits(queries[:, None] ^ codes[None], axis=-1).sum(-1)


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


def test_a_query_whose_list_is_empty(index, few_lists):
    """All codes are in the list of zeros. Only the query of ones is searched for again, in all lists."""
    quantizer = faiss.IndexBinaryFlat(16)
    quantizer.add(np.array([[0, 0], [255, 255]], np.uint8))
    index._parts, index._engine = [np.zeros((50, 2), np.uint8)], faiss.IndexBinaryIVF(quantizer, 16, 2)
    index._engine.is_trained = True
    index._engine.add(index.codes)
    rows, engine = [], index._engine
    search_in = engine.search
    engine.search = lambda packed, count: rows.append(len(packed)) or search_in(packed, count)
    queries = np.array([[0, 0], [255, 255], [0, 0]], np.uint8)
    positions, distances = index._search(queries, 5)
    np.testing.assert_array_equal(distances, np.repeat([[0], [16], [0]], 5, 1))
    assert all(len(set(row)) == 5 and min(row) >= 0 and max(row) < 50 for row in positions.tolist())
    assert rows == [3, 1]


@pytest.mark.parametrize("width", range(1, 18))
def test_distances_in_lists_are_those_of_the_codes_found(index, few_lists, monkeypatch, width):
    """For codes of 1 to 17 bytes: FAISS compares codes of different widths by different loops."""
    rng = np.random.default_rng(width)
    codes = rng.integers(0, 256, (400, width), dtype=np.uint8)
    queries = codes[:30] ^ np.packbits(rng.random((30, 8 * width)) < 0.1, axis=1)
    index.paths, index._parts = [str(i) for i in range(400)], [codes]
    truth = differing_bits(queries, codes)
    for probes in (1, 3, 9):
        monkeypatch.setattr(search, "PROBES", probes)
        positions, distances = index._search(queries, 7)
        np.testing.assert_array_equal(distances, np.take_along_axis(truth, positions, 1))
        assert all(len(set(row)) == 7 for row in positions.tolist())
    np.testing.assert_array_equal(distances, np.sort(truth, 1)[:, :7])


def test_added_codes_go_into_the_lists_that_are_there(index, few_lists, monkeypatch):
    index.nearest(IMAGES[:1], 1)
    engine = index._engine
    images = np.where(np.random.default_rng(1).random((30, *SHAPE)) < 0.5, 0.2, 0.8)
    for i in (0, 15):
        index.add([f"more {j}" for j in range(i, i + 15)], images[i : i + 15])
    assert index._engine is engine and engine.ntotal == len(index) == 80
    monkeypatch.setattr(search, "PROBES", 9)
    truth = differing_bits(np.packbits(search.encode(index.model, images)[0].astype(np.uint8), axis=1), index.codes)
    positions, distances = index.nearest(images, 6)
    sorted_distances(truth, positions, 6)
    np.testing.assert_array_equal(np.take_along_axis(truth, positions, 1), distances)
    index.remove(["more 3"])
    assert index._engine is None


def test_lists_are_made_when_there_are_enough_codes(index, few_lists, monkeypatch):
    """The flat engine is not kept beyond its limit."""
    monkeypatch.setattr(search, "LARGEST_FLAT", 50)
    index.nearest(IMAGES[:1], 1)
    assert type(index._engine).__name__ == "IndexBinaryFlat"
    index.add(["one more"], IMAGES[:1])
    index.nearest(IMAGES[:1], 1)
    assert type(index._engine).__name__ == "IndexBinaryIVF" and index._engine.ntotal == 51


def test_threads_that_search_at_once(index, monkeypatch):
    """One makes the lists, and none looks through as many as another has set."""
    for name, value in {"LARGEST_FLAT": 20, "LISTS": 64, "PROBES": 1}.items():
        monkeypatch.setattr(search, name, value)
    made, make = [], search.in_lists
    monkeypatch.setattr(search, "in_lists", lambda codes: made.append(make(codes)) or made[-1])
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (20_000, 2), dtype=np.uint8)
    index.paths, index._parts = [str(i) for i in range(len(codes))], [codes]
    begin, looked_through = threading.Barrier(4), []

    def run(neighbours):
        faiss.omp_set_num_threads(1)  # of this thread: or they wait for each other's, most of the time
        begin.wait()
        for _ in range(50):
            looked_through.append((neighbours, index._search(codes[:1], neighbours)[1].tolist()))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(neighbours,)) for neighbours in (300, 3000, 300, 3000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(made) == 1 and len(looked_through) == 200
    alone = {neighbours: index._search(codes[:1], neighbours)[1].tolist() for neighbours in (300, 3000)}
    assert alone[300][0] != alone[3000][0][:300]  # or the next line could not tell
    assert all(distances == alone[neighbours] for neighbours, distances in looked_through)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_an_index_that_was_searched_can_be_copied(index, duplicate):
    expected = index.nearest(IMAGES[:3], 5)[1]
    other = duplicate(index)
    np.testing.assert_array_equal(other.nearest(IMAGES[:3], 5)[1], expected)
    other.add(["one more"], IMAGES[:1])
    assert len(other) == len(other.codes) == 51 and len(index) == len(index.codes) == 50


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


@pytest.mark.parametrize("kind", ["flat", "short", "noise"])
def test_damaged_lists_are_refused(index, few_lists, tmp_path, kind):
    path = tmp_path / "an.index"
    index._engine = search.flat(index.codes) if kind == "flat" else search.in_lists(index.codes[:40])
    index.save(path)
    if kind == "noise":
        with np.load(path) as stored:
            arrays = {**stored, "engine": np.arange(90, dtype=np.uint8)}
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    with pytest.raises(ValueError) as error:
        search.load(path, index.model)
    one_line(error, path, "is damaged", "an index that search.py index wrote")


def test_lists_are_not_loaded_where_all_codes_are_compared(index, few_lists, monkeypatch, tmp_path):
    exact = differing_bits(index.codes, index.codes)
    index.save(tmp_path / "an.index")
    monkeypatch.setattr(search, "LARGEST_FLAT", 50)
    loaded = search.load(tmp_path / "an.index", index.model)
    np.testing.assert_array_equal(loaded.nearest(IMAGES, 3)[1], np.sort(exact, 1)[:, :3])


def test_lists_without_faiss(index, few_lists, monkeypatch, tmp_path):
    index.save(tmp_path / "an.index")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError) as error:
        search.load(tmp_path / "an.index", index.model)
    one_line(error, "pip install faiss-cpu")


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


def test_stopped_while_lists_are_made(model, photos, few_lists, tmp_path, monkeypatch):
    """All images are kept, before the lists are begun; the same call reads none again."""
    files, to, partial = datasets.image_files(photos / "images"), tmp_path / "an.index", tmp_path / ".an.index.partial"

    def stop(codes):
        assert search.load(partial, model).paths == files  # if the process were killed now
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search, "in_lists", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped after 50 images"):
            search.extend(search.Index(model, "a model"), files, to)
    assert list(tmp_path.iterdir()) == [partial]
    monkeypatch.setattr(datasets, "read_images", None)
    assert search.extend(search.Index(model, "a model"), files, to) == 50
    assert list(tmp_path.iterdir()) == [to] and search.load(to, model)._engine.ntotal == 50


def test_what_another_call_has_left_is_refused(model, photos, tmp_path):
    """Of another model, or of another index: nothing is lost, and nothing is written."""
    files, to, partial = datasets.image_files(photos / "images"), tmp_path / "an.index", tmp_path / ".an.index.partial"
    other = search.Index(model, "a model")
    other.add(["elsewhere.png"], IMAGES[:1])
    other.save(partial)
    kept = partial.read_bytes()
    own = search.Index(model, "a model")
    own.add(files[:1], IMAGES[:1])
    for index in (own, search.Index(make_model(scale=5.0), "a model")):
        with pytest.raises(FileExistsError) as error:
            search.extend(index, files, to)
        one_line(error, "another call has left", "not of this index", "remove it", partial)
    assert partial.read_bytes() == kept and not to.exists()


def test_lists_are_kept_by_a_call_that_goes_on(model, photos, few_lists, tmp_path):
    files, to = datasets.image_files(photos / "images"), tmp_path / "an.index"
    index = search.Index(model, "a model")
    search.extend(index, files[:40], to)
    index.add(files[40:45], IMAGES[:5])
    index.save(tmp_path / ".an.index.partial")
    index = search.load(to, model)
    engine = index._engine
    assert search.extend(index, files, to) == 10
    assert index._engine is engine and engine.ntotal == len(index) == 50


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
    status, output, errors = script("search_speed.py", "--engines", "flat", "ivf", "--keep", "other.faiss")
    assert (status, output) == (2, "")
    one_line(errors, "--keep is other.faiss", "--engines", "hnsw")
