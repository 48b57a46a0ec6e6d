"""Define the version of metamix."""

__version__ = "0.3.0"
