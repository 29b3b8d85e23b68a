r"""How well a model tells outliers from images like those it was trained on, beside scikit-learn's detectors on pixels.

    python scripts/compare_outliers.py fc_bvae_fashion_mnist fashion_mnist --outliers mnist
    python scripts/compare_outliers.py fc_bvae mnist --one-class --latent-dim 16 --epochs 20 --batch-size 128 \
        --keep one_class.json

The area under the ROC curve: the probability that an outlier has a lower score than an inlier. With --outliers, of the
first test images of both data sets, and a trained model. With --one-class, a model is trained for each class on its
training images alone; the images of the other classes, among all test images, are the outliers; the mean over the
classes. IsolationForest and OneClassSVM see the same training images, OneClassSVM at most 2,000 of them. --keep writes
the figures of each class when it is finished; the same command goes on from there.
"""

import argparse
import json
from pathlib import Path

from tf_isvae.commands import command_line

FOR_SVM = 2000


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add(
        "model", help="a trained model, a .keras file or a run directory; with --one-class, a model of the zoo to train"
    )
    add("inliers", help="a data set as scripts/train.py takes it")
    add("--outliers", help="another data set, whose test images are the outliers")
    add("--one-class", action="store_true", default=False, help="the other classes are the outliers")
    add("--scores", nargs="+", default=["elbo", "log_likelihood"], help="elbo, log_likelihood, overlap, regret (slow)")
    add("--images", type=int, default=1000, help="test images of each data set; default 1000")
    add("--epochs", type=int, default=20, help="of each training with --one-class; default 20")
    for name in ("--latent-dim", "--batch-size"):
        add(name, metavar="N", help="of the models that --one-class trains, as scripts/train.py takes it")
    add("--keep", type=Path, help="with --one-class: a JSON file for the figures, from which the same command goes on")
    add("--data-dir", default=None, help="where TFDS keeps its data sets")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The scores, how a model is made of training images, tasks by name (training images, test images, which are
    outliers), the figures that are kept, and the file for them or None."""
    from tf_isvae import checks, evaluation, recipes, training, zoo

    command_line.exact_float32()

    outliers, keep = getattr(arguments, "outliers", None), getattr(arguments, "keep", None)
    if (outliers is None) != arguments.one_class:
        raise ValueError("the outliers are not clear; give either --outliers or --one-class.")
    for score in arguments.scores:
        checks.one_of("--scores", score, evaluation.SCORES)
    count = checks.integer("--images", arguments.images)
    given = {name: value for name, value in vars(arguments).items() if name in ("latent_dim", "batch_size")}
    settings = training.read(given)
    for name in (*settings, *(["keep"] if keep else [])):
        if not arguments.one_class:
            raise ValueError(f"{training.option(name)} is for --one-class; add that, or leave it out.")
    if arguments.one_class:
        settings["epochs"] = checks.integer("--epochs", arguments.epochs)
        # Which refuses wrong settings before anything is read.
        config = training.Config(model=arguments.model, **settings)
        like = zoo.build(recipes.check_name(arguments.model))
        how = {"inliers": arguments.inliers, "scores": arguments.scores, "model": arguments.model, **settings}
        kept = _read_kept(keep, how)
    else:
        like = zoo.load(arguments.model)

    def images(dataset, split):
        return evaluation.images_for(like, dataset, split, arguments.data_dir)

    train, test = images(arguments.inliers, "train"), images(arguments.inliers, "test")
    if not arguments.one_class:
        task = _against(train[0], test[0][:count], images(outliers, "test")[0][:count])
        return arguments.scores, lambda _: like, {outliers: task}, {}, None
    if test[1] is None or train[1] is None:
        raise ValueError(f"{arguments.inliers} has no labels; --one-class needs them.")
    import numpy as np

    tasks = {f"class {label}": (train[0][train[1] == label], test[0], test[1] != label) for label in np.unique(test[1])}
    return arguments.scores, lambda images: training.fit(config, images), tasks, kept, keep


def _against(train, inliers, outliers) -> tuple:
    import numpy as np

    return train, np.concatenate([inliers, outliers]), np.repeat([False, True], [len(inliers), len(outliers)])


def _read_kept(keep: Path | None, how: dict) -> dict:
    """What `work` writes: how the models are trained, and the figures of each class that is finished."""
    how = json.loads(json.dumps(how))
    if keep is None or not keep.exists():
        if keep and not keep.resolve().parent.is_dir():
            raise FileNotFoundError(f"--keep is {keep}; it must lie in a folder that exists: make it.")
        return {"how": how, "classes": {}}
    try:
        kept = json.loads(keep.read_text())
        same = kept["how"] == how and isinstance(kept["classes"], dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        same = False
    if not same:
        raise ValueError(f"{keep} is not of this command and its settings; remove it, or name another file.")
    return kept


def work(prepared: tuple) -> None:
    import numpy as np

    from tf_isvae import files

    scores, make_model, tasks, kept, keep = prepared
    found = kept.setdefault("classes", {})
    for name, (train, test, is_outlier) in tasks.items():
        if name not in found:
            found[name] = areas(scores, make_model(train), train, test, is_outlier)
            if keep:
                files.write_json(keep, kept)
        if len(tasks) > 1:
            print(f"{name}: {', '.join(f'{score} {area:.3f}' for score, area in found[name].items())}", flush=True)
    print("| score | area under the ROC curve |\n|---|---|")
    for score in next(iter(found.values())):
        print(f"| {score} | {np.mean([found[name][score] for name in tasks]):.4f} |")


def areas(scores: list[str], model, train, test, is_outlier) -> dict[str, float]:
    """The area under the ROC curve of each score of the model, and of the detectors on pixels."""
    import numpy as np
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score
    from sklearn.svm import OneClassSVM

    from tf_isvae import evaluation

    found = {score: evaluation.typicality(model, test, score) for score in scores}
    rows = train.reshape(len(train), -1)
    few = np.random.default_rng(0).permutation(len(rows))[:FOR_SVM]
    for detector, images in ((IsolationForest(random_state=0), rows), (OneClassSVM(nu=0.1), rows[few])):
        found[type(detector).__name__] = detector.fit(images).score_samples(test.reshape(len(test), -1))
    return {score: float(roc_auc_score(is_outlier, -values)) for score, values in found.items()}
