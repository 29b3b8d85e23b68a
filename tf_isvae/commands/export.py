"""Exports a trained model for people without this package.

    python scripts/export.py runs/fc_bvae_mnist                                   exported_models/fc_bvae_mnist/1
    python scripts/export.py model.keras --to models/digits                       models/digits/1
    python scripts/export.py runs/fc_bvae_mnist --litert float32 float16 int8     also .tflite files beside the versions
    python scripts/export.py runs/fc_bvae_mnist --keras --litert float32 int8     all that a folder of zoo.load has
    python scripts/export.py runs/fc_bvae_mnist --keras --round-weights           the .keras file at half the size

Writes a SavedModel as the folder's next version, for TensorFlow, TensorFlow Serving and its C API; with --litert, files
for LiteRT beside the versions; with --keras, the .keras file that `zoo.load` reads; and a card of them all: README.md,
metadata.json, picture.png. int8 is calibrated on images of the run's training data, or of --calibration.
--round-weights is for every file: the matrices' float32 values are rounded to those of bfloat16, and the zeros at their
ends compressed away. (A model trained in mixed_bfloat16 has never multiplied by more.) The card says so.
"""

import argparse
import contextlib
from pathlib import Path

from tf_isvae.commands import command_line
from tf_isvae.export import formats


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("source", help="the directory of a run, a model of the zoo (fc_bvae_mnist), or a .keras file")
    add("--to", help="the folder to write; default exported_models/<name of the run or file>")
    for kind, variants in formats.kinds().items():
        files = ", ".join(f"<folder>{row.suffix}" for row in variants.values())
        if [*variants] == [""]:
            add(f"--{kind}", action="store_const", const=[""], default=[], help=f"also {files}")
        else:
            add(
                f"--{kind}",
                nargs="+",
                choices=variants,
                default=[],
                metavar="KIND",
                help=f"{', '.join(variants)}: also {files}",
            )
    add("--round-weights", action="store_true", default=False, help="the matrices to 8 significant bits")
    add("--calibration", help="for int8: a data set, as scripts/train.py takes; default that of the run")
    add("--data-dir", help="where TFDS keeps its data sets")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The arguments of export.to_folder."""
    from tf_isvae import evaluation, export, precision, training

    command_line.exact_float32()

    path = Path(arguments.source)
    name = path.resolve().name if path.is_dir() else path.stem
    folder = Path(getattr(arguments, "to", Path("exported_models") / name))
    chosen = [
        f"{kind}-{variant}".removesuffix("-") for kind in export.formats.kinds() for variant in getattr(arguments, kind)
    ]
    trained = training.read_trained(path)
    export.card.check_folder(folder)
    if arguments.round_weights:
        precision.round_matrices(trained.model)
    config = trained.config or {}
    images = examples = None
    data_dir = getattr(arguments, "data_dir", config.get("data_dir"))
    if any(export.FORMATS[name].needs_images for name in chosen):
        dataset = getattr(arguments, "calibration", config.get("dataset"))
        if dataset is None:
            raise ValueError("int8 needs images of the kind that will be encoded: name a data set with --calibration.")
        images = evaluation.images_for(trained.model, dataset, "train", data_dir, config.get("binarize"), 500)[0]
    elif hasattr(arguments, "calibration"):
        raise ValueError(f"--calibration {arguments.calibration} is for --litert int8 only; add that, or leave it out.")
    elif "dataset" in config:  # for the picture of the card, which shows samples of the model if the data is not here
        with contextlib.suppress(ValueError, OSError):
            read = (config["dataset"], "train", data_dir, config.get("binarize"), 100)
            examples = evaluation.images_for(trained.model, *read)[0]
    return trained, folder, chosen, {"calibration": images, "examples": examples}


def work(prepared: tuple) -> None:
    from tf_isvae import export

    trained, folder, chosen, images = prepared
    with command_line.quiet():
        written = export.to_folder(trained.model, folder, chosen, trained.config, trained.metrics, **images)
    for path in written:
        print(path)
