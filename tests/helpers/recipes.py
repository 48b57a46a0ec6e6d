"""Parse the words of `metamix train`."""

from metamix.cli.train import READER


def parse_recipe(*words):
    """Return the recipe of a command line for any task."""
    return READER.parse([*map(str, words)])
