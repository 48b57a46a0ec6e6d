"""The version of metamix."""

__version__ = "0.1.0"
