"""Finds the images of a folder that are most like a given one, by the Hamming distance of their codes.

    python scripts/search.py index photos/ --model fc_bvae_mnist --to photos.index
    python scripts/search.py query photos.index one.png two.png --picture result.png
    python scripts/search.py add photos.index more/ another.png
    python scripts/search.py remove photos.index photos/old/ one.png

`index` and `add` can be stopped with Ctrl-C: the same command goes on. Needs FAISS: pip install faiss-cpu.
"""

import argparse
import os
from pathlib import Path

from tf_isvae.commands import command_line


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="index, query, add, remove")
    index = actions.add_parser("index", description="Makes an index of a folder's images.")
    index.add_argument("folder", help="searched recursively for PNG and JPEG images")
    index.add_argument("--model", required=True, help="one of the trained models, a .keras file or a run directory")
    index.add_argument("--to", required=True, help="the index to write")
    query = actions.add_parser("query", description="Prints the nearest images of an index, and their distances.")
    query.add_argument("index", help="as the action index wrote it")
    query.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG")
    query.add_argument("--neighbours", type=int, default=10, help="how many for each image; default 10")
    query.add_argument(
        "--distance",
        default="hamming",
        help="hamming: in how many bits the codes differ; expected: its mean over the query's q(z|x), without ties",
    )
    query.add_argument("--picture", help="a PNG to draw each image with its neighbours to")
    add = actions.add_parser("add", description="Adds images to an index.")
    remove = actions.add_parser("remove", description="Removes images from an index.")
    for action, verb in ((add, "add"), (remove, "remove")):
        action.add_argument("index", help="as the action index wrote it")
        action.add_argument("images", nargs="+", metavar="IMAGE", help=f"images or folders to {verb}")
    for action in (query, add, remove):
        action.add_argument("--model", help="the model that made the index, if it is elsewhere now")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """The arguments of one of the functions below, and that function before them."""
    from tf_isvae import checks, datasets, plotting, search, zoo

    command_line.exact_float32()

    with command_line.quiet():
        model = zoo.load(arguments.model) if hasattr(arguments, "model") else None
        if arguments.action == "index":
            to, name = Path(arguments.to), arguments.model
            if not to.resolve().parent.is_dir():
                raise FileNotFoundError(f"--to is {to}; it must lie in a folder that exists: make it.")
            if to.exists():
                raise FileExistsError(f"{to} exists; choose another name, or use search.py add.")
            found = search.Index(model, name if name in zoo.names() else os.path.abspath(name))
            return extend, found, datasets.image_files(arguments.folder), to
        found = search.load(arguments.index, model)
    if arguments.action == "add":
        images = [image for path in arguments.images for image in _images_of(path)]
        return extend, found, images, arguments.index
    if arguments.action == "remove":
        return write, found, found.remove([os.path.abspath(path) for path in arguments.images]), arguments.index
    picture = getattr(arguments, "picture", None)
    if picture:
        plotting.check_path(picture)
    checks.one_of("--distance", arguments.distance, search.DISTANCES)
    images = datasets.read_images(arguments.images, found.model.image_shape)
    positions, distances = found.nearest(images, arguments.neighbours, arguments.distance)
    return show, found, (arguments.images, images), positions, distances, picture


def _images_of(path: str) -> list[str]:
    from tf_isvae import datasets

    if os.path.isdir(path):
        return datasets.image_files(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist; give an image or a folder of images.")
    return [path]


def extend(index, images: list[str], path: str) -> None:
    import keras

    from tf_isvae import search

    bar = keras.utils.Progbar(None, unit_name="image", stateful_metrics=())

    def progress(done: int, in_all: int) -> None:
        bar.target = in_all
        bar.update(done)

    added = search.extend(index, images, path, progress)
    print(f"{path}: {added} images added, {len(index)} in all, {index.codes.shape[1]} bytes each")


def write(index, removed: int, path: str) -> None:
    index.save(path)
    print(f"{path}: {removed} images removed, {len(index)} left")


def show(index, queries: tuple, positions, distances, picture: str | None) -> None:
    import numpy as np

    from tf_isvae import datasets, plotting

    names, images = queries
    for name, row, far in zip(names, positions, distances, strict=True):
        print(name)
        for position, distance in zip(row, far, strict=True):
            print(f"  {distance:8.4g}  {index.paths[position]}")
    if picture:
        shown = []
        for image, row in zip(images, positions, strict=True):
            shown += [image[None], datasets.read_images([index.paths[i] for i in row], index.model.image_shape)]
        plotting.image_grid(
            np.concatenate(shown), picture, "left: the query; then the nearest", columns=1 + positions.shape[1]
        )


def work(prepared: tuple) -> None:
    function, *arguments = prepared
    function(*arguments)
