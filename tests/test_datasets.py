"""datasets: every source against an independent reader, and an order that only the seed decides."""

import hashlib
import json
import pathlib
import shutil
import struct
import time
import types
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers import one_line, tfds_has
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_sample_images

from tf_isvae import datasets
from tf_isvae.datasets import bundled, noise, splits


def numbered(count, shape=(2, 3, 1)):
    """Images that tell their own number: every pixel of image i holds i (below 65536), in two 8-bit pixels."""
    numbers = np.arange(count)
    images = np.zeros((count, *shape), np.uint8)
    images[:, 0], images[:, 1] = (numbers // 256)[:, None, None], (numbers % 256)[:, None, None]
    return images


def numbers_of(batch):
    pixels = np.rint(np.asarray(batch) * 255).astype(int)
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 1, 0, 0]).tolist()


def arrays(dataset):
    """The batches as NumPy arrays, pairs as pairs."""
    return list(dataset.as_numpy_iterator())


def whole(dataset):
    return np.concatenate(arrays(dataset))


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def save_images(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{i:05}{suffix}")
    return folder


@pytest.fixture
def from_disk(monkeypatch):
    """Makes every encoded source too large for memory."""
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)


@pytest.fixture(params=["memory", "disk"])
def folder_of_60(request, tmp_path, monkeypatch):
    if request.param == "disk":
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    return save_images(tmp_path / "images", numbered(60))


@pytest.fixture(params=["memory", "disk"])
def sixty(request, tmp_path, from_disk):
    """60 numbered images: an array, or a folder that is read in every epoch."""
    return numbered(60) if request.param == "memory" else save_images(tmp_path / "images", numbered(60))


# --- Sources.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    test = np.arange(1797) % 5 == 0
    for split, chosen, count in (("train", ~test, 1437), ("test", test, 360)):
        ours, our_labels = arrays(datasets.load("digits", split, batch_size=2000, image_size=8, labels=True))[0]
        assert ours.shape == (count, 8, 8, 1) and ours.dtype == np.float32 and our_labels.dtype == np.int32
        np.testing.assert_array_equal(ours, images[chosen])
        np.testing.assert_array_equal(our_labels, labels[chosen])


def test_photo_patches_are_of_two_photographs_and_do_not_share_a_pixel():
    """Each patch lies in a photograph, at its place in the order; the columns of the test patches are in no other."""
    photographs = load_sample_images().images
    columns = {}
    for split, count in (("train", 5500), ("test", 104)):
        [(images, labels)] = arrays(datasets.load("photo_patches", split, batch_size=5500, labels=True))
        assert images.shape == (count, 32, 32, 3) and np.bincount(labels).tolist() == [count // 2] * 2
        images = np.rint(images * 255).astype(np.uint8)
        for number in (0, count // 3, count - 1):
            windows = np.lib.stride_tricks.sliding_window_view(photographs[labels[number]], (32, 32), (0, 1))
            # By the first row of the patch, then whole.
            first = images[number, 0].T
            rows, lefts = np.nonzero((windows[:, :, :, 0] == first).all((2, 3)))
            found = [windows[top, left].transpose(1, 2, 0) for top, left in zip(rows, lefts, strict=True)]
            assert any(np.array_equal(patch, images[number]) for patch in found)
            columns.setdefault(split, set()).update(int(left) + i for left in lefts for i in (0, 31))
    stripes = bundled._STRIPES
    covered = {split: {x for begin, end in stripes[split] for x in range(begin, end)} for split in stripes}
    assert not covered["train"] & covered["test"]
    assert columns["test"] <= covered["test"] and columns["train"] <= covered["train"]


def test_digits_are_enlarged_as_pil_does():
    small = whole(datasets.load("digits", "test", batch_size=500, image_size=8))
    large = whole(datasets.load("digits", "test", batch_size=500))
    assert large.shape == (360, 28, 28, 1) and large.min() >= 0 and large.max() <= 1
    for one, other in zip(small[:20, ..., 0], large[:20, ..., 0], strict=True):
        np.testing.assert_allclose(Image.fromarray(one).resize((28, 28), Image.BILINEAR), other, atol=1e-5)


@pytest.mark.all
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_agrees_with_its_own_reader(prepared, name):
    prepared(name)
    theirs = tfds.as_numpy(tfds.load(name, split="test", batch_size=-1, download=False))
    ours = arrays(datasets.load(name, "test", batch_size=3000, labels=True))
    assert [len(images) for images, _ in ours] == [3000, 3000, 3000, 1000]
    images, labels = (np.concatenate(parts) for parts in zip(*ours, strict=True))
    np.testing.assert_array_equal(images, theirs["image"] / np.float32(255))
    np.testing.assert_array_equal(labels, theirs["label"])


def test_tfds_slices_and_disk(prepared, from_disk):
    prepared("mnist")
    theirs = tfds.as_numpy(tfds.load("mnist", split="test[100:350]", batch_size=-1, download=False))
    same(
        [whole(datasets.load("mnist", "test[100:350]", batch_size=90))],
        [theirs["image"] / np.float32(255)],
    )
    shuffled = datasets.load("mnist", "test[100:350]", batch_size=90, seed=3, labels=True)
    images, labels = (np.concatenate(parts) for parts in zip(*arrays(shuffled), strict=True))
    assert not np.array_equal(labels, theirs["label"])

    def contents(images, labels):
        return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    assert contents(images, labels) == contents(theirs["image"] / np.float32(255), theirs["label"])


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 1), (7, 5, 4, 3), (7, 5, 4, 2), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays(shape, dtype):
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else rng.random(shape).astype(dtype)
    dataset = datasets.load(given, batch_size=3)
    expected = given / np.float32(255) if dtype == np.uint8 else given.astype(np.float32)
    channels = shape[3] if len(shape) == 4 else 1
    assert dataset.element_spec == tf.TensorSpec((None, *shape[1:3], channels), tf.float32)
    np.testing.assert_array_equal(whole(dataset), expected.reshape(*shape[:3], channels))


def test_all_256_grey_levels_are_exact():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    images = whole(datasets.load(levels, batch_size=1))
    np.testing.assert_array_equal(images.ravel(), np.arange(256, dtype=np.float32) / np.float32(255))
    assert images.max() == 1


def test_an_array_is_not_followed_after_load():
    given = numbered(10)
    dataset = datasets.load(given, batch_size=10)
    given[:] = 0
    assert numbers_of(whole(dataset)) == list(range(10))


def test_npz_files(tmp_path):
    train, test = numbered(7)[..., 0], numbered(4)[..., 0]
    np.savez(tmp_path / "keras.npz", x_train=train, y_train=np.arange(7), x_test=test, y_test=np.arange(4) + 5)
    np.savez_compressed(tmp_path / "named.npz", images=train, labels=np.arange(7, dtype=np.uint8), other=np.zeros(3))
    np.savez(tmp_path / "single.npz", train)
    for name, split, count, first in (("keras", "train", 7, 0), ("keras", "test", 4, 5), ("named", "train", 7, 0)):
        for path in (tmp_path / f"{name}.npz", str(tmp_path / f"{name}.npz")):
            images, labels = arrays(datasets.load(path, split, batch_size=9, labels=True))[0]
            assert numbers_of(images) == list(range(count))
            assert labels.tolist() == list(range(first, first + count)) and labels.dtype == np.int32
    assert numbers_of(whole(datasets.load(tmp_path / "single.npz", batch_size=9))) == list(range(7))


def test_folders(folder_of_60):
    dataset = datasets.load(folder_of_60, batch_size=25)
    assert dataset.element_spec == tf.TensorSpec((None, 2, 3, 1), tf.float32)
    same([whole(dataset)], [numbered(60) / np.float32(255)])
    assert [len(batch) for batch in dataset] == [25, 25, 10]


def test_folders_with_splits_subfolders_and_other_files(tmp_path):
    save_images(tmp_path / "train" / "a", numbered(3))
    save_images(tmp_path / "train" / "b", numbered(2), ".PNG")
    save_images(tmp_path / "test", numbered(4))
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "._00000.png").write_text("no image either")
    assert numbers_of(whole(datasets.load(tmp_path, batch_size=9))) == [0, 1, 2, 0, 1]
    assert numbers_of(whole(datasets.load(str(tmp_path), "test", batch_size=9))) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [None, 0])
def test_jpeg_and_the_kinds_of_png_agree_with_pil(tmp_path, monkeypatch, limit):
    if limit is not None:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
    y, x = np.mgrid[:16, :20]
    colours = Image.fromarray(np.stack([8 * x, 9 * y, 4 * (x + y)], -1).astype(np.uint8))
    kinds = {
        "a.png": colours,
        "b.png": colours.convert("RGBA"),
        "c.png": colours.quantize(16),
        "d.png": colours.convert("L"),
        "e.png": colours.convert("LA"),
        "f.jpg": colours,
        "g.jpeg": colours.convert("L"),
        "h.jpg": colours,
    }
    for name, image in kinds.items():
        image.save(tmp_path / name, **({"progressive": True} if name == "h.jpg" else {}))
    for channels, mode in ((1, "L"), (3, "RGB")):
        ours = whole(datasets.load(tmp_path, batch_size=3, channels=channels)) * 255
        for image, name in zip(ours, kinds, strict=True):
            with Image.open(tmp_path / name) as file:
                theirs = np.asarray(file.convert(mode), np.float32).reshape(16, 20, channels)
            # PIL's luma rounds in another way, and JPEG decoders may differ by a level or two.
            np.testing.assert_allclose(image, theirs, atol=3 if "jp" in name else 1, err_msg=name)


def linked(folder, target):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target, target_is_directory=True)


def test_links_to_folders_are_followed(tmp_path):
    save_images(tmp_path / "images" / "own", numbered(4))
    save_images(tmp_path / "elsewhere" / "deeper", numbered(100)[10:])
    linked(tmp_path / "images" / "more", tmp_path / "elsewhere")
    found = numbers_of(whole(datasets.load(tmp_path / "images", batch_size=200)))
    assert found == [*range(10, 100), *range(4)]  # in the order of the paths: more/deeper, own
    assert datasets.fingerprint(tmp_path / "images")["images"] == 94


def test_loops_of_links_end_and_no_folder_is_read_twice(tmp_path):
    root = tmp_path / "images"
    save_images(root / "b", numbered(3))
    save_images(root / "c", numbered(6)[3:])
    for link, target in (("a", root / "b"), ("b/up", root), ("b/across", root / "c"), ("c/across", root / "b")):
        linked(root / link, target)
    linked(root / "c" / "self", root / "c")
    # Folders under their own names, as if there were no links: a is b.
    assert numbers_of(whole(datasets.load(root, batch_size=9))) == list(range(6))


@pytest.mark.parametrize("limit", [None, 0])
def test_class_subfolders_are_labels_as_in_keras(tmp_path, monkeypatch, limit):
    """Sorted names, subfolders within a class, an empty class, and a hidden folder, which is none."""
    if limit is not None:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
    images = numbered(9)
    for name, begin in (("dogs", 0), ("cats", 3), ("Birds/grey", 6)):
        save_images(tmp_path / name, images[begin : begin + 3])
    (tmp_path / "ants").mkdir()
    (tmp_path / ".hidden").mkdir()
    theirs = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(2, 3), color_mode="grayscale", batch_size=9, shuffle=False, verbose=False
    )
    [(their_images, their_labels)] = arrays(theirs)
    [(ours, labels)] = arrays(datasets.load(tmp_path, batch_size=9, labels=True))
    assert labels.dtype == np.int32
    assert dict(zip(numbers_of(ours), labels, strict=True)) == dict(
        zip(numbers_of(their_images / 255), their_labels, strict=True)
    )


def test_a_class_has_one_number_in_all_splits(tmp_path):
    """The test images lack the first class, and the images beside the classes of a split have no label."""
    for name in ("train/a", "train/b", "train/c", "Test/b", "Test/c", "more/a"):
        save_images(tmp_path / name, numbered(2))
    for split, expected in (("train", [0, 0, 1, 1, 2, 2]), ("test", [1, 1, 2, 2])):
        [(_, labels)] = arrays(datasets.load(tmp_path, split, batch_size=9, labels=True))
        assert labels.tolist() == expected
    save_images(tmp_path / "more", numbered(1))
    refused(datasets.NoLabels, "no labels", source=tmp_path, split="more", labels=True)


def test_pairs_of_arrays_have_labels():
    images, labels = numbered(5), np.array([[3], [1], [4], [1], [5]], np.uint8)
    for given in (labels, labels[:, 0].astype(np.int64)):
        batches = arrays(datasets.load((images, given), batch_size=2, labels=True))
        assert np.concatenate([batch for _, batch in batches]).tolist() == [3, 1, 4, 1, 5]
        same([batch for batch, _ in batches], arrays(datasets.load(images, batch_size=2)))
    for wrong in (labels[:4], labels[:, 0].astype(float), np.tile(labels, 2), labels.astype(np.int64) + 2**31):
        refused(ValueError, "the labels of the images", "one for each of the 5 images", source=(images, wrong))
    refused(TypeError, "source is a tuple", "a pair (images, labels)", source=(images, [1, 2, 3, 4, 5]))


def test_a_link_may_be_a_split(tmp_path):
    save_images(tmp_path / "stored" / "first", numbered(3))
    save_images(tmp_path / "stored" / "second", numbered(5))
    for split, name in (("train", "first"), ("test", "second")):
        linked(tmp_path / "images" / split, tmp_path / "stored" / name)
    assert len(whole(datasets.load(tmp_path / "images", batch_size=9))) == 3
    assert len(whole(datasets.load(tmp_path / "images", "test", batch_size=9))) == 5


def test_a_link_to_an_image_that_is_gone_is_refused(tmp_path):
    save_images(tmp_path, numbered(2))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(ValueError, tmp_path / "gone.png", "does not lead to a file", source=tmp_path)


def test_names_of_splits_in_capitals(tmp_path):
    save_images(tmp_path / "Train", numbered(3))
    save_images(tmp_path / "TEST", numbered(5))
    for split, count in (("train", 3), ("Train", 3), ("test", 5), ("TEST", 5)):
        assert len(whole(datasets.load(tmp_path, split, batch_size=9))) == count
    refused(datasets.NoSuchSplit, "'validation'", '"TEST" and "Train"', source=tmp_path, split="validation")


def test_one_split_under_two_names_is_refused(tmp_path):
    for name in ("train", "Train", "test"):
        save_images(tmp_path / name, numbered(2))
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell capitals from small letters")
    for split in ("train", "Train", "test"):
        refused(ValueError, tmp_path, '"Train" and "train"', "one of each split", source=tmp_path, split=split)


ORIENTED = [(orientation, kind) for orientation in range(1, 9) for kind in ("jpeg", "png")]


def oriented(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """One picture in all orientations, stored so that each file has 16 x 24 pixels or, turned, 24 x 16."""
    folder = tmp_path_factory.mktemp("turned")
    y, x = np.mgrid[:16, :24]
    picture = Image.fromarray(np.stack([10 * x, 15 * y, 4 * (x + y)], -1).astype(np.uint8))
    for orientation, kind in ORIENTED:
        options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
        picture.save(folder / f"{orientation}.{kind}", exif=oriented(orientation), **options)
        (folder / "flat").mkdir(exist_ok=True)
        if orientation < 5:
            shutil.copy(folder / f"{orientation}.{kind}", folder / "flat")
    (folder / "tall").mkdir()
    for orientation in (5, 6, 7, 8):
        shutil.copy(folder / f"{orientation}.png", folder / "tall")
    return folder


@pytest.mark.parametrize("limit", [None, 0])
def test_images_are_turned_upright_as_pil_does(turned, monkeypatch, limit):
    """All orientations of EXIF in both formats, those of one size and those that turn height into width."""
    if limit is not None:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
    for name, shape in (("flat", (16, 24, 3)), ("tall", (24, 16, 3))):
        ours = datasets.load(turned / name, batch_size=3)
        assert ours.element_spec.shape == (None, *shape)
        for path, image in zip(sorted((turned / name).iterdir()), whole(ours) * 255, strict=True):
            theirs = np.asarray(ImageOps.exif_transpose(Image.open(path)), np.float32)
            # TensorFlow decodes JPEG with the faster, less exact cosine transform. Another orientation differs by 100.
            np.testing.assert_allclose(image, theirs, atol=10 if path.suffix == ".jpeg" else 0.01, err_msg=path.name)


def test_sizes_are_compared_as_the_images_are_shown(turned):
    refused(ValueError, turned, "different sizes", "(16, 24)", "(24, 16)", "image_size", source=turned)
    assert whole(datasets.load(turned, batch_size=9, image_size=8)).shape == (16 + 8 + 4, 8, 8, 3)
    assert datasets.fingerprint(turned / "tall")["shape"] == [24, 16, 3]


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    """EXIF may stand anywhere in a PNG; some programs append it."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=oriented(6))
    data = (tmp_path / "a.png").read_bytes()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    last = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:begin] + data[end:last] + data[begin:end] + data[last:])
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert theirs.shape == (3, 2)
    np.testing.assert_array_equal(whole(datasets.load(tmp_path, batch_size=1))[0, ..., 0], theirs / np.float32(255))


@pytest.mark.parametrize("value", [0, 9, 65535, "exif"])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, value):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = b"Exif\0\0" + bytes(range(40)) if value == "exif" else oriented(value)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(whole(datasets.load(tmp_path, batch_size=1))[0, ..., 0], pixels / np.float32(255))


@pytest.mark.parametrize("bits", [1, 16])
def test_other_depths_of_grey(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 7)).astype(np.uint16)
    Image.fromarray(values.astype(bool) if bits == 1 else values).save(tmp_path / "a.png")
    ours = whole(datasets.load(tmp_path, batch_size=1))[0, ..., 0]
    np.testing.assert_allclose(ours, values / (2**bits - 1), atol=0 if bits == 1 else 1 / 255)


# --- TFDS, with a data set of our own: in several files, and to be prepared.


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """23 numbered images in "train", 4 in "test"; the label is the square of the number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(2, 3, 3)), "label": tfds.features.ClassLabel(num_classes=1000)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(23), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i, image in enumerate(numbered(count, (2, 3, 3))):
            yield i, {"image": image, "label": i * i}


class FailingImages(TinyImages):
    def _generate_examples(self, count):
        raise OSError("the archive is damaged\nat byte 17")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder in which TFDS has prepared TinyImages, in four files of unequal length."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyImages(data_dir=folder).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    assert len(list(folder.rglob("*train*.tfrecord*"))) == 4
    return folder


@pytest.mark.all
@pytest.mark.parametrize(
    "split, limit",
    [(split, limit) for split in ("train[20:]+test", "train", "train[3:20]") for limit in (0, None)],
)
def test_tfds_in_several_files(tiny, monkeypatch, limit, split):
    if limit is not None:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
        monkeypatch.setattr(datasets.tfds, "SHUFFLE_BUFFER", 8)  # several windows
    one_file_after_the_other = tfds.ReadConfig(interleave_cycle_length=1)
    stored = tfds.load("tiny_images", split=split, data_dir=tiny, read_config=one_file_after_the_other)
    expected = [int(example["label"]) for example in stored]

    def labels_of(dataset):
        images, labels = (np.concatenate(parts) for parts in zip(*arrays(dataset), strict=True))
        assert (np.square(numbers_of(images)) == labels).all()
        return labels.tolist()

    given = {"data_dir": tiny, "batch_size": 5, "labels": True}
    assert labels_of(datasets.load("tiny_images", split, **given)) == expected
    epochs = datasets.load("tiny_images", split, **given, seed=0, epochs=3)
    orders = [tuple(order) for order in np.reshape(labels_of(epochs), (3, -1))]
    assert [sorted(order) for order in orders] == [sorted(expected)] * 3 and len(set(orders)) == 3
    for start in (1, len(expected) // 5 + 2):
        rest = datasets.load("tiny_images", split, **given, seed=0, epochs=3, start=start)
        for ours, theirs in zip(arrays(rest), arrays(epochs)[start:], strict=True):
            same(ours, theirs)


def test_tfds_prepares_what_is_missing(tmp_path):
    folder = tmp_path / "not yet made"
    dataset = datasets.load("tiny_images", "test", batch_size=9, data_dir=folder)
    assert sorted(numbers_of(whole(dataset))) == [0, 1, 2, 3]
    assert [path.name for path in folder.iterdir()] == ["tiny_images"]  # no downloads, nothing half prepared


def test_a_failed_preparation_leaves_nothing(tmp_path):
    refused(ConnectionError, "the archive is damaged", source="failing_images", data_dir=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_damaged_tfds_files(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    victim = sorted(folder.rglob("*train*.tfrecord*"))[1]
    for damaged in (victim.read_bytes()[:-5], b""):  # an empty file is a whole one, of no records
        victim.write_bytes(damaged)
        refused(
            ValueError, "tiny_images", "prepare" if damaged == b"" else "repair", source="tiny_images", data_dir=folder
        )


# --- Sizes and channels.


@pytest.mark.parametrize("size, expected", [(14, (14, 14)), ((40, 10), (40, 10)), ([28, 28], (28, 28))], ids=str)
def test_resizing_agrees_with_pil(size, expected):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    ours = datasets.load(images, batch_size=5, image_size=size)
    assert ours.element_spec.shape == (None, *expected, 1)
    theirs = [Image.fromarray(image).resize(expected[::-1], Image.BILINEAR) for image in images]
    # Both round to a level, PIL after each of its two passes.
    difference = whole(ours)[..., 0] * 255 - np.stack(theirs)
    assert np.abs(difference).max() < 1.01
    # Cutting the fraction off would be half a level on average, the two ways to round a tie a quarter at most.
    assert abs(difference.mean()) < 0.25


def test_floats_stay_within_0_and_1_when_resized():
    images = np.ones((2, 9, 7), np.float32)
    resized = whole(datasets.load(images, batch_size=2, image_size=(31, 3)))
    assert resized.max() <= 1
    np.testing.assert_allclose(resized, 1, atol=1e-6)


def test_channels():
    colours = np.random.default_rng(0).random((6, 4, 5, 3)).astype(np.float32)
    grey = whole(datasets.load(colours, batch_size=6, channels=1))
    np.testing.assert_allclose(grey[..., 0], colours @ np.float32([0.299, 0.587, 0.114]), atol=2e-4)
    three = whole(datasets.load(grey, batch_size=6, channels=3))
    same([three], [np.repeat(grey, 3, -1)])
    same([whole(datasets.load(colours, batch_size=6, channels=3))], [colours])


def test_images_of_different_sizes(tmp_path):
    save_images(tmp_path / "a", numbered(1))
    save_images(tmp_path / "b", numbered(1, (4, 5, 1)))
    with pytest.raises(ValueError, match=r"00000\.png \(2, 3\).*00000\.png \(4, 5\).*image_size") as error:
        datasets.load(tmp_path, batch_size=2)
    assert str(tmp_path / "a" / "00000.png") in str(error.value) and str(tmp_path / "b" / "00000.png") in str(
        error.value
    )
    assert whole(datasets.load(tmp_path, batch_size=2, image_size=6)).shape == (2, 6, 6, 1)


# --- Order.


def test_without_a_seed_the_order_is_the_sources(sixty):
    dataset = datasets.load(sixty, batch_size=7)
    for _ in range(2):
        assert numbers_of(whole(dataset)) == list(range(60))


@pytest.mark.all
def test_each_epoch_is_a_new_permutation_decided_by_the_seed(sixty):
    dataset = datasets.load(sixty, batch_size=7, seed=5)
    epochs = [numbers_of(whole(dataset)) for _ in range(4)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # two of 60! orders
    again = datasets.load(sixty, batch_size=7, seed=5)
    assert [numbers_of(whole(again)) for _ in range(4)] == epochs
    other_batches = datasets.load(sixty, batch_size=60, seed=5)
    assert [numbers_of(whole(other_batches)) for _ in range(4)] == epochs
    assert numbers_of(whole(datasets.load(sixty, batch_size=7, seed=6))) not in epochs


def test_epochs_of_fit_are_new_permutations():
    """Keras begins a new iteration for each epoch, and so gets a new order."""
    import keras

    seen = []

    class Model(keras.Model):
        def train_step(self, images):
            tf.py_function(lambda batch: seen.append(numbers_of(batch)), [images], [])
            return {"loss": tf.constant(0.0)}

    model = Model()
    model.compile(run_eagerly=True)
    model.fit(datasets.load(numbered(12), batch_size=12, seed=0), epochs=3, verbose=0)
    seen = seen[-3:]
    assert [sorted(epoch) for epoch in seen] == [list(range(12))] * 3
    assert len({tuple(epoch) for epoch in seen}) == 3


@pytest.mark.all
def test_tfds_order_from_disk_does_not_depend_on_the_global_seed(prepared, from_disk, monkeypatch):
    prepared("mnist")
    monkeypatch.setattr(datasets.tfds, "SHUFFLE_BUFFER", 150)

    def two_epochs(global_seed):
        tf.random.set_seed(global_seed)
        dataset = datasets.load("mnist", "test[:400]", batch_size=400, seed=2)
        return [whole(dataset), whole(dataset)]

    first, second = two_epochs(1), two_epochs(2)
    same(first, second)
    assert not np.array_equal(*first)


def test_every_order_is_equally_likely():
    """chi^2 over the 24 orders of 4 images in 2,400 epochs: fails with probability 1e-6 if they are uniform."""
    dataset = datasets.load(numbered(4), batch_size=4, seed=0, epochs=2400)
    orders = [tuple(numbers_of(batch)) for batch in arrays(dataset)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts) < 70.5  # chi^2, 23 degrees of freedom


# --- Resuming.


RESUMABLE = [
    pytest.param({}, marks=pytest.mark.all),
    pytest.param({"seed": 7, "binarize": "static"}, marks=pytest.mark.all),
    {"seed": 7, "binarize": "dynamic"},
]


@pytest.mark.parametrize("arguments", RESUMABLE, ids=str)
def test_a_resumed_run_sees_the_same_batches(sixty, arguments):
    def run(start=0):
        return datasets.load(sixty, batch_size=25, epochs=4, start=start, **arguments)

    uninterrupted = arrays(run())
    assert len(uninterrupted) == 12 and int(run().cardinality()) == 12
    for start in (2, 6, 100):
        assert int(run(start).cardinality()) == max(0, 12 - start)
        same(arrays(run(start)), uninterrupted[start:])
    # The data set of one epoch passes through the same epochs, one an iteration.
    one = datasets.load(sixty, batch_size=25, **arguments)
    assert int(one.cardinality()) == 3
    same(arrays(one) + arrays(one) + arrays(one) + arrays(one), uninterrupted)


@pytest.mark.parametrize(
    "binarize", ["dynamic", *(pytest.param(draws, marks=pytest.mark.all) for draws in (None, "static"))]
)
def test_a_resumed_run_sees_the_same_batches_of_tfds_from_disk(prepared, from_disk, monkeypatch, binarize):
    prepared("mnist")
    monkeypatch.setattr(datasets.tfds, "SHUFFLE_BUFFER", 64)

    def run(start=0):
        arguments = {"seed": 1, "binarize": binarize, "labels": True}
        return datasets.load("mnist", "test[:250]", batch_size=100, epochs=3, start=start, **arguments)

    uninterrupted = arrays(run())
    assert len(uninterrupted) == 9
    for start in (1, 5):
        for ours, theirs in zip(arrays(run(start)), uninterrupted[start:], strict=True):
            same(ours, theirs)


def test_images_keep_their_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=numbered(300), labels=np.arange(300))
    dataset = datasets.load(tmp_path / "a.npz", batch_size=70, seed=0, labels=True)
    assert dataset.element_spec[1] == tf.TensorSpec((None,), tf.int32)
    for images, labels in arrays(dataset):
        assert numbers_of(images) == labels.tolist()


# --- Binarisation.


@pytest.mark.parametrize("pixels", [1, 2, 3, 784, 787])
def test_a_draw_takes_16_bits_of_the_stream(pixels):
    """Whatever numbers the random bits come in: a run of an earlier version goes on with the draws of its own."""
    seed = noise.fold(3, noise.NOISE, tf.constant(5))
    bits = tf.random.stateless_uniform([pixels], seed, minval=None, maxval=None, dtype=tf.int32).numpy()
    means = np.random.default_rng(0).random((1, pixels, 1, 1), np.float32)
    expected = bits.astype("<i4").view("<u2")[:pixels] < 65536 * means.ravel()
    np.testing.assert_array_equal(noise.dynamic(tf.constant(means), seed, 1, (0, 1)).numpy().ravel(), expected)


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
@pytest.mark.parametrize("source", ["memory", "disk"])
def test_draws_have_the_grey_value_as_their_mean(tmp_path, monkeypatch, binarize, source):
    """Each of 256 grey levels 4,000 times: its mean is within 5.5 standard errors, 256 times 4e-8 to fail."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    if source == "memory":
        given = np.repeat(levels, 4000, 0)
    else:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
        # The draws of equal files differ too if their paths do.
        given = save_images(tmp_path / "images", np.repeat(levels.repeat(4, 1).repeat(4, 2), 250, 0))
    images = whole(datasets.load(given, batch_size=1000, binarize=binarize))
    assert set(np.unique(images)) == {0, 1} and images.dtype == np.float32
    if source == "disk":
        images = images.reshape(250, 16, 4, 16, 4, 1).transpose(0, 2, 4, 1, 3, 5).reshape(4000, 16, 16, 1)
    mean, expected = images.mean(0).ravel(), levels.ravel() / 255
    assert (mean[0], mean[-1]) == (0, 1)
    # 2^-16 is what 16 bits of noise may be off.
    assert (np.abs(mean - expected) <= 5.5 * np.sqrt(expected * (1 - expected) / 4000) + 2**-16).all()


def test_black_and_white_are_never_drawn_otherwise():
    """2 million draws of 16 bits: one wrong value of the 65,536 would show with probability 1 - 1e-13."""
    images = np.stack([np.zeros((1400, 1400)), np.ones((1400, 1400))])
    for binarize in ("static", "dynamic"):
        black, white = whole(datasets.load(images, batch_size=2, binarize=binarize))
        assert black.max() == 0 and white.min() == 1


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_pixels_images_and_epochs_are_drawn_independently(tmp_path, monkeypatch, source):
    """Correlations of about 10,000 to 90,000 pairs of fair bits: 6 standard errors, 2e-9 each to fail."""
    if source == "disk":
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
        given = save_images(tmp_path / "images", np.full((100, 30, 30, 1), 128, np.uint8))
    else:
        given = np.full((100, 30, 30, 1), 0.5, np.float32)

    def correlation(one, other):
        one, other = one.ravel() - one.mean(), other.ravel() - other.mean()
        return abs(np.mean(one * other)) / (one.std() * other.std()) * np.sqrt(one.size)

    dynamic = datasets.load(given, batch_size=32, binarize="dynamic")
    one, other = whole(dynamic), whole(dynamic)
    static = whole(datasets.load(given, batch_size=32, binarize="static"))
    reseeded = whole(datasets.load(given, batch_size=32, binarize="static", image_size=30, seed=1))
    for a, b in [(one, other), (one, static), (static, reseeded)]:
        assert correlation(a, b) < 6
    for images in (one, static):
        assert correlation(images[:-1], images[1:]) < 6
        assert correlation(images[:32], images[32:64]) < 6
        assert correlation(images[:, :-1], images[:, 1:]) < 6
        assert correlation(images[:, :, :-1], images[:, :, 1:]) < 6


def test_static_draws_stay_with_their_image(folder_of_60):
    """Image i is drawn alike in every epoch, in any order and in batches of any size."""
    Image.fromarray(np.full((2, 3), 128, np.uint8)).save(folder_of_60 / "00000.png")

    def rows(dataset):
        return sorted(image.tobytes() for image in whole(dataset))

    dataset = datasets.load(folder_of_60, batch_size=7, seed=4, binarize="static")
    first = rows(dataset)
    assert rows(dataset) == first
    assert rows(datasets.load(folder_of_60, batch_size=60, seed=4, binarize="static")) == first


def expected_static(images, seed):
    """uint8 images (n, H, W, C), drawn with NumPy's generator: value k of its stream is for pixel k of the source."""
    draws = np.random.default_rng([7002, seed]).random(images.shape, np.float32)
    return (draws < images / np.float32(255)).astype(np.float32)


def by_content(images):
    return sorted(image.tobytes() for image in images)


def test_static_draws_are_the_same_in_memory_and_from_disk(tmp_path, monkeypatch):
    """Of an odd number of pixels: NumPy's generator makes two values at a time, which two images may share."""
    images = np.random.default_rng(1).integers(0, 256, (50, 3, 3, 1), np.uint8)
    folder = save_images(tmp_path, images)
    for limit in (2**31, 0):
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
        in_order = whole(datasets.load(folder, batch_size=50, binarize="static"))
        np.testing.assert_array_equal(in_order, expected_static(images, 0))
        shuffled = whole(datasets.load(folder, batch_size=7, binarize="static", seed=5))
        assert by_content(shuffled) == by_content(expected_static(images, 5))


def test_static_draws_of_tfds_are_the_same_in_memory_and_from_disk(tiny, monkeypatch):
    """With several files and windows, of a slice; labels say which image is which."""
    monkeypatch.setattr(datasets.tfds, "SHUFFLE_BUFFER", 8)
    given = {"data_dir": tiny, "batch_size": 5, "labels": True}
    plain, _ = (
        np.concatenate(p) for p in zip(*arrays(datasets.load("tiny_images", "train[3:20]", **given)), strict=True)
    )
    expected = expected_static(np.rint(plain * 255).astype(np.uint8), 4)
    for limit in (2**31, 0):
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
        dataset = datasets.load("tiny_images", "train[3:20]", seed=4, binarize="static", **given)
        for _ in range(2):
            images, labels = (np.concatenate(parts) for parts in zip(*arrays(dataset), strict=True))
            in_source = numbers_of(plain)
            np.testing.assert_array_equal(images, expected[[in_source.index(int(np.sqrt(label))) for label in labels]])


def test_no_seed_draws_as_seed_0():
    images = np.full((50, 9, 9), 0.5, np.float32)
    for binarize in ("static", "dynamic"):
        first, second = (datasets.load(images, batch_size=20, binarize=binarize) for _ in range(2))
        same(arrays(first), arrays(second))
    static = {datasets.load(images, batch_size=50, binarize="static", seed=s) and s for s in (None, 0)}
    assert static == {None, 0}


# --- In a process of their own. One after the other, so that one worker of the suite runs them all.


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, apart):
    """(results, standard error) of all that needs a process of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    np.save(folder / "images.npy", numbered(500))
    (folder / "links").mkdir()
    Image.fromarray(np.zeros((500, 500, 3), np.uint8)).save(folder / "links" / "0.png")
    for i in range(1, 800):
        (folder / "links" / f"{i}.png").symlink_to(folder / "links" / "0.png")
    return apart("data_sets", folder, tfds_has("mnist"), devices=2), (folder / "stderr.txt").read_text()


@pytest.mark.all
def test_memory(elsewhere):
    """Folders larger than the limit do not fill the memory; iterators over an array in memory do not copy it.

    600 MB of images (2,400 MB as floats) pass through a process that grows by less than half of that, and
    ten iterators over 150 MB together take less than one copy.
    """
    assert elsewhere[0]["from disk"] < 300 and elsewhere[0]["from memory"] < 150, elsewhere[0]


@pytest.mark.all
def test_mnist_is_loaded_without_warnings(prepared, elsewhere):
    prepared("mnist")
    assert "loads\nloaded\n" in elsewhere[1]


@pytest.mark.all
def test_the_order_is_the_same_in_another_process_whatever_the_global_seed(elsewhere):
    tf.random.set_seed(3)
    dataset = datasets.load(numbered(500), batch_size=100, seed=1, binarize="dynamic")
    here = b"".join(batch.tobytes() for _ in range(2) for batch in dataset.as_numpy_iterator())
    assert elsewhere[0]["sha256"] == hashlib.sha256(here).hexdigest()
    assert not elsewhere[0]["tfds"]  # importing TFDS takes a second, which users of other sources need not spend


@pytest.mark.all
def test_two_replicas_see_every_image_once_per_epoch(elsewhere):
    """Made outside the strategy's scope or inside, in the same order as one device."""
    results = elsewhere[0]
    assert results["inside"] == results["outside"] == results["plain"]
    for epoch in results["plain"]:
        assert sorted(sum(epoch, [])) == list(range(301))


# --- Bad input: one line that says what was given, what is accepted, and what to do.


def refused(kind, *parts, source=None, **arguments):
    if source is None:
        source = np.zeros((4, 5, 6), np.uint8)
    with pytest.raises(kind) as error:
        datasets.load(source, **{"batch_size": 2, **arguments})
    text = str(error.value)
    assert "\n" not in text and len(text) < 500, text
    for part in parts:
        assert str(part) in text, text
    return error.value


def test_numpy_integers_are_integers():
    dataset = datasets.load(numbered(5), batch_size=np.int64(2), seed=np.int32(1), image_size=(np.int16(2), 3))
    assert int(dataset.cardinality()) == 3


def test_bad_npz_files(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, images=numbered(100), labels=np.arange(100))
    data = good.read_bytes()
    bad = tmp_path / "bad.npz"
    for damaged in (data[: len(data) // 2], data[:100], b"", b"no zip archive", data[:200] + b"\0" * 50 + data[250:]):
        bad.write_bytes(damaged)
        refused(ValueError, bad, "not a whole .npz file", source=bad)
    np.savez(bad, first=numbered(2), second=numbered(2))
    refused(ValueError, bad, "first", "second", "x_train", source=bad)
    np.savez(bad, x_train=numbered(2))
    refused(datasets.NoSuchSplit, bad, "'test'", '"train"', source=bad, split="test")
    np.savez(bad, images=numbered(2), labels=np.arange(3))
    refused(ValueError, bad, "(3,)", "2 images", source=bad, labels=True)
    np.savez(bad, images=numbered(2))
    refused(ValueError, bad, "no labels", source=bad, labels=True)
    np.savez(bad, images=np.arange(3))
    refused(ValueError, bad, "(3,)", "(n, H, W, C)", source=bad)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"seed": 3, "epochs": 2, "start": 1}, {"image_size": 4}, {"binarize": "static"}, {"split": "train[:5]"}],
)
def test_a_mapped_file_gives_what_the_array_gives(tmp_path, dtype, arguments):
    images = numbered(70) if dtype == np.uint8 else np.random.default_rng(0).random((70, 2, 3, 1), np.float32)
    np.save(tmp_path / "a.npy", images)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    given = {"batch_size": 20, **arguments}
    for one, other in zip(arrays(datasets.load(mapped, **given)), arrays(datasets.load(images, **given)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mapped_file_stays_on_disk(tmp_path):
    """What is written to the file later is read, because no copy has been made."""
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (50, 2, 3, 1))
    dataset = datasets.load(mapped, batch_size=20)
    assert numbers_of(whole(dataset)) == [0] * 50
    mapped[:] = numbered(50)
    assert numbers_of(whole(dataset)) == list(range(50))


def test_npz_files_are_never_unpickled(tmp_path):
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self):
            return (open, (str(touched), "w"))

    np.savez(tmp_path / "bad.npz", images=np.array([Malicious()], dtype=object), allow_pickle=True)
    refused(ValueError, source=tmp_path / "bad.npz")
    assert not touched.exists()


def test_paths_that_do_not_exist(tmp_path):
    for missing in (tmp_path / "none", str(tmp_path / "none"), "./none", "none.npz", "~/none-of-this-name"):
        refused(FileNotFoundError, "none", "does not exist", source=missing)
    (tmp_path / "a.txt").write_text("a")
    refused(ValueError, tmp_path / "a.txt", ".npz", "folder", source=tmp_path / "a.txt")


def test_bad_folders(tmp_path):
    refused(ValueError, tmp_path, "no images", ".png", source=tmp_path)
    save_images(tmp_path, numbered(3))
    refused(datasets.NoSuchSplit, tmp_path, "'test'", '"train"', source=tmp_path, split="test")
    refused(ValueError, tmp_path, "no labels", source=tmp_path, labels=True)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "colour.png")
    refused(ValueError, tmp_path / "colour.png", "(3,)", "(1,)", "channels=1 or 3", source=tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "no header", "half", "wrong checksum"])
def test_a_broken_image_is_named(tmp_path, damage):
    rng = np.random.default_rng(0)
    save_images(tmp_path, rng.integers(0, 256, (5, 30, 30, 1), np.uint8))
    broken = tmp_path / "00003.png"
    data = broken.read_bytes()
    broken.write_bytes(
        {
            "empty": b"",
            "text": b"not an image",
            "no header": data[:12],
            "half": data[: len(data) // 2],
            "wrong checksum": data[:60] + bytes(20) + data[80:],
        }[damage]
    )
    refused(ValueError, broken, "cannot be decoded", source=tmp_path)
    # In one line even if nothing need be known of the images.
    with pytest.raises(ValueError) as error:
        datasets.load(tmp_path, batch_size=2, image_size=4, channels=1)
    one_line(error, broken, "cannot be decoded")


def test_a_broken_image_is_named_when_it_is_read_from_disk(tmp_path, from_disk):
    rng = np.random.default_rng(0)
    save_images(tmp_path, rng.integers(0, 256, (5, 30, 30, 1), np.uint8))
    broken = tmp_path / "00003.png"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(tf.errors.InvalidArgumentError, match="00003.png cannot be decoded"):
        arrays(datasets.load(tmp_path, batch_size=2))


@pytest.mark.parametrize("limit", [None, 0])
def test_half_a_jpeg_is_named(tmp_path, monkeypatch, limit):
    if limit is not None:
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", limit)
    rng = np.random.default_rng(0)
    save_images(tmp_path, rng.integers(0, 256, (3, 40, 50, 3), np.uint8), ".jpg")
    broken = tmp_path / "00001.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="00001.jpg cannot be decoded"):
        arrays(datasets.load(tmp_path, batch_size=2))


def test_a_png_of_absurd_size_is_an_error(tmp_path):
    """A header that promises 100,000 x 100,000 pixels must neither crash the process nor fill its memory."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(10)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="a.png"):
        arrays(datasets.load(tmp_path, batch_size=1, image_size=8))


def test_splits_that_a_named_source_lacks(prepared):
    refused(datasets.NoSuchSplit, "digits", "'validation'", '"train" and "test"', source="digits", split="validation")
    prepared("mnist")
    refused(datasets.NoSuchSplit, "mnist", "'validation'", '"train" and "test"', source="mnist", split="validation")


def test_a_failed_download_is_quick_clear_and_leaves_nothing(tmp_path, offline, capfd):
    began = time.monotonic()
    folder = tmp_path / "data"
    advice = ("TFDS_DATA_DIR", '"digits"', "cannot be reached")
    refused(ConnectionError, "mnist", folder, *advice, source="mnist", data_dir=folder)
    assert time.monotonic() - began < 20
    assert not folder.exists()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_no_thread_that_the_end_of_an_iterator_waits_for():
    assert datasets.load(np.zeros((4, 2, 2, 1), np.uint8), batch_size=2).options().autotune.enabled is False


# --- Slices, and what is held out for validation.


@pytest.mark.parametrize("count", [1, 7, 60, 1437])
def test_slices_are_those_of_tfds(count):
    """Also what TFDS refuses is refused."""
    infos = {"train": types.SimpleNamespace(num_examples=count)}
    bounds = ("", "0", "1", "3", "60", "-1", "-3", "10%", "33%", "12.5%", "50%", "100%", "-25%", "110%")
    for text in (f"train[{begin}:{end}]" for begin in bounds for end in bounds if begin or end):
        try:
            [theirs] = tfds.core.ReadInstruction.from_spec(text).to_absolute(infos)
            expected = list(range(count))[theirs.from_ : theirs.to]
        except ValueError:  # a number without "%" beside one with it is per cent; a part of an image is no number
            expected = []
        if expected:
            assert splits.parse(text).rows(count).tolist() == expected, text
        else:
            with pytest.raises(ValueError, match="split is 'train"):
                splits.parse(text).rows(count)


@pytest.fixture(params=["pair", "npz", "folder", "disk"])
def source_of_20(request, tmp_path, monkeypatch):
    images, labels = numbered(20), np.arange(20)
    if request.param == "pair":
        return images, labels
    if request.param == "npz":
        np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
        return tmp_path / "images.npz"
    if request.param == "disk":
        monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    return save_images(tmp_path / "images", images)


def test_slices_of_every_source(source_of_20):
    assert numbers_of(whole(datasets.load(source_of_20, "train[5:40%]", batch_size=20))) == list(range(1, 8))
    assert datasets.fingerprint(source_of_20, "train[:5]") != datasets.fingerprint(source_of_20, "train[5:10]")
    refused(ValueError, "'train[5:5]'", "at least 1 image", source=source_of_20, split="train[5:5]")
    refused(ValueError, "'train[:21]'", "the 20 images", source=source_of_20, split="train[:21]")
    refused(datasets.NoSuchSplit, "'tset'", source=source_of_20, split="tset[:50%]")


@pytest.mark.all
def test_held_out_images_of_every_source(source_of_20):
    """The two parts make up the whole, each in its order, with its labels, if there are any."""
    arguments = {"batch_size": 20, "validation_split": 0.25, "validation_seed": 3}
    parts = [numbers_of(whole(datasets.load(source_of_20, split, **arguments))) for split in ("train", "validation")]
    assert len(parts[1]) == 5 and sorted(parts[0] + parts[1]) == list(range(20))
    assert [sorted(part) for part in parts] == parts
    if not isinstance(source_of_20, pathlib.Path) or source_of_20.suffix == ".npz":
        [(_, labels)] = arrays(datasets.load(source_of_20, "validation", labels=True, **arguments))
        assert labels.tolist() == parts[1]
    prints = {
        json.dumps(datasets.fingerprint(source_of_20, split, validation_split=0.25, validation_seed=seed))
        for split in ("train", "validation")
        for seed in (0, 1)
    }
    assert len(prints) == 4


def test_the_seed_decides_which_images_are_held_out():
    """Slices are of what is left, or of what is held out."""

    def rows(text, share=0.25, seed=0):
        return splits.parse(text, share, seed).rows(20).tolist()

    assert rows("validation") == rows("validation") != rows("validation", seed=1)
    assert rows("train[2:-5]") == rows("train")[2:-5] and rows("validation[60%:]") == rows("validation")[3:]
    assert [len(rows("validation", share)) for share in (0.001, 0.5, 0.999)] == [1, 10, 19]


def test_every_image_is_held_out_as_often_as_any_other():
    """One of 4 images, with 600 seeds: chi-squared of 3 degrees of freedom, above 21.1 by chance in 1 of 10,000."""
    counts = np.bincount([splits.parse("validation", 0.25, seed).rows(4).item() for seed in range(600)], minlength=4)
    assert (np.square(counts - 150) / 150).sum() < 21.1


def test_test_images_stay_when_others_are_held_out(tmp_path):
    """The images held out are meant, not the folder, by the name "validation"."""
    for split, begin in (("Train", 0), ("test", 10), ("validation", 20)):
        save_images(tmp_path / split, numbered(30)[begin : begin + 10])
    parts = [
        numbers_of(whole(datasets.load(tmp_path, split, validation_split=0.5)))
        for split in ("train", "validation", "test")
    ]
    assert sorted(parts[0] + parts[1]) == list(range(10)) and parts[2] == list(range(10, 20))
    refused(ValueError, "'train+test'", source=tmp_path, split="train+test", validation_split=0.5)


def test_tfds_holds_out_its_last_images(tiny):
    everything = whole(datasets.load("tiny_images", data_dir=tiny))
    arguments = {"data_dir": tiny, "validation_split": 0.1}
    parts = [whole(datasets.load("tiny_images", split, **arguments)) for split in ("train", "validation")]
    same(np.concatenate(parts), everything)
    assert len(parts[1]) == round(0.1 * len(everything))
    same(whole(datasets.load("tiny_images", "validation[:2]", **arguments)), parts[1][:2])
    refused(datasets.NoSuchSplit, "'nosuch'", source="tiny_images", split="nosuch", **arguments)


@pytest.mark.parametrize("share", [0, 1, -0.1, True, "0.1", np.nan])
def test_a_share_lies_between_0_and_1(share):
    refused(ValueError, f"validation_split is {share!r}", "above 0 and below 1", validation_split=share)


def test_one_image_cannot_be_divided():
    refused(ValueError, "single training image", source=np.zeros((1, 2, 2), np.uint8), validation_split=0.5)


def test_a_default_batch_size():
    assert [len(batch) for batch in datasets.load(numbered(300))] == [256, 44]


# --- What identifies the data of a run.


def test_fingerprints_say_number_and_shape_of_what_load_returns(tmp_path, tiny):
    save_images(tmp_path / "images", numbered(5, (2, 3, 3)))
    np.savez(tmp_path / "a.npz", x_train=numbered(7)[..., 0], y_train=np.arange(7), x_test=numbered(4))
    for source, split, options in (
        (numbered(6)[..., 0], "train", {}),
        (tmp_path / "a.npz", "train", {}),
        (tmp_path / "a.npz", "test", {"image_size": (4, 5)}),
        (tmp_path / "images", "train", {}),
        (tmp_path / "images", "train", {"channels": 1, "image_size": 4}),
        ("digits", "test", {}),
        ("digits", "train", {"image_size": 8}),
        ("tiny_images", "train[3:20]", {"data_dir": tiny}),
    ):
        found = datasets.fingerprint(source, split, **options)
        images = whole(datasets.load(source, split, batch_size=2000, **options))
        assert found == json.loads(json.dumps(found)) and len(bytes.fromhex(found["digest"])) == 32
        assert [found["images"], *found["shape"]] == list(images.shape)


def test_fingerprints_tell_changed_data_from_moved_data(tmp_path, tiny):
    def digest(source, split="train", **options):
        return datasets.fingerprint(source, split, **options)["digest"]

    images = numbered(6)
    assert digest(images) == digest(images.copy(order="F"))
    altered = images.copy()
    altered[5, 1, 2, 0] ^= 1
    digests = [digest(array) for array in (images, altered, images[:5], images.reshape(6, 3, 2, 1), images / 255)]
    assert len(set(digests)) == 5

    np.savez(tmp_path / "a.npz", x_train=images, x_test=images[:3])
    np.savez(tmp_path / "b.npz", x_train=altered, x_test=images[:3])
    assert digest(tmp_path / "a.npz") != digest(tmp_path / "b.npz")
    assert digest(tmp_path / "a.npz", "test") == digest(tmp_path / "b.npz", "test") != digest(tmp_path / "a.npz")

    one = save_images(tmp_path / "one", images)
    before = digest(one)
    assert digest(shutil.copytree(one, tmp_path / "two")) == before
    (one / "00005.png").rename(one / "00006.png")
    renamed = digest(one)
    Image.fromarray(images[5, ..., 0]).save(one / "00006.png", compress_level=0)
    replaced = digest(one)
    (one / "00006.png").unlink()
    assert len({before, renamed, replaced, digest(one)}) == 4

    copy = shutil.copytree(tiny, tmp_path / "copy")
    assert digest("tiny_images", data_dir=copy) == digest("tiny_images", "train[:23]", data_dir=tiny)
    assert digest("tiny_images", "train[:22]", data_dir=tiny) != digest("tiny_images", data_dir=tiny)
    victim = sorted(copy.rglob("*train*.tfrecord*"))[1]
    victim.write_bytes(victim.read_bytes() + b"more")
    assert digest("tiny_images", data_dir=copy) != digest("tiny_images", data_dir=tiny)


def test_fingerprints_of_bad_sources_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    for source, word in ((np.zeros(3), "(3,)"), (tmp_path / "a.npz", "(3,)"), (tmp_path / "b.npz", "whole")):
        with pytest.raises(ValueError) as error:
            datasets.fingerprint(source)
        assert word in str(error.value) and "\n" not in str(error.value)
