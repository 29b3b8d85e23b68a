"""Trained models for people without this package: SavedModel and LiteRT."""

from tf_isvae.export.litert import litert
from tf_isvae.export.saved_model import saved_model
from tf_isvae.export.source import load

__all__ = ["litert", "load", "saved_model"]
