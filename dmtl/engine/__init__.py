"""The inference engine: a trained model as one fast function from images to maps, and its export."""

from dmtl.engine.engine import Engine

__all__ = ["Engine"]
