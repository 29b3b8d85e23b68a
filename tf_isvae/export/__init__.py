"""Trained models for people without this package: SavedModel, LiteRT, and TensorFlow Serving."""

from tf_isvae.export.litert import litert
from tf_isvae.export.saved_model import saved_model
from tf_isvae.export.serving import serving_config
from tf_isvae.export.source import load

__all__ = ["litert", "load", "saved_model", "serving_config"]
