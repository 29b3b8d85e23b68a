"""exported_models/: every model loads in each format, and reproduces the figures of its card on 1,000 test images."""

import hashlib
import json
import re
import runpy
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, tfds_has

from tf_isvae import evaluation, training, zoo
from tf_isvae.commands import evaluate, export
from tf_isvae.precision import cap_below_bfloat16, layers_in, stored_in

pytestmark = pytest.mark.all
FOLDERS = sorted(path.parent for path in ROOT.glob("exported_models/*/metadata.json"))
# How many nats per image the mean may differ, besides five standard errors of what is sampled (probability 6e-7), and
# the least share of equal codes. The cards' figures, and the SavedModels, of models trained in bfloat16 are of that
# arithmetic; zoo.load and LiteRT compute in float32. In int8, close ties of 100 categories fall otherwise far more
# often than a bit changes.
TOLERANCE = {"keras": (0.05, 1.0), "saved_model": (0.05, 0.98), "float32": (0.3, 0.98), "int8": (2.0, 0.98)}
INT8_CATEGORIES = 0.97
# Of a hybrid, another sample of the category can cost an image 60 nats, 0.06 of the mean of 1,000, and rounding decides
# a sample if its uniform number lies next to q: allowed in three images.
HYBRID = 0.2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model, trained, evaluated and exported by the commands for exported_models/."""
    folder = tmp_path_factory.mktemp("zoo")
    run_dir, exported = folder / "run", folder / "models" / "small"
    settings = {"model": "fc_bvae", "dataset": "digits", "image_size": (8, 8), "latent_dim": 6, "batch_size": 100}
    training.train(training.Config(**settings, epochs=20, recipe="best", precision="float32", run_dir=str(run_dir)))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        for name, *arguments in (
            ("evaluate", run_dir, "--to", run_dir / "evaluation.json"),
            ("export", run_dir, "--to", exported, "--keras", "--litert", "float32", "int8"),
        ):
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    return exported


@pytest.fixture(scope="module")
def one(request):
    """(folder, card, model, the first 1,000 test images of its data)."""
    folder = request.getfixturevalue("small") if request.param == "small" else request.param
    card = json.loads((folder / "metadata.json").read_text())
    dataset = card["training"]["config"]["dataset"]
    if dataset != "digits" and not tfds_has(dataset):
        pytest.skip(f"{dataset} is not prepared: set TFDS_DATA_DIR to a folder that has it")
    model = zoo.load(folder)
    images, _ = evaluation.images_for(model, dataset, "test", binarize=card["training"]["config"]["binarize"])
    return folder, card, model, images[:1000]


shipped = [pytest.param(folder, id=folder.name) for folder in FOLDERS]
every_folder = pytest.mark.parametrize("one", ["small", *shipped], indirect=True)
# The .keras file of a new model comes first; the other formats of all models are made at once, later.
in_all_formats = pytest.mark.parametrize(
    "one",
    ["small", *(each for each, folder in zip(shipped, FOLDERS, strict=True) if (folder / "1").exists())],
    indirect=True,
)


def test_there_are_exported_models():
    if not FOLDERS:
        pytest.skip("exported_models/ holds none yet")
    assert [folder.name for folder in FOLDERS] == [name for name in zoo.names() if (FOLDERS[0].parent / name).exists()]
    size = sum(path.stat().st_size for path in FOLDERS[0].parent.rglob("*") if path.is_file())
    assert size < 80e6


@every_folder
def test_the_card_names_all_files(one):
    folder, card, model, _ = one
    version = str(card["version"])
    files = {f"{version}/{name}": file for name, file in card["files"].items()} | card["litert"] | card["keras"]
    name = folder.name
    others = {litert(folder, "float32"), litert(folder, "int8"), f"{version}/saved_model.pb"}
    assert {f"{name}.keras", *(others if card["files"] else ())} <= set(files)
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # Models that were exported before cards had a picture have none.
    assert present - {"picture.png"} == {*files, "README.md", "metadata.json"}
    readme = (folder / "README.md").read_text()
    for path, file in files.items():
        content = (folder / path).read_bytes()
        assert len(content) == file["bytes"] and hashlib.sha256(content).hexdigest() == file["sha256"], path
        assert path in readme and file["sha256"] in readme
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == card["model"]["parameters"]
    assert card["training"]["command"] in readme
    for figure in ("test_neg_elbo", "test_ln_p", "test_ln_p_kind"):
        assert figure in card["metrics"] and figure in readme


@every_folder
def test_keras(one):
    """The same seed gives the card's figures, but for another machine's rounding. The file is compressed."""
    folder, card, model, images = one
    with zipfile.ZipFile(folder / f"{folder.name}.keras") as file:
        assert all(member.compress_type == zipfile.ZIP_DEFLATED for member in file.infolist())
    tolerance, _ = TOLERANCE["keras"]
    if model.latent.feature_units and model.latent.code_units:
        tolerance = HYBRID
    metrics = card["metrics"]
    assert abs(-model.elbo(images, seed=0).mean() - metrics["first_1000_neg_elbo"]) < tolerance
    assert abs(model.log_likelihood(images, 100, seed=0).mean() - metrics["first_1000_ln_p"]) < tolerance


def litert(folder, kind) -> str:
    return f"{folder.name}{'_int8' if kind == 'int8' else ''}.tflite"


def check(kind, one, codes, elbo):
    """Compares a format's codes, and its ELBO by one sample of q for each image, with what they must be."""
    _, card, model, images = one
    tolerance, least = TOLERANCE[kind]
    if kind == "int8" and model.latent.code_values != 2:
        least = INT8_CATEGORIES
    agree = (codes == model.encode(images)).mean()
    # The card's figure is the mean of these, which test_keras shows; by image, most of the noise drops out.
    difference = elbo - model.elbo(images, seed=0)
    error = difference.std(ddof=1) / np.sqrt(len(images))
    gap = abs(elbo.mean() + card["metrics"]["first_1000_neg_elbo"])
    print(f"{card['name']} {kind}: {agree:.4f} of the codes equal, -ELBO {gap:.3f} off, standard error {error:.3f}")
    assert agree >= least and gap < tolerance + 5 * error


@pytest.mark.parametrize("one", ["small"], indirect=True)
def test_rounded_weights(one, tmp_path):
    """bfloat16 has 8 significant bits: each entry of a matrix moves by at most 1/256 of it. The card tells."""
    folder, card, model, _ = one
    rounded = tmp_path / "rounded"
    given = [str(folder / f"{folder.name}.keras"), "--to", str(rounded), "--keras", "--round-weights"]
    export.work(export.prepare(export.make_parser().parse_args(given)))
    copy = zoo.load(rounded)
    for mine, other in zip(copy.trainable_weights, model.trainable_weights, strict=True):
        mine, other = mine.numpy(), other.numpy()
        assert (np.abs(mine - other) <= np.abs(other) / 256 * (mine.ndim > 1)).all()
        assert mine.ndim < 2 or (mine != other).any()
    sizes = [path.stat().st_size for path in (rounded / "rounded.keras", folder / "small.keras")]
    assert sizes[0] < 0.6 * sizes[1]
    assert card["model"]["weights"] == "float32"
    told = json.loads((rounded / "metadata.json").read_text())["model"]["weights"]
    assert told == "float32, matrices rounded to bfloat16" and told in (rounded / "README.md").read_text()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_the_card_names_the_weights_type(policy):
    with layers_in(policy):
        model = zoo.build("fc_cvae", (3, 3, 1), 5)
    assert stored_in(model) == {"mixed_bfloat16": "float32"}.get(policy, policy)


@in_all_formats
def test_saved_model(one):
    folder, card, _, images = one
    computes_in = card["model"].get("precision", card["training"]["config"]["precision"])
    if computes_in != "float32" and cap_below_bfloat16():
        pytest.skip(f"it computes in {computes_in}, and {cap_below_bfloat16()}")
    loaded = tf.saved_model.load(str(folder / str(card["version"])))
    seeds = np.stack([np.arange(len(images)), np.full(len(images), 3)], axis=1).astype(np.int32)
    codes = loaded.signatures["encode"](images=tf.constant(images))["codes"].numpy()
    scores = loaded.signatures["score"](images=tf.constant(images), seed=tf.constant(seeds))
    check("saved_model", one, codes, scores["elbo"].numpy())


@in_all_formats
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_litert(one, kind):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    folder, _, model, images = one
    loaded = interpreter.Interpreter(model_path=str(folder / litert(folder, kind)), num_threads=1)
    noise = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (len(images), model.latent.units)).astype(np.float32)
    codes = loaded.get_signature_runner("encode")(images=images)["codes"]
    check(kind, one, codes, loaded.get_signature_runner("score")(images=images, noise=noise)["elbo"])


def test_a_name_of_the_zoo_is_evaluated_on_the_data_of_its_card(small, monkeypatch, tmp_path):
    """By its name, and by its folder; the figures are those that the run had."""
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(small.parent))
    monkeypatch.chdir(tmp_path)
    for source in ("small", str(small)):
        model, data, to, clusters = evaluate.prepare(evaluate.make_parser().parse_args([source]))
        assert {name: len(images) for name, (images, _) in data.items()} == {"train": 1437, "test": 360}
        assert to is None and clusters is None
    figures = training.read_trained("small").metrics
    assert -model.elbo(data["test"][0], seed=0).mean() == pytest.approx(figures["test_neg_elbo"], rel=1e-5)


def test_the_cards_python_runs(small, monkeypatch):
    """Each block in the card's folder, as printed; the codes are those of the model for black images."""
    monkeypatch.chdir(small)
    blocks = re.findall(r"^```python\n(.*?)^```", (small / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [word in block for block, word in zip(blocks, ("saved_model", "TFSM", "zoo.load", "litert"), strict=True)]
    expected = zoo.load(small).encode(np.zeros((2, 8, 8, 1)))
    for number, block in enumerate(blocks, 1):
        names = {"__name__": "__main__"}
        exec(compile(block, f"block {number} of the card", "exec"), names)
        np.testing.assert_array_equal(names["codes"], expected)


def test_the_card_says_how_good_int8_is(small):
    """The share of equal entries of the codes of the 500 images that it was calibrated on."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    model, card = zoo.load(small), json.loads((small / "metadata.json").read_text())
    images, _ = evaluation.images_for(model, "digits", "train", count=500)
    encode = interpreter.Interpreter(str(small / litert(small, "int8")), num_threads=1).get_signature_runner("encode")
    share = float((encode(images=images)["codes"] == model.encode(images)).mean())
    assert card["quantized"] == {"small_int8.tflite": {"images": 500, "codes_equal": pytest.approx(share, abs=2e-3)}}
    assert (
        f"`small_int8.tflite` gives {card['quantized']['small_int8.tflite']['codes_equal']:.2%} of the entries"
        in (small / "README.md").read_text()
    )
    assert (small / "picture.png").is_file() and card["picture"]["ground"] == "light on dark" and share > 0.95
