"""Exports a trained model for people without this package.

    python scripts/export.py runs/fc_bvae_mnist                                   exported_models/fc_bvae_mnist/1
    python scripts/export.py model.keras --to models/digits                       models/digits/1
    python scripts/export.py runs/fc_bvae_mnist --litert float32 float16 int8     also .tflite files beside the versions
    python scripts/export.py runs/fc_bvae_mnist --keras --litert float32 int8     all that a folder of zoo.load has
    python scripts/export.py runs/fc_bvae_mnist --keras --round-weights           the .keras file at half the size

Writes a SavedModel as the folder's next version, for TensorFlow, TensorFlow Serving and its C API; with --litert, files
for LiteRT beside the versions; with --keras, the .keras file that `zoo.load` reads; and a card of them all: README.md,
metadata.json. int8 is calibrated on images of the run's training data, or of --calibration. --round-weights is for
every file: the matrices' float32 values are rounded to those of bfloat16, and the zeros at their ends compressed away.
(A model trained in mixed_bfloat16 has never multiplied by more.) The card says so.
"""

import argparse
from pathlib import Path

import command_line

LITERT = {"float32": None, "float16": "float16", "int8": "int8"}


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("source", help="the directory of a run, or a .keras file")
    add("--to", help="the folder to write; default exported_models/<name of the run or file>")
    add("--litert", nargs="+", choices=LITERT, default=[], metavar="KIND", help="float32, float16, int8")
    add("--keras", action="store_true", default=False, help="also <name of the folder>.keras, for zoo.load")
    add("--round-weights", action="store_true", default=False, help="the matrices to 8 significant bits")
    add("--calibration", help="for int8: a data set, as scripts/train.py takes; default that of the run")
    add("--data-dir", help="where TFDS keeps its data sets")
    return parser


def calibration_images(model, config: dict, arguments: argparse.Namespace):
    """500 training images of the shape that the model takes."""
    from tf_isvae import evaluation

    name = getattr(arguments, "calibration", config.get("dataset"))
    if name is None:
        raise ValueError("int8 needs images of the kind that will be encoded: name a data set with --calibration.")
    where = getattr(arguments, "data_dir", config.get("data_dir"))
    return evaluation.images_for(model, name, "train", where, config.get("binarize"), count=500)[0]


def round_weights(model) -> None:
    """Rounds the matrices (and convolutions' kernels) to bfloat16; they remain float32. Biases are left as they are."""
    import tensorflow as tf

    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(tf.cast(tf.cast(weight, tf.bfloat16), tf.float32))


def main(arguments: argparse.Namespace) -> None:
    from tf_isvae import export, keras_files

    if hasattr(arguments, "calibration") and "int8" not in arguments.litert:
        raise ValueError(f"--calibration {arguments.calibration} is for --litert int8 only; add that, or leave it out.")
    path = Path(arguments.source)
    name = path.resolve().name if path.is_dir() else path.stem
    folder = Path(getattr(arguments, "to", Path("exported_models") / name))
    source = export.load(path)
    export.card.check_folder(folder)
    if arguments.round_weights:
        round_weights(source.model)
    with command_line.quiet():
        written = []
        if arguments.keras:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{folder.resolve().name}.keras")
            keras_files.write(source.model, written[-1])
        for kind in arguments.litert:
            images = calibration_images(source.model, source.config or {}, arguments) if kind == "int8" else None
            suffix = "" if kind == "float32" else f"_{kind}"
            file = folder / f"{folder.resolve().name}{suffix}.tflite"
            written.append(export.litert(source.model, file, LITERT[kind], images))
        written.append(export.saved_model(source.model, folder, source.config, source.metrics))
    for path in [*written, folder / "README.md", folder / "metadata.json"]:
        print(path)


if __name__ == "__main__":
    command_line.run(make_parser, main)
