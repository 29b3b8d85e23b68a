"""scripts/reproduce_paper.py: small runs through it, what the report says of them, and that docs/ is up to date."""

import csv
import importlib
import json
import os
import re
import signal
from argparse import Namespace

import numpy as np
import pytest
from helpers import ROOT
from matplotlib.image import imread

from tf_isvae import evaluation, files, training

DOCS = ROOT / "docs"
SMALL = {"dataset": "digits", "image_size": (8, 8), "latent_dim": 6, "batch_size": 200}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("reproduce_paper")


@pytest.fixture(scope="module")
def pages(script):
    """The tables and the claims, which the script writes."""
    return importlib.import_module("paper_report")


def run(script, arguments):
    script.work(script.prepare(arguments))


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


# --- What is committed.


def test_results_are_up_to_date(script, pages):
    """docs/results.md says what docs/results/*.json say, with every picture beside it."""
    results = script.stored_results(DOCS)
    if not results:
        pytest.skip("docs/results/ holds no results yet")
    assert {path.stem for path in (DOCS / "results").glob("*.json")} == set(results)
    text = (DOCS / "results.md").read_text()
    assert text == pages.render(results, script.EXPERIMENTS), "run scripts/reproduce_paper.py --report-only"
    assert all((DOCS / link).is_file() for link in links(text))
    assert sum(path.stat().st_size for path in DOCS.rglob("*") if path.is_file()) < 4e6


def test_the_experiments_are_the_papers(script, pages):
    """Section 6 and appendices: 300 epochs of batch 2048 on MNIST, 1,000 on Fashion-MNIST, Adam 1e-3, 50 or 100."""
    configs = {name: training.Config(**settings) for name, settings in script.EXPERIMENTS.items()}
    papers = {name: config for name, config in configs.items() if name.endswith("_paper")}
    assert {(c.model, c.dataset) for c in papers.values()} == {
        *((model, "mnist") for model in ("fc_bvae", "fc_cvae", "cnn_bvae", "cnn_cvae")),
        ("fc_bvae", "fashion_mnist"),
    }
    for config in papers.values():
        assert (config.estimator, config.batch_size, config.learning_rate) == ("ImportanceSampling", 2048, 1e-3)
        assert config.epochs == (300 if config.dataset == "mnist" else 1000)
    for name in papers:  # each again with ours
        best = configs[name.removesuffix("paper") + "best"]
        assert (best.model, best.dataset, best.recipe) == (papers[name].model, papers[name].dataset, "best")
    # What the CNN CVAE takes with seed 0 to learn more than the mean image: a single difference, the samples.
    ours, paper = (vars(configs[name]) for name in ("cnn_cvae_10_samples", "cnn_cvae_paper"))
    assert {key for key in paper if ours[key] != paper[key]} == {"estimator", "epochs"}
    assert ours["estimator"] == "ImportanceSampling:10"
    assert (configs["fc_vae"].estimator, configs["fc_vae"].latent_dim) == ("Reparameterized", 50)
    assert sorted(name for _, names in pages.GROUPS.values() for name in names) == sorted(configs)


# --- Small runs.


@pytest.fixture(scope="module")
def reproduced(script, tmp_path_factory):
    """The script itself on small experiments: one stopped in the middle and resumed, all finished, one left out."""
    folder = tmp_path_factory.mktemp("reproduced")
    small = {
        "fc_bvae_paper": {**SMALL, "model": "fc_bvae", "recipe": "paper", "epochs": 8},
        "fc_cvae_paper": {**SMALL, "model": "fc_cvae", "recipe": "paper", "epochs": 4},
        "fc_bvae_best": {**SMALL, "model": "fc_bvae", "recipe": "best", "epochs": 3, "precision": "float32"},
    }
    arguments = Namespace(
        names=list(small)[:2],
        epochs=None,
        runs_dir=folder / "runs",
        to=folder / "docs",
        data_dir=None,
        report_only=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "EXPERIMENTS", small)
        patch.setattr(script, "OVERVIEW", "fc_bvae_paper")
        patch.syspath_prepend(ROOT / "scripts")
        write = files.write_csv

        def stop_once(path, rows):
            write(path, rows)
            if path.name == "timing.csv" and len(rows) == 5:
                patch.setattr(files, "write_csv", write)
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(files, "write_csv", stop_once)
        with pytest.raises(training.Interrupted):
            run(script, arguments)
        assert not (folder / "docs" / "results.md").exists()
        run(script, Namespace(**{**vars(arguments), "epochs": 3}))
        yield script, arguments


@pytest.mark.all
def test_what_a_run_leaves(reproduced, pages):
    script, arguments = reproduced
    results = script.stored_results(arguments.to)
    assert list(results) == ["fc_bvae_paper", "fc_cvae_paper"]
    # The stopped run went on with its own number of epochs; the other one took --epochs.
    assert [result["metrics"]["epochs"] for result in results.values()] == [8, 3]
    for name, result in results.items():
        run_dir = arguments.runs_dir / name
        assert result["metrics"] == json.loads((run_dir / "metrics.json").read_text())
        assert result["evaluation"] == json.loads((run_dir / "evaluation.json").read_text())
        assert not {"run_dir", "data_dir"} & set(result["config"])
        with open(run_dir / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert result["history"]["epoch"] == list(range(1, len(rows) + 1))
        assert result["history"]["loss"] == pytest.approx([float(row["loss"]) for row in rows], rel=1e-5)
        for picture in pages.PICTURES:
            copy = arguments.to / "figures" / f"{name}_{picture}.png"
            assert copy.read_bytes() == (run_dir / "figures" / f"{picture}.png").read_bytes()
    # An image of each of the ten classes side by side: wider than high.
    height, width, _ = imread(arguments.to / "figures" / "overview.png").shape
    assert width > 1000 and width > 2 * height


@pytest.mark.all
def test_the_gradient_variance_is_measured_while_training(reproduced):
    """After each epoch, on 256 test images; the last value is that of the finished model."""
    script, arguments = reproduced
    from tf_isvae import datasets, zoo

    for name, result in script.stored_results(arguments.to).items():
        measured = result["history"]["gradient_variance"]
        assert len(measured) == result["metrics"]["epochs"] and min(measured) > 0
        model = zoo.load(arguments.runs_dir / name)
        images = next(iter(datasets.load("digits", "test", batch_size=1000, image_size=(8, 8)))).numpy()
        shape, images = images.shape, images[:256]
        assert measured[-1] == pytest.approx(evaluation.gradient_variance(model, images, 20), rel=1e-4)
        # More draws, other noise: the same variance.
        assert measured[-1] == pytest.approx(evaluation.gradient_variance(model, images, 60, seed=5), rel=0.5)
        assert evaluation.images_for(model, "digits", "test", None, None)[0].shape == shape


@pytest.mark.all
def test_the_report(reproduced, pages):
    script, arguments = reproduced
    text = (arguments.to / "results.md").read_text()
    results = script.stored_results(arguments.to)
    assert text == pages.render(results, script.EXPERIMENTS)
    assert all((arguments.to / link).is_file() for link in links(text))
    for name, result in results.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |") and "images |" in line]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[5] == f"{result['metrics']['val_loss']:.2f}"
        # -ELBO and its parts are of one evaluation: they add up.
        assert float(cells[5]) == pytest.approx(float(cells[7]) - float(cells[6]), abs=0.02)
        assert cells[2] == ("8" if name == "fc_bvae_paper" else "**3 of 4**")
    assert "`python scripts/reproduce_paper.py fc_cvae_paper --epochs 3`" in text
    assert "Not run yet: fc_bvae_best." in text


@pytest.mark.all
def test_a_finished_run_is_used_as_it_is(reproduced, monkeypatch):
    script, arguments = reproduced
    before = {path: path.read_bytes() for path in arguments.to.rglob("*") if path.is_file()}
    monkeypatch.setattr(training, "train", None)  # nothing is trained
    run(script, arguments)
    given = ["--report-only", "--runs-dir", str(arguments.runs_dir), "--to", str(arguments.to)]
    run(script, script.make_parser().parse_args(given))  # no name: all
    assert {path: path.read_bytes() for path in arguments.to.rglob("*") if path.is_file()} == before


@pytest.mark.all
def test_other_runs_are_refused(reproduced, tmp_path):
    script, arguments = reproduced
    (tmp_path / "fc_cvae_paper").symlink_to(arguments.runs_dir / "fc_bvae_paper")
    with pytest.raises(ValueError, match="holds another run than fc_cvae_paper: model is 'fc_bvae', not 'fc_cvae'"):
        run(script, Namespace(**{**vars(arguments), "runs_dir": tmp_path, "names": ["fc_cvae_paper"]}))
    with pytest.raises(ValueError, match="experiment is fc_bave; it must be one of fc_bvae_paper"):
        run(script, Namespace(**{**vars(arguments), "names": ["fc_bave"]}))


@pytest.mark.parametrize("n, units", [(1, 1), (3, 7), (10, 50)])
def test_the_picture_of_a_code_shows_every_bit(script, n, units):
    """All cells have one size, so that dark and pale areas are as the numbers of ones and zeros."""
    bits = np.random.default_rng(0).integers(0, 2, (n, units))
    pictures = script.cells(bits)
    assert pictures.shape[0] == n and 500 < n * pictures.shape[2] <= 1000
    for picture, code in zip(pictures, bits, strict=True):
        ones, zeros = (np.all(picture == colour, axis=-1).sum() for colour in (script.DARK, script.PALE))
        assert ones + zeros > 0 and ones * (code == 0).sum() == zeros * (code == 1).sum()


# --- Verdicts follow the figures.


def result(model="fc_bvae", dataset="mnist", history=None, metrics=None, **figures):
    config = {"model": model, "dataset": dataset, "recipe": "paper", "seed": 0}
    return {
        "config": config,
        "recipe_epochs": 300,
        "metrics": {"epochs": 300, "val_kl": 4.0, "val_log_likelihood": -100.0, **(metrics or {})},
        "history": history or {},
        "evaluation": {"classes": 10, "test_images": 10_000, **figures},
    }


@pytest.mark.parametrize(
    "claim, good, bad",
    [
        ("steady_loss", {"loss": [300.0, 200.0, 100.0]}, {"loss": [300.0, 100.0, 103.0]}),
        (
            "variance_over_training",
            {"gradient_variance": [3.0, None, 1.0]},
            {"gradient_variance": [1.0, None, 3.0]},
        ),
    ],
)
def test_verdicts_on_histories(pages, claim, good, bad):
    texts = []
    for history in (good, bad):
        results = {"fc_bvae_paper": result(history={"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.0], **history})}
        texts.append(pages.claim(1, getattr(pages, claim), results).splitlines()[0])
    assert texts[0].endswith(" Holds.") and texts[1].endswith(" Does not hold.")


@pytest.mark.parametrize(
    "claim, good, bad",
    [
        (
            "codes_are_clusters",
            {"cluster_classes_found": 10, "cluster_clusters": 90, "cluster_accuracy": 0.9, "cluster_nmi": 0.5},
            {"cluster_classes_found": 9},
        ),
        (
            "variance_of_sure_bits",
            {"eta_variance_sure": 1.0, "eta_variance_unsure": 9.0, "sure_bits": 0.5, "unsure_bits": 0.1},
            {"eta_variance_sure": 10.0},
        ),
        (
            "samples",
            {"sure_bits": 0.5, "samples_like_one_class": 0.3, "test_like_one_class": 0.8},
            {"samples_like_one_class": 0.01},
        ),
    ],
)
def test_verdicts_on_evaluations(pages, claim, good, bad):
    one, other = result(**good), result(**{**good, **bad})
    for results, verdict in (
        ({"a_paper": one, "b_paper": one}, "Holds."),
        ({"a_paper": one, "b_paper": other}, "Holds, but not for b_paper."),
        ({"a_paper": other}, "Does not hold."),
        ({}, "Not run yet."),
    ):
        assert pages.claim(1, getattr(pages, claim), results).splitlines()[0].endswith(f"** {verdict}")


def test_what_the_cnn_cvae_takes_is_held_to_the_same_rule(pages):
    """Ten samples in place of one count as evidence of claim 8, for it or against it."""
    figures = {"codes_used": 1, "active_units": 0, "perplexity": 1.0}
    mean_image = result("cnn_cvae", metrics={"val_loss": 206.0}, **figures)
    clusters = result("cnn_cvae", metrics={"val_loss": 170.0}, **{**figures, "codes_used": 12, "active_units": 9})
    for samples, failing in ((clusters, "cnn_cvae_paper"), (mean_image, "cnn_cvae_paper, cnn_cvae_10_samples")):
        results = {"cnn_cvae_paper": mean_image, "cnn_bvae_paper": clusters, "cnn_cvae_10_samples": samples}
        text = pages.claim(8, pages.cnns_alike, results)
        assert text.splitlines()[0].endswith(f"** Holds, but not for {failing}.")
        assert text.count("10 samples in place of 1") == 1


def test_the_claim_on_samples_is_of_bits(pages):
    vae = result("fc_vae", samples_like_one_class=0.3, test_like_one_class=0.8)
    assert list(pages.samples({"fc_vae": vae})) == []
