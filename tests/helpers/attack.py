"""Define pickle code that leaves a trace if a reader runs it."""

from pathlib import Path


class Attack:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
