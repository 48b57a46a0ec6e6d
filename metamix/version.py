"""The version of metamix."""

__version__ = "0.2.0"
