"""The settings of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_isvae import recipes
from tf_isvae.recipes import PRECISIONS
from tf_isvae.training import settings
from tf_isvae.training.settings import setting

if TYPE_CHECKING:  # TensorFlow is imported when a setting needs it; the command line does without
    from tf_isvae import estimators, likelihoods

OFF = {"weight_decay": 0.0, "distortion": 0.0, "hidden_pixels": 0.0}
"""What runs do without, unless a recipe sets it. In config.json of earlier runs, null stands for it."""
MEANT_BEFORE = {
    **{"validation_split": None, "prior": "uniform", "likelihood": "Bernoulli"},
    **{"kl_weight": 1.0, "first_estimator": None, "warm_epochs": 0, "optimizer": "Adam"},
    **OFF,
}
"""What runs did before there was a setting for it; their config.json lacks it."""

OPTIMIZERS = ("Adam", "Muon")
SCHEDULES = ("constant", "cosine")
STRATEGIES = ("default", "mirrored", "multi_worker")
RECIPES = {recipe: recipes.by_recipe(recipe) for recipe in ("best", "paper", "hash")}
"""What a recipe fixes: recipe -> model -> settings. They are written in the rows of `recipes.MODELS`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. A setting that is None takes the recipe's value, or the model's.

    None for image_size, channels and binarize leaves the images as they are.

    Raises:
        ValueError: a setting is not as its description says.

    Example:
        >>> config = training.Config(model="fc_cvae", dataset="digits", latent_dim=20)
        >>> config.estimator, config.epochs
        ('Enumerated', 60)
    """

    model: str = setting("fc_bvae", settings.Checked(recipes.check_name), f"one of {', '.join(recipes.MODELS)}")
    dataset: str = setting(
        "mnist",
        settings.Kind(),
        "mnist, fashion_mnist, digits, photo_patches, another TFDS name, an .npz file or a folder of images",
    )
    recipe: str = setting(
        "best", settings.OneOf(tuple(RECIPES)), "best, paper or hash: the values of the settings that are not given"
    )
    latent_dim: int | tuple[int, int] | None = setting(
        None,
        settings.Size(),
        "bits, categories or Gaussians, or VARIABLESxCATEGORIES such as 24x4; of a hybrid, CATEGORIESxGAUSSIANS "
        "or BITSxGAUSSIANS",
    )
    estimator: str | dict | None = setting(
        None,
        settings.Named("estimators"),
        f"of the gradient: one of {', '.join(recipes.ESTIMATORS)}; with a count, as in ARMS:4; "
        "Linearized+ or Hybrid+ before another, as in Linearized+DisARM",
    )
    first_estimator: str | dict | None = setting(
        None,
        settings.Named("estimators"),
        "another estimator in the first epochs, such as ReinMax (callbacks.FirstEstimator); the recipe's only if none "
        "is given as estimator",
    )
    first_epochs: int | None = setting(
        None,
        settings.Integer(0),
        "epochs in which it takes the place of the estimator; without it the recipe's share of them, or three fifths",
    )
    prior: str | None = setting(
        None,
        settings.OneOf(recipes.PRIORS),
        "uniform: the paper's; or one that learns: factorized, autoregressive or mixture (callbacks.WaitingPrior); or, "
        "of a hybrid, clusters (callbacks.WarmStart)",
    )
    likelihood: str | dict | None = setting(
        None,
        settings.Named("likelihoods"),
        "p(x|z), as likelihoods.get takes it: Bernoulli, Gaussian:SCALE, Gaussian:channel, DiscretizedLogistic:channel "
        "or DiscretizedLogistic:pixel; without it, Bernoulli for grey images, DiscretizedLogistic:channel for others",
    )
    epochs: int | None = setting(None, settings.Integer(1), "passes over the training images")
    batch_size: int | None = setting(None, settings.Integer(1), "images in a step, of all devices together")
    optimizer: str | None = setting(
        None,
        settings.OneOf(OPTIMIZERS),
        "Adam, or Muon: Adam but for narrow matrices, the encoder's last and the decoder's first (optimizers.Muon)",
    )
    learning_rate: float | None = setting(None, settings.Positive(), "at the beginning")
    schedule: str | None = setting(
        None, settings.OneOf(SCHEDULES), "of the learning rate: constant, or cosine, which ends at 0"
    )
    weight_decay: float | None = setting(
        None,
        settings.Share(or_none=True),
        "by this times the learning rate, such as 0.03, all weights but biases shrink in each step (AdamW); 0 for none",
    )
    kl_weight: float | None = setting(
        None, settings.Positive(), "weight of the KL term in training; the figures always have weight 1"
    )
    kl_start: float | None = setting(
        None, settings.Positive(), "weight of the KL term at the beginning (callbacks.KLAnnealing)"
    )
    kl_epochs: int | None = setting(
        None,
        settings.Integer(0),
        "epochs in which that weight falls to 1; without it the recipe's share of them",
    )
    warm_epochs: int | None = setting(
        None,
        settings.Integer(0),
        "with the prior clusters, epochs in which a hybrid's Gaussians train alone (callbacks.WarmStart); without it "
        "the recipe's share of them",
    )
    start_at_mean: bool | None = setting(
        None, settings.Flag(), "begin with a decoder that gives the mean image (networks.start_at_mean)"
    )
    distortion: float | None = setting(
        None,
        settings.Share(or_none=True),
        "share, such as 0.1, by which the encoder sees images moved, scaled and turned in training; for search; 0 for "
        "none",
    )
    hidden_pixels: float | None = setting(
        None,
        settings.Share(or_none=True),
        "share, such as 0.1, of each image that is hidden from the encoder in training; 0 for none",
    )
    seed: int = setting(
        0, settings.Integer(0, 2**32), "fixes initial weights, order of the data, binarisation and noise"
    )
    precision: str | None = setting(
        None,
        settings.OneOf((*PRECISIONS, "fastest")),
        "float32, mixed_bfloat16, or fastest: mixed_bfloat16 if this machine has instructions for it, else float32",
    )
    strategy: str = setting(
        "default",
        settings.OneOf(STRATEGIES),
        "default: one device; mirrored: every visible GPU, or every logical CPU device; multi_worker: all workers that "
        "TF_CONFIG names (docs/distributed.md)",
    )
    run_dir: str | None = setting(
        None, settings.Kind(), "what to write; default runs/<model>_<dataset>, numbered", of_this_machine=True
    )
    data_dir: str | None = setting(
        None,
        settings.Kind(),
        "where TFDS keeps its data sets; default TFDS_DATA_DIR, or ~/tensorflow_datasets",
        of_this_machine=True,
    )
    image_size: tuple[int, int] | None = setting(
        None,
        settings.Size(always_pair=True),
        "resize the images to N, or to HEIGHTxWIDTH; without it they stay as they are",
    )
    channels: int | None = setting(
        None, settings.OneOf((1, 3)), "make the images grey (1) or colour (3); without it they stay as they are"
    )
    binarize: str | None = setting(
        None,
        settings.OneOf(("static", "dynamic")),
        "draw binary pixels: static: once; dynamic: anew in each epoch; without it they stay grey",
    )
    validation_split: float | None = setting(
        None,
        settings.Share(),
        "share of the training images to hold out, drawn by the seed, and to validate on, such as 0.1",
    )
    gradient_variance: bool = setting(
        False, settings.Flag(), "record the gradient's variance after every epoch, on 256 test images"
    )
    # Without it, operations that add in the order in which threads finish may differ in the last bits, and two runs
    # then drift apart: on a GPU, the gradients of convolutions, and algorithms that cuDNN picks by timing. The order
    # of the data, the noise and the initial weights never differ.
    deterministic: bool = setting(
        False,
        settings.Flag(),
        "only operations that give the same bits in every run of this machine, in the whole process",
    )

    def __post_init__(self):
        def assign(name, value):
            object.__setattr__(self, name, value)

        fields = {field.name: field for field in dataclasses.fields(self)}

        def check(name):
            value = getattr(self, name)
            if value is not None or fields[name].default is not None:
                assign(name, fields[name].metadata["kind"].check(name, value))

        for name in ("model", "recipe"):
            check(name)
        row = recipes.MODELS[self.model]
        if self.recipe not in row.recipes:
            raise ValueError(
                f"recipe is {self.recipe!r}; it must be one of {', '.join(row.recipes)} for the model {self.model}."
            )
        defaults = {
            "latent_dim": row.latent_dim,
            "prior": "uniform",
            "warm_epochs": 0,
            "first_epochs": _three_fifths(row.recipes[self.recipe]["epochs"]),
            **OFF,
            **row.recipes[self.recipe],
        }
        if self.estimator is not None:  # then all of the run has it
            defaults["first_estimator"] = None
        shares = ("kl_epochs", "warm_epochs", "first_epochs")
        for name, value in defaults.items():
            if getattr(self, name) is None and name not in shares:
                assign(name, value)
        check("latent_dim")
        check("epochs")
        if self.prior != "clusters":  # nothing to start from the Gaussians
            defaults["warm_epochs"] = 0
        if self.first_estimator is None:
            defaults["first_epochs"] = 0
        for name in shares:
            if getattr(self, name) is None:  # the same share of the run, however long it is
                assign(name, defaults[name] * self.epochs // defaults["epochs"])
        if self.estimator is None:
            assign("estimator", row.estimator(self.latent_dim))
        for name in fields:
            check(name)
        if self.warm_epochs and self.prior != "clusters":
            raise ValueError(
                f"warm_epochs is {self.warm_epochs}; with the prior {self.prior!r} it must be 0: only clusters have a "
                "warm start."
            )
        if self.first_epochs and self.first_estimator is None:
            raise ValueError(
                f"first_epochs is {self.first_epochs}; without first_estimator it must be 0: say which one, such as "
                "ReinMax."
            )
        if self.precision == "fastest":
            from tf_isvae.precision import multiplies_bfloat16

            assign("precision", "mixed_bfloat16" if multiplies_bfloat16() else "float32")

    def make_estimator(self) -> estimators.Estimator:
        """The object that `estimator` stands for."""
        return settings.Named("estimators").make(self.estimator)

    def make_first_estimator(self) -> estimators.Estimator | None:
        """The object that `first_estimator` stands for, if it is given."""
        return None if self.first_estimator is None else settings.Named("estimators").make(self.first_estimator)

    def make_likelihood(self) -> likelihoods.Likelihood | None:
        """The object that `likelihood` stands for; None for that of the zoo, which depends on the images."""
        return None if self.likelihood is None else settings.Named("likelihoods").make(self.likelihood)


# The fields say what each setting is, to the command line and here.
Config.__doc__ = (Config.__doc__ or "").replace(
    "    Raises:",
    "    Args:\n"
    + "".join(f"        {field.name}: {field.metadata['help']}.\n" for field in dataclasses.fields(Config))
    + "\n    Raises:",
)


def read(texts: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, from the texts of a command line; values that are not text are left as they are.

    Example:
        >>> training.read({"epochs": "3", "image_size": "8x6", "deterministic": True})
        {'epochs': 3, 'image_size': (8, 6), 'deterministic': True}
    """
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(Config)}
    return {name: kinds[name].read(value) if isinstance(value, str) else value for name, value in texts.items()}


def command(values: dict[str, Any]) -> str:
    """The command that makes the same model again, from the settings of a run (its config.json, or part of it).

    All settings are written out, those of the recipe too: the command must mean the same when a later version has
    other recipes. run_dir and data_dir, which are of the machine that it ran on, are left out.

    Example:
        >>> training.command({"model": "fc_bvae", "latent_dim": [24, 4], "start_at_mean": False, "run_dir": "runs/a"})
        'python scripts/train.py --model fc_bvae --latent-dim 24x4 --no-start-at-mean'
    """
    return shlex.join(["python", "scripts/train.py", *settings.words(dataclasses.fields(Config), values)])


def as_meant(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings in a run's config.json, with what it meant before there was a setting for it, or by null."""
    meant = {**MEANT_BEFORE, **stored}
    meant.setdefault("first_epochs", 0 if meant["first_estimator"] is None else _three_fifths(meant["epochs"]))
    return {**meant, **{name: value for name, value in OFF.items() if meant[name] is None}}


def _three_fifths(epochs: int) -> int:
    return math.ceil(0.6 * epochs)


def stored_config(run_dir: str | os.PathLike | None) -> Config:
    """The settings of the run in `run_dir`, from its config.json; of an earlier version's, with what it meant.

    Raises:
        FileNotFoundError: there is none. ValueError: it is not one that this version can read.

    Example:
        >>> import dataclasses
        >>> from tf_isvae import files
        >>> files.write_json("config.json", dataclasses.asdict(training.Config(dataset="digits", epochs=3)))
        >>> training.stored_config(".").epochs
        3
    """
    if run_dir is None:
        raise ValueError("to resume, give run_dir: the directory of the run to go on with.")
    path = Path(run_dir) / "config.json"
    try:
        stored = as_meant(json.loads(path.read_text()))
        values = {field.name: stored[field.name] for field in dataclasses.fields(Config)}
        return Config(**{**values, "run_dir": str(run_dir)})
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{run_dir} holds no run: {path} is missing.") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the config.json of a run ({type(error).__name__}: {error}).") from None


def check_same(config: Config) -> Config:
    """`config` itself, with the likelihood of the run if it says none, which a run chooses by its images.

    Raises ValueError if the run in config.run_dir has other settings.
    """
    of_run = stored_config(config.run_dir)
    if config.likelihood is None:
        config = dataclasses.replace(config, likelihood=of_run.likelihood)
    stored, now = dataclasses.asdict(of_run), dataclasses.asdict(config)
    differences = [
        f"{name} is {stored[name]!r} in the run and {value!r} now"
        for name, value in now.items()
        if name != "run_dir" and stored[name] != value
    ]
    if differences:
        raise ValueError(f"cannot resume {config.run_dir} with other settings: {'; '.join(differences)}.")
    return config
