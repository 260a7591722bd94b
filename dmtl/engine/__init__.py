"""The inference engine, a trained model as a fast function from images to maps; and its export."""

from dmtl.engine.engine import Engine

__all__ = ["Engine"]
