"""How well a model tells outliers from images like those it was trained on, beside scikit-learn's detectors on pixels.

    python scripts/compare_outliers.py fc_bvae_fashion_mnist fashion_mnist --outliers mnist
    python scripts/compare_outliers.py fc_bvae mnist --one-class --latent-dim 16 --epochs 20 --batch-size 128

The area under the ROC curve: the probability that an outlier has a lower score than an inlier. With --outliers, of the
first test images of both data sets, and a trained model. With --one-class, a model is trained for each class on its
training images alone; the images of the other classes, among all test images, are the outliers; the mean over the
classes. IsolationForest and OneClassSVM see the same training images, OneClassSVM at most 2,000 of them.
"""

import argparse

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
    add("--data-dir", default=None, help="where TFDS keeps its data sets")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The arguments, and what `work` measures: pairs of a title and a list of (detector, training, test, outlier)."""
    from tf_isvae import checks, evaluation, recipes, training, wrappers, zoo

    command_line.exact_float32()

    outliers = getattr(arguments, "outliers", None)
    if (outliers is None) != arguments.one_class:
        raise ValueError("the outliers are not clear; give either --outliers or --one-class.")
    for score in arguments.scores:
        checks.one_of("--scores", score, evaluation.SCORES)
    count = checks.integer("--images", arguments.images)
    given = {name: value for name, value in vars(arguments).items() if name in ("latent_dim", "batch_size")}
    settings = training.read(given)
    if settings and not arguments.one_class:
        raise ValueError(f"{training.option(min(settings))} is for --one-class; add that, or leave it out.")
    if arguments.one_class:
        settings["epochs"] = checks.integer("--epochs", arguments.epochs)
        training.Config(model=arguments.model, **settings)  # refuses wrong settings before anything is read
        like = zoo.build(recipes.check_name(arguments.model))
        model = arguments.model
    else:
        like = model = zoo.load(arguments.model)

    def images(dataset, split):
        return evaluation.images_for(like, dataset, split, arguments.data_dir)

    train, test = images(arguments.inliers, "train"), images(arguments.inliers, "test")
    detectors = {score: wrappers.OutlierDetector(model, score=score, **settings) for score in arguments.scores}
    if not arguments.one_class:
        return detectors, [_against(train[0], test[0][:count], images(outliers, "test")[0][:count])]
    if test[1] is None or train[1] is None:
        raise ValueError(f"{arguments.inliers} has no labels; --one-class needs them.")
    import numpy as np

    return detectors, [(train[0][train[1] == label], test[0], test[1] != label) for label in np.unique(test[1])]


def _against(train, inliers, outliers) -> tuple:
    import numpy as np

    return train, np.concatenate([inliers, outliers]), np.repeat([False, True], [len(inliers), len(outliers)])


def work(prepared: tuple) -> None:
    import numpy as np
    from sklearn.base import clone
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score
    from sklearn.svm import OneClassSVM

    detectors, tasks = prepared
    figures = {name: [] for name in (*detectors, "IsolationForest", "OneClassSVM")}
    for number, (train, test, is_outlier) in enumerate(tasks):
        rows = train.reshape(len(train), -1)
        few = np.random.default_rng(0).permutation(len(rows))[:FOR_SVM]
        baselines = {
            "IsolationForest": IsolationForest(random_state=0).fit(rows),
            "OneClassSVM": OneClassSVM(nu=0.1).fit(rows[few]),
        }
        trained = None
        for name in figures:
            if name in baselines:
                scores = baselines[name].score_samples(test.reshape(len(test), -1))
            elif trained is None:
                # A few training images set the threshold, which plays no part here.
                detector = clone(detectors[name], safe=False)
                trained = detector.fit(train if len(tasks) > 1 else train[:64])
                scores = trained.score_samples(test)
            else:
                scores = trained.set_params(score=name).score_samples(test)
            figures[name].append(roc_auc_score(is_outlier, -scores))
        if len(tasks) > 1:
            shown = ", ".join(f"{name} {values[-1]:.3f}" for name, values in figures.items())
            print(f"class {number}: {shown}", flush=True)
    print("| score | area under the ROC curve |\n|---|---|")
    for name, values in figures.items():
        print(f"| {name} | {np.mean(values):.4f} |")
