"""Runs the paper's experiments, each with its estimator and with ours, and writes docs/results.md.

    python scripts/reproduce_paper.py                                 all, one after the other: many hours on a CPU
    python scripts/reproduce_paper.py fc_bvae_paper fc_bvae_best      these two
    python scripts/reproduce_paper.py cnn_bvae_paper --epochs 30      fewer epochs; the table says so
    python scripts/reproduce_paper.py --report-only                   no training: the report of what is finished

A run lives in <runs-dir>/<experiment>. A finished one is used as it is, whatever its number of epochs; one that was
stopped goes on where it was. After each run its figures go to <to>/results/<experiment>.json, its pictures to
<to>/figures/, and <to>/results.md is written anew from those JSON files alone.
"""

import argparse
import csv
import json
import math
import re
import shutil
from pathlib import Path

import command_line

# The settings of training.Config. The table of the paper's figures is GROUPS.
EXPERIMENTS = {
    "fc_bvae_paper": {"model": "fc_bvae", "dataset": "mnist", "recipe": "paper"},
    "fc_bvae_best": {"model": "fc_bvae", "dataset": "mnist", "recipe": "best"},
    "fc_cvae_paper": {"model": "fc_cvae", "dataset": "mnist", "recipe": "paper"},
    "fc_cvae_best": {"model": "fc_cvae", "dataset": "mnist", "recipe": "best"},
    "fc_vae": {"model": "fc_vae", "dataset": "mnist", "recipe": "paper"},
    "cnn_bvae_paper": {"model": "cnn_bvae", "dataset": "mnist", "recipe": "paper"},
    "cnn_bvae_best": {"model": "cnn_bvae", "dataset": "mnist", "recipe": "best", "precision": "mixed_bfloat16"},
    "cnn_cvae_paper": {"model": "cnn_cvae", "dataset": "mnist", "recipe": "paper"},
    "cnn_cvae_best": {"model": "cnn_cvae", "dataset": "mnist", "recipe": "best", "precision": "mixed_bfloat16"},
    "fc_bvae_fashion_paper": {"model": "fc_bvae", "dataset": "fashion_mnist", "recipe": "paper", "epochs": 1000},
    "fc_bvae_fashion_best": {"model": "fc_bvae", "dataset": "fashion_mnist", "recipe": "best"},
    "cnn_bvae_fashion_best": {
        "model": "cnn_bvae",
        "dataset": "fashion_mnist",
        "recipe": "best",
        "precision": "mixed_bfloat16",
    },
}
# Name of the picture of the curves -> (heading, the experiments on its axes).
GROUPS = {
    "fc": (
        "FC BVAE and FC CVAE on MNIST (figures 6, 7 and 8)",
        ("fc_bvae_paper", "fc_bvae_best", "fc_cvae_paper", "fc_cvae_best", "fc_vae"),
    ),
    "cnn": (
        "CNN BVAE and CNN CVAE on MNIST (figures 9, 10 and 11)",
        ("cnn_bvae_paper", "cnn_bvae_best", "cnn_cvae_paper", "cnn_cvae_best"),
    ),
    "fashion": (
        "Fashion-MNIST (figures 12 and 13)",
        ("fc_bvae_fashion_paper", "fc_bvae_fashion_best", "cnn_bvae_fashion_best"),
    ),
}
# The experiment whose model the picture at the top of the README shows.
OVERVIEW = "fc_bvae_best"
PICTURES = ("reconstructions", "prior_samples")
# Columns of history.csv that the report draws or quotes.
COLUMNS = ("loss", "log_likelihood", "gradient_variance")
LN_100 = math.log(100)
# Colours of bits.
DARK, PALE = (0, 64 / 255, 120 / 255), (205 / 255, 222 / 255, 235 / 255)


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    names = ", ".join(EXPERIMENTS)
    parser.add_argument("names", nargs="*", default=[], metavar="experiment", help=f"default all of {names}")
    parser.add_argument("--epochs", type=int, default=None, help="instead of the recipe's")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/paper"))
    parser.add_argument("--to", type=Path, default=Path("docs"), help="the folder of results.md")
    parser.add_argument("--data-dir", default=None, help="where TFDS keeps its data sets")
    parser.add_argument("--report-only", action="store_true", default=False, help="train nothing")
    return parser


# --- Running.


def train(name: str, arguments: argparse.Namespace) -> None:
    """The named run: begins it, goes on with it, or leaves it where it is finished."""
    from tf_isvae import training

    run_dir, settings = arguments.runs_dir / name, EXPERIMENTS[name]
    if (run_dir / "metrics.json").exists():
        return
    resume = (run_dir / "config.json").exists()
    if resume:
        config = training.stored_config(str(run_dir))
        check_settings(name, vars(config), run_dir)
    else:
        epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
        settings = {**settings, **epochs, "run_dir": str(run_dir), "data_dir": arguments.data_dir}
        config = training.Config(**settings, gradient_variance=True)
    print(f"\n{name}: {config.epochs} epochs in {run_dir}{', going on' if resume else ''}", flush=True)
    training.train(config, resume)


def check_settings(name: str, config: dict, run_dir: Path) -> None:
    """Raises ValueError where the run in `run_dir` is not of this experiment; its number of epochs is free."""
    wrong = [
        f"{key} is {config.get(key)!r}, not {value!r}"
        for key, value in EXPERIMENTS[name].items()
        if key != "epochs" and config.get(key) != value
    ]
    if wrong:
        raise ValueError(f"{run_dir} holds another run than {name}: {'; '.join(wrong)}. Choose another --runs-dir.")


# --- From run directories to <to>/results/ and <to>/figures/.


def collect(name: str, arguments: argparse.Namespace) -> None:
    """Copies what the report needs of a finished run; evaluates it first where that was not done yet."""
    from tf_isvae import evaluation, export, files, training

    run_dir = arguments.runs_dir / name
    source = export.load(run_dir)
    check_settings(name, vars(training.stored_config(str(run_dir))), run_dir)
    stored = run_dir / "evaluation.json"
    if not stored.exists():
        print(f"evaluating {name}", flush=True)
        data_dir = arguments.data_dir or source.config["data_dir"]
        figures = evaluation.evaluate(source.model, source.config["dataset"], data_dir, source.config["binarize"])
        files.write_json(stored, figures)
    with open(run_dir / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    history = {column: [rounded(row[column]) for row in rows] for column in COLUMNS if column in rows[0]}
    result = {
        "config": {key: value for key, value in source.config.items() if key not in ("run_dir", "data_dir")},
        "recipe_epochs": training.Config(**EXPERIMENTS[name]).epochs,
        "metrics": json.loads((run_dir / "metrics.json").read_text()),
        "evaluation": json.loads(stored.read_text()),
        "history": {"epoch": [int(row["epoch"]) for row in rows], **history},
    }
    text = json.dumps(result, indent=2, allow_nan=False)
    for folder in ("results", "figures"):
        (arguments.to / folder).mkdir(parents=True, exist_ok=True)
    with files.atomic_write(arguments.to / "results" / f"{name}.json") as path:
        # A list of numbers on one line.
        path.write_text(re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text) + "\n")
    for picture in PICTURES:
        with files.atomic_write(arguments.to / "figures" / f"{name}_{picture}.png") as path:
            shutil.copyfile(run_dir / "figures" / f"{picture}.png", path)
    if name == OVERVIEW:
        draw_overview(source, arguments)


def draw_overview(source, arguments: argparse.Namespace) -> None:
    """One test image of each class, its bits and its reconstruction from them; and samples of the prior."""
    import numpy as np

    from tf_isvae import evaluation, plotting

    data_dir = arguments.data_dir or source.config["data_dir"]
    images, labels = evaluation.images_for(
        source.model, source.config["dataset"], "test", data_dir, source.config["binarize"], count=1000
    )
    images = images[[np.flatnonzero(labels == label)[0] for label in np.unique(labels)]]
    bits = source.model.encode(images)
    samples = source.model.generate(len(images), seed=0)
    rows = {
        "input": images,
        f"{bits.shape[1]} bits": cells(bits),
        "reconstruction": source.model.decode(bits),
        "prior sample": samples,
    }
    plotting.image_rows(rows, arguments.to / "figures" / "overview.png")


def cells(bits):
    """Each code (n, units) as a picture, float (n, height, width, 3): cells in rows, dark for 1 and pale for 0."""
    import numpy as np

    n, units = bits.shape
    across = math.ceil(math.sqrt(2 * units))  # so that the picture is about twice as wide as high
    colours = np.ones((n, -(-units // across) * across, 3))
    colours[:, :units] = np.where(bits[..., None] == 1, DARK, PALE)
    size = max(2, 1000 // (n * across) - 1)  # pixels; all n beside each other are about 1,000 wide
    picture = colours.reshape(n, -1, across, 3).repeat(size, axis=1).repeat(size, axis=2)
    picture[:, ::size] = picture[:, :, ::size] = 1  # thin lines between the cells
    return picture


def rounded(text: str) -> float | None:
    value = float(text)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def stored_results(folder: Path) -> dict[str, dict]:
    """What <to>/results/ holds, in the order of EXPERIMENTS."""
    paths = {name: folder / "results" / f"{name}.json" for name in EXPERIMENTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def draw(results: dict[str, dict], folder: Path) -> None:
    from tf_isvae import plotting

    for group, (heading, names) in GROUPS.items():
        histories = {name: results[name]["history"] for name in names if name in results}
        if histories:
            plotting.compare_curves(histories, folder / "figures" / f"curves_{group}.png", heading)


# --- From <to>/results/ to results.md: nothing else goes in.


def render(results: dict[str, dict]) -> str:
    """The text of results.md."""
    parts = [
        "# The paper's experiments, run again\n",
        "Written by `scripts/reproduce_paper.py` from `results/*.json`, which hold the settings, metrics and history "
        "of the runs; not edited by hand. A name ending in `_paper` is the paper's recipe (importance sampling with "
        "one sample, Adam 1e-3, batch 2048), `_best` is ours (`tf_isvae.training.RECIPES`), `fc_vae` the conventional "
        "VAE with 50 Gaussians. Nats per image. Seconds are the wall time of the "
        "training, with the measurements of the gradient variance: where a run shared its cores with others, or was "
        "paused, more than it needs.\n",
        "## Figures\n",
        table(
            "experiment | epochs | seconds | train -ELBO | test -ELBO | E_q[ln p(x\\|z)] | KL | ln p(x) | "
            "gradient variance | active units | codes used",
            [_row(name, result) for name, result in results.items()],
        ),
        "The columns from test -ELBO on are of the test images, with one draw of the estimator's codes for -ELBO and "
        "its two parts; train -ELBO is the mean over the last epoch. ln p(x) "
        "is exact for categorical codes, and otherwise the importance-weighted bound of 100 samples, which lies below "
        "it. The gradient variance (nats squared per encoder parameter) is that of the model's own estimator on the "
        "first 1,000 test images. Active units: entries of the posterior mean with a variance over the images above "
        "0.01. Codes used: different codes among the test images.\n",
        table(
            "experiment | model, data, seed | estimator | batch | precision | command",
            [_settings(name, result) for name, result in results.items()],
        ),
    ]
    unmeasured = [name for name, result in results.items() if "gradient_variance" not in result["history"]]
    if unmeasured:
        parts.append(
            f"Made before the gradient variance was measured while training, and without it: {', '.join(unmeasured)}. "
            "Their commands now measure it as well, which takes longer.\n"
        )
    clusters = {name: r["evaluation"] for name, r in results.items() if "cluster_nmi" in r["evaluation"]}
    if clusters:
        parts += [
            "### Categories as clusters\n",
            table(
                "experiment | categories used | perplexity | classes with a template | purity | NMI",
                [
                    (
                        name,
                        e["cluster_clusters"],
                        f"{e['perplexity']:.1f}",
                        f"{e['cluster_classes_found']} of {e['classes']}",
                        f"{e['cluster_accuracy']:.3f}",
                        f"{e['cluster_nmi']:.3f}",
                    )
                    for name, e in clusters.items()
                ],
            ),
            "A class has a template where its label is the commonest among the test images of some category; purity is "
            "the share of images whose label is the commonest of their category.\n",
        ]
    bits = {name: r["evaluation"] for name, r in results.items() if "sure_bits" in r["evaluation"]}
    if bits:
        parts += [
            "### Bits\n",
            table(
                "experiment | share of sure bits | of unsure bits | mAP@100 of Hamming retrieval | "
                "prior samples like one class | test images like one class",
                [(name, *(_figure(e, key) for key in _BIT_FIGURES)) for name, e in bits.items()],
            ),
            "Sure: q below 0.01 or above 0.99; unsure: q from 0.25 to 0.75. Retrieval: 1,000 test images among 10,000 "
            "training images. Like one class: at least 9 of the 10 nearest training images, in pixels, have the same "
            "label.\n",
        ]
    note = (
        "Verdicts follow from the figures by the rules in brackets. Runs of fewer epochs than their recipe's, bold in "
        "the first table, count as they are.\n"
    )
    parts += ["## The paper's claims\n", note, *(part for claim in CLAIMS for part in claim(results))]
    parts += ["## Ours beside the paper's\n", _gains(results), "## Pictures\n"]
    for group, (heading, names) in GROUPS.items():
        present = [name for name in names if name in results]
        if not present:
            continue
        parts += [
            f"### {heading}\n",
            f"![Training curves of {', '.join(present)}](figures/curves_{group}.png)\n",
            "Training images; the gradient variance is that of each run's own estimator. One that is exact has the "
            "variance 0, which the logarithmic axis does not show.\n",
            table(
                "experiment | test images, each above its reconstruction | samples of the prior",
                [
                    (name, *(f"![{name}: {picture}](figures/{name}_{picture}.png)" for picture in PICTURES))
                    for name in present
                ],
            ),
        ]
    missing = [name for name in EXPERIMENTS if name not in results]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


_BIT_FIGURES = ("sure_bits", "unsure_bits", "retrieval_map_100", "samples_like_one_class", "test_like_one_class")


def table(header: str, rows: list[tuple]) -> str:
    columns = len(re.split(r"(?<!\\)\|", header))
    lines = [f"| {header} |", "|" + "---|" * columns, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def _figure(figures: dict, name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else ""


def _epochs(result: dict) -> str:
    done, full = result["metrics"]["epochs"], result["recipe_epochs"]
    return str(done) if done == full else f"**{done} of {full}**"


def _row(name: str, result: dict) -> tuple:
    metrics, e = result["metrics"], result["evaluation"]
    return (
        name,
        _epochs(result),
        f"{metrics['seconds']:,.0f}",
        f"{metrics['loss']:.2f}",
        f"{metrics['val_loss']:.2f}",
        f"{metrics['val_log_likelihood']:.2f}",
        f"{metrics['val_kl']:.2f}",
        f"{e['test_ln_p']:.2f} ({e['test_ln_p_kind']})",
        f"{e['gradient_variance']:.2e}",
        e["active_units"],
        f"{e['codes_used']:,} of {e['test_images']:,} images",
    )


def _settings(name: str, result: dict) -> tuple:
    config, epochs = result["config"], result["metrics"]["epochs"]
    fewer = "" if epochs == result["recipe_epochs"] else f" --epochs {epochs}"
    return (
        name,
        f"{config['model']}, {config['dataset']}, {config['seed']}",
        config["estimator"],
        config["batch_size"],
        config["precision"],
        f"`python scripts/reproduce_paper.py {name}{fewer}`",
    )


def _gains(results: dict) -> str:
    rows = []
    for paper in (name for name in results if name.endswith("_paper")):
        best = paper.removesuffix("paper") + "best"
        if best in results:
            pair = [results[name] for name in (paper, best)]
            elbos = [result["metrics"]["val_loss"] for result in pair]
            rows.append(
                (
                    paper.removesuffix("_paper"),
                    *(f"{elbo:.2f} ({_epochs(r)} epochs)" for elbo, r in zip(elbos, pair, strict=True)),
                    f"{elbos[0] - elbos[1]:.2f}",
                    " / ".join(f"{result['metrics']['seconds']:,.0f}" for result in pair),
                )
            )
    header = "model | test -ELBO, paper's recipe | ours | better by | seconds, paper's / ours"
    return table(header, rows) if rows else "No pair of runs is finished yet.\n"


# --- The paper's claims. Each function gives the paragraphs of one: the words are here, figures and verdicts come from
# the results.


def _claim(number: str, words: str, verdict: str, evidence: list[str]) -> list[str]:
    if not evidence:
        return [f"**{number}. {words}** Not run yet.\n"]
    return [f"**{number}. {words}** {verdict}\n", "\n".join(f"- {line}" for line in evidence) + "\n"]


def _verdict(outcomes: dict[str, bool]) -> str:
    """Of an outcome for each experiment."""
    failing = [name for name, holds in outcomes.items() if not holds]
    if not failing:
        return "Holds."
    if len(failing) == len(outcomes):
        return "Does not hold."
    return f"Holds, but not for {', '.join(failing)}."


def _of_paper(results: dict, *endings: str) -> dict[str, dict]:
    """The runs with the paper's recipe, of the models whose name ends so."""
    ends = endings or ("",)
    return {n: r for n, r in results.items() if n.endswith("_paper") and r["config"]["model"].endswith(ends)}


def steady_loss(results):
    evidence, outcomes = [], {}
    for name, result in _of_paper(results).items():
        loss = result["history"]["loss"]
        lowest, rise, at = loss[0], 0.0, 1
        for epoch, value in zip(result["history"]["epoch"], loss, strict=True):
            lowest = min(lowest, value)
            rise, at = max((rise, at), (value - lowest, epoch))
        fall = loss[0] - lowest
        outcomes[name] = rise <= 0.01 * fall
        evidence.append(
            f"{name}: from {loss[0]:.1f} after the first epoch to {loss[-1]:.1f} after {_epochs(result)}; at no epoch "
            f"more than {rise:.2f} above the lowest before it (epoch {at}; holds: up to 1% of the whole fall, "
            f"{0.01 * fall:.2f})."
        )
    return _claim("1", "The loss falls steadily, without oscillation.", _verdict(outcomes), evidence)


def variance_over_training(results):
    evidence, outcomes = [], {}
    for name, result in _of_paper(results).items():
        history = result["history"]
        pairs = zip(history["epoch"], history.get("gradient_variance", ()), strict=False)
        measured = [(epoch, value) for epoch, value in pairs if value is not None]
        if len(measured) < 2:
            continue
        (first, begin), (last, end) = measured[0], measured[-1]
        peak_epoch, peak = max(measured, key=lambda pair: pair[1])
        outcomes[name] = end < begin
        evidence.append(
            f"{name}: {begin:.2e} after epoch {first}, at most {peak:.2e} (epoch {peak_epoch}), {end:.2e} at the end "
            f"(epoch {last}): {end / peak:.2f} of the largest."
        )
    words = "The variance of the gradient falls during training. (Holds: the end is below the beginning.)"
    return _claim("2", words, _verdict(outcomes), evidence)


def variance_of_sure_bits(results):
    evidence, outcomes = [], {}
    for name, result in results.items():
        e = result["evaluation"]
        if "eta_variance_sure" in e and "eta_variance_unsure" in e:
            sure, unsure = e["eta_variance_sure"], e["eta_variance_unsure"]
            outcomes[name] = sure < unsure
            evidence.append(
                f"{name}: variance by eta of a bit {sure:.3g} nats squared where q is within 0.01 of 0 or 1 "
                f"({e['sure_bits']:.0%} of the bits), {unsure:.3g} where q is from 0.25 to 0.75 "
                f"({e['unsure_bits']:.0%}): {sure / unsure:.1e} of it."
            )
    words = (
        "The variance of the paper's gradient falls as q nears 0 or 1. (It is q(1 - q) ((1 - q) a + q b)^2 in theory.)"
    )
    return _claim("3", words, _verdict(outcomes), evidence)


def cvae_is_worse(results):
    evidence, outcomes = [], {}
    for bvae, cvae in (("fc_bvae_paper", "fc_cvae_paper"), ("fc_bvae_best", "fc_cvae_best")):
        if bvae in results and cvae in results:
            elbos = [results[name]["metrics"]["val_loss"] for name in (bvae, cvae)]
            likelihoods = [results[name]["metrics"]["val_log_likelihood"] for name in (bvae, cvae)]
            outcomes[cvae] = elbos[0] < elbos[1] and likelihoods[0] > likelihoods[1]
            evidence.append(
                f"{cvae} against {bvae}: test -ELBO {elbos[1]:.1f} against {elbos[0]:.1f}, E_q[ln p(x|z)] "
                f"{likelihoods[1]:.1f} against {likelihoods[0]:.1f}."
            )
    if evidence:
        for name, result in results.items():
            if result["config"]["model"] == "fc_cvae":
                kl = result["metrics"]["val_kl"]
                evidence.append(f"{name}: its codes carry {kl:.2f} nats, {kl / LN_100:.0%} of ln 100 = {LN_100:.2f}.")
    if "fc_cvae_paper" in results and "fc_cvae_best" in results:
        paper, best = (results[n]["metrics"]["val_loss"] for n in ("fc_cvae_paper", "fc_cvae_best"))
        evidence.append(
            f"The limit of ln 100 is not the whole reason: the same network with the same 100 codes reaches {best:.1f} "
            f"with our recipe, so {paper - best:.1f} nats of the paper's figure were left by its training."
        )
    return _claim("4", "FC CVAE is worse than FC BVAE, because H <= ln 100.", _verdict(outcomes), evidence)


def codes_are_clusters(results):
    evidence, outcomes = [], {}
    for name, result in results.items():
        e = result["evaluation"]
        if "cluster_nmi" in e:
            outcomes[name] = e["cluster_classes_found"] == e["classes"]
            evidence.append(
                f"{name}: {e['cluster_classes_found']} of {e['classes']} classes have a template, in "
                f"{e['cluster_clusters']} categories; purity {e['cluster_accuracy']:.3f}, NMI {e['cluster_nmi']:.3f}."
            )
    words = "The CVAE's codes are clusters, with at least one template for each class of digits."
    return _claim("5", words, _verdict(outcomes), evidence)


def reconstructions(results):
    evidence, outcomes = [], {}
    for bvae, cvae in (("fc_bvae_paper", "fc_cvae_paper"), ("cnn_bvae_paper", "cnn_cvae_paper")):
        if bvae in results and cvae in results:
            kept = [results[name]["evaluation"]["detail_kept"] for name in (bvae, cvae)]
            flipped = 1 - results[cvae]["evaluation"]["cluster_accuracy"]
            outcomes[cvae] = kept[0] > kept[1]
            evidence.append(
                f"Reconstructions keep {kept[0]:.0%} of the squared differences of neighbouring pixels in {bvae} "
                f"and {kept[1]:.0%} in {cvae}; {flipped:.0%} of the images of {cvae} are in a category "
                "whose commonest class is another."
            )
    words = "BVAE reconstructions are close to the input, the CVAE's are blurred and sometimes of another class."
    return _claim("6", words, _verdict(outcomes), evidence)


def samples(results):
    evidence, outcomes = [], {}
    for name, result in results.items():
        e = result["evaluation"]
        if result["config"]["dataset"] == "mnist" and "sure_bits" in e and "samples_like_one_class" in e:
            outcomes[name] = 0.05 <= e["samples_like_one_class"] < e["test_like_one_class"]
            evidence.append(
                f"{name}: 9 of the 10 nearest training images are of one class for "
                f"{e['samples_like_one_class']:.0%} of the samples, and for {e['test_like_one_class']:.0%} "
                "of test images. The others lie between classes."
            )
    words = (
        "Samples of the BVAE look like digits or mixtures of them. (By this measure: some, at least 5%, are like one "
        "class, but fewer than of the test images. The pictures below decide.)"
    )
    return _claim("7", words, _verdict(outcomes), evidence)


def cnns_alike(results):
    evidence, outcomes = [], {}
    for name, result in _of_paper(results).items():
        if not name.startswith("cnn"):
            continue
        e, loss = result["evaluation"], result["metrics"]["val_loss"]
        outcomes[name] = e["codes_used"] >= 10 and e["active_units"] > 0
        evidence.append(
            f"{name}: test -ELBO {loss:.1f} after {_epochs(result)} epochs, {e['codes_used']:,} codes "
            f"for {e['test_images']:,} test images, {e['active_units']} active units."
        )
    words = "The CNNs give similar results. (By this measure: at least 10 codes are in use.)"
    return _claim("8", words, _verdict(outcomes), evidence)


def fashion(results):
    evidence, outcomes = [], {}
    for name, result in _of_paper(results).items():
        if result["config"]["dataset"] == "fashion_mnist":
            e, bits = result["evaluation"], result["metrics"]["val_kl"] / math.log(2)
            outcomes[name] = e["detail_kept"] < 0.5
            evidence.append(
                f"{name}: reconstructions keep {e['detail_kept']:.0%} of the squared differences of "
                f"neighbouring pixels (holds: less than half); the codes carry {bits:.1f} of 50 bits."
            )
    words = "On Fashion-MNIST shapes are reconstructed, details like texture are lost."
    return _claim("9", words, _verdict(outcomes), evidence)


CLAIMS = (
    steady_loss,
    variance_over_training,
    variance_of_sure_bits,
    cvae_is_worse,
    codes_are_clusters,
    reconstructions,
    samples,
    cnns_alike,
    fashion,
)


def report(arguments: argparse.Namespace) -> None:
    """Writes <to>/results.md and the curves, from what <to>/results/ holds."""
    from tf_isvae import files

    results = stored_results(arguments.to)
    (arguments.to / "figures").mkdir(parents=True, exist_ok=True)
    draw(results, arguments.to)
    with files.atomic_write(arguments.to / "results.md") as path:
        path.write_text(render(results))


def main(arguments: argparse.Namespace) -> None:
    unknown = [name for name in arguments.names if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"no experiment is called {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}.")
    for name in arguments.names or EXPERIMENTS:
        if not arguments.report_only:
            train(name, arguments)
        if (arguments.runs_dir / name / "metrics.json").exists():
            collect(name, arguments)
            report(arguments)
    report(arguments)
    print(f"\nwritten: {arguments.to / 'results.md'}, results/ and figures/ beside it")


if __name__ == "__main__":
    command_line.run(make_parser(), main)
