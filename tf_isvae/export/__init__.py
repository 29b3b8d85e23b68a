"""Trained models for people without this package: SavedModel and LiteRT."""

from tf_isvae.export.saved_model import saved_model

__all__ = ["saved_model"]
