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
import json
import math
import re
import shutil
from pathlib import Path

import paper_report
import tf_isvae_command  # noqa: F401  (the package then waits)
from tf_isvae.commands import command_line

# The settings of training.Config.
EXPERIMENTS = {
    "fc_bvae_paper": {"model": "fc_bvae", "dataset": "mnist", "recipe": "paper"},
    "fc_bvae_best": {"model": "fc_bvae", "dataset": "mnist", "recipe": "best"},
    "fc_cvae_paper": {"model": "fc_cvae", "dataset": "mnist", "recipe": "paper"},
    "fc_cvae_best": {"model": "fc_cvae", "dataset": "mnist", "recipe": "best"},
    "fc_vae": {"model": "fc_vae", "dataset": "mnist", "recipe": "paper"},
    "cnn_bvae_paper": {"model": "cnn_bvae", "dataset": "mnist", "recipe": "paper"},
    "cnn_bvae_best": {"model": "cnn_bvae", "dataset": "mnist", "recipe": "best", "precision": "mixed_bfloat16"},
    "cnn_cvae_paper": {"model": "cnn_cvae", "dataset": "mnist", "recipe": "paper"},
    # With one sample, seed 0 stays at the mean image (docs/estimators.md).
    "cnn_cvae_10_samples": {
        "model": "cnn_cvae",
        "dataset": "mnist",
        "recipe": "paper",
        "estimator": "ImportanceSampling:10",
        "epochs": 20,
    },
    "cnn_cvae_best": {"model": "cnn_cvae", "dataset": "mnist", "recipe": "best", "precision": "mixed_bfloat16"},
    "fc_bvae_fashion_paper": {"model": "fc_bvae", "dataset": "fashion_mnist", "recipe": "paper", "epochs": 1000},
    "fc_bvae_fashion_best": {"model": "fc_bvae", "dataset": "fashion_mnist", "recipe": "best"},
    "cnn_bvae_fashion_best": {
        "model": "cnn_bvae",
        "dataset": "fashion_mnist",
        "recipe": "best",
        "precision": "mixed_bfloat16",
    },
    "fc_hvae": {"model": "fc_hvae", "dataset": "mnist", "recipe": "best"},
}
# The experiment whose model the picture at the top of the README shows.
OVERVIEW = "fc_bvae_best"
# Columns of history.csv that the report draws or quotes.
COLUMNS = ("loss", "log_likelihood", "gradient_variance")
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


def prepare(arguments: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, tuple]]:
    """The settings of the runs that begin or go on, by name, beside the arguments; refuses runs of something else."""
    command_line.exact_float32()
    unknown = [name for name in arguments.names if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"experiment is {', '.join(unknown)}; it must be one of {', '.join(EXPERIMENTS)}.")
    arguments.names = arguments.names or list(EXPERIMENTS)
    return arguments, {name: settings(name, arguments) for name in arguments.names}


def settings(name: str, arguments: argparse.Namespace) -> tuple | None:
    """What training.train takes to begin a run, or to go on with it; None if it is finished, or only reported."""
    from tf_isvae import training

    run_dir = arguments.runs_dir / name
    resume = (run_dir / "config.json").exists()
    if resume:
        config = training.stored_config(run_dir)
        check_settings(name, vars(config), run_dir)
    else:
        epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
        given = {**EXPERIMENTS[name], **epochs, "run_dir": str(run_dir), "data_dir": arguments.data_dir}
        config = training.Config(**given, gradient_variance=True)
    return None if arguments.report_only or is_finished(run_dir) else (config, resume)


def is_finished(run_dir: Path) -> bool:
    return (run_dir / "metrics.json").exists()


def work(prepared: tuple[argparse.Namespace, dict[str, tuple]]) -> None:
    from tf_isvae import training

    arguments, runs = prepared
    for name, run in runs.items():
        run_dir = arguments.runs_dir / name
        if run:
            config, resume = run
            print(f"\n{name}: {config.epochs} epochs in {run_dir}{', going on' if resume else ''}", flush=True)
            training.train(config, resume)
        if is_finished(run_dir):
            collect(name, arguments)
            report(arguments.to)
    report(arguments.to)
    print(f"\nwritten: {arguments.to / 'results.md'}, results/ and figures/ beside it")


def check_settings(name: str, config: dict, run_dir: Path) -> None:
    """Raises ValueError if the run in `run_dir` is not of this experiment; its number of epochs is free."""
    wrong = [
        f"{key} is {config.get(key)!r}, not {value!r}"
        for key, value in EXPERIMENTS[name].items()
        if key != "epochs" and config.get(key) != value
    ]
    if wrong:
        raise ValueError(f"{run_dir} holds another run than {name}: {'; '.join(wrong)}. Choose another --runs-dir.")


# --- What a finished run leaves in <to>/results/ and <to>/figures/.


def collect(name: str, arguments: argparse.Namespace) -> None:
    """Copies what the report needs of a finished run; evaluates it first if that was not done yet."""
    from tf_isvae import evaluation, files, training

    run_dir = arguments.runs_dir / name
    trained = training.read_trained(run_dir)
    data = trained.config["dataset"], arguments.data_dir or trained.config["data_dir"], trained.config["binarize"]
    evaluated = run_dir / "evaluation.json"
    if not evaluated.exists():
        print(f"evaluating {name}", flush=True)
        files.write_json(evaluated, evaluation.evaluate(trained.model, **evaluation.data_for(trained.model, *data)))
    rows = files.read_csv(run_dir / "history.csv")
    history = {column: [_rounded(row[column]) for row in rows] for column in COLUMNS if column in rows[0]}
    result = {
        "config": {key: value for key, value in trained.config.items() if key not in ("run_dir", "data_dir")},
        "recipe_epochs": training.Config(**EXPERIMENTS[name]).epochs,
        "metrics": json.loads((run_dir / "metrics.json").read_text()),
        "evaluation": json.loads(evaluated.read_text()),
        "history": {"epoch": [int(row["epoch"]) for row in rows], **history},
    }
    text = json.dumps(result, indent=2, allow_nan=False)
    for folder in ("results", "figures"):
        (arguments.to / folder).mkdir(parents=True, exist_ok=True)
    with files.atomic_write(arguments.to / "results" / f"{name}.json") as path:
        # A list of numbers on one line.
        path.write_text(re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text) + "\n")
    for picture in paper_report.PICTURES:
        with files.atomic_write(arguments.to / "figures" / f"{name}_{picture}.png") as path:
            shutil.copyfile(run_dir / "figures" / f"{picture}.png", path)
    if name == OVERVIEW:
        draw_overview(trained.model, data, arguments.to / "figures" / "overview.png")


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def draw_overview(model, data: tuple, path: Path) -> None:
    """One test image of each class, its bits and its reconstruction from them; and samples of the prior."""
    import numpy as np

    from tf_isvae import evaluation, plotting

    dataset, data_dir, binarize = data
    images, labels = evaluation.images_for(model, dataset, "test", data_dir, binarize, count=1000)
    images = images[[np.flatnonzero(labels == label)[0] for label in np.unique(labels)]]
    bits = model.encode(images)
    rows = {
        "input": images,
        f"{bits.shape[1]} bits": cells(bits),
        "reconstruction": model.decode(bits),
        "prior sample": model.generate(len(images), seed=0),
    }
    plotting.image_rows(rows, path)


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


# --- From <to>/results/ to results.md and the curves: nothing else goes in.


def report(folder: Path) -> None:
    """Writes results.md and the curves."""
    from tf_isvae import files, plotting

    results = stored_results(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for group, (heading, names) in paper_report.GROUPS.items():
        histories = {name: results[name]["history"] for name in names if name in results}
        if histories:
            plotting.compare_curves(histories, folder / "figures" / f"curves_{group}.png", heading)
    with files.atomic_write(folder / "results.md") as path:
        path.write_text(paper_report.render(results, EXPERIMENTS))


def stored_results(folder: Path) -> dict[str, dict]:
    """What <to>/results/ holds, in the order of EXPERIMENTS."""
    paths = {name: folder / "results" / f"{name}.json" for name in EXPERIMENTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


if __name__ == "__main__":
    command_line.run(make_parser, prepare, work)
