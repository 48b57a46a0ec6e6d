"""Find, read, write and check weights. Nothing here knows a class of models: it compares names, tensors and text."""

from .find import find_weights, read_weights
from .fit import load_into
from .metadata import ModelMetadata

__all__ = ["ModelMetadata", "find_weights", "load_into", "read_weights"]
