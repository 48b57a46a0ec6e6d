"""Find, read, write and check weights. This package does not depend on any model class."""

from .find import find_weights, read_weights
from .fit import load_into
from .metadata import ModelMetadata

__all__ = ["ModelMetadata", "find_weights", "load_into", "read_weights"]
