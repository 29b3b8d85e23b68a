"""Trained models for people without this package: SavedModel, LiteRT, and TensorFlow Serving.

The rooms, each of which uses those above it:
    bad_input     what exported models do with input that they were not made for
    signatures    what exported models compute
    versions      the numbered directories of a model, which appear whole
    serving       what TensorFlow Serving takes beside a SavedModel
    litert        LiteRT files
    formats       the table of the files that stand beside the versions
    picture       what the model expects, and what it makes of it
    usage         Python for each format
    card          README.md, metadata.json and picture.png
    saved_model   the next version, with its card
    folder        all of it
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf_isvae.export.folder import to_folder
    from tf_isvae.export.formats import FORMATS
    from tf_isvae.export.litert import litert
    from tf_isvae.export.saved_model import saved_model
    from tf_isvae.export.serving import serving_config

__all__ = ["FORMATS", "litert", "saved_model", "serving_config", "to_folder"]


def import_all() -> None:
    """Imports what `__all__` names."""
    global FORMATS, litert, saved_model, serving_config, to_folder
    # The functions after the modules of the same names, which importing puts here.
    from tf_isvae.export.folder import to_folder
    from tf_isvae.export.formats import FORMATS
    from tf_isvae.export.litert import litert
    from tf_isvae.export.saved_model import saved_model
    from tf_isvae.export.serving import serving_config


if "tf_isvae_command" not in sys.modules:  # see tf_isvae/__init__.py
    import_all()
