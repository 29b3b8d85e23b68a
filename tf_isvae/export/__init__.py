"""Trained models for people without this package: SavedModel and LiteRT."""

from tf_isvae.export.saved_model import saved_model
from tf_isvae.export.serving import serving_config

__all__ = ["saved_model", "serving_config"]
