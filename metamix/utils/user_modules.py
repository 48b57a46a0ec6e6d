"""Import the user's modules, which register mixers and models."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE`, which may be repeated, for `import_modules`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module with mixers or models of your own; may be repeated",
    )


def import_modules(names: Sequence[str]) -> None:
    """Import modules from the working folder, or installed ones; raise ValueError if one cannot be imported."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed `metamix` command has its own folder there
    for name in names:
        try:
            if not name or name.startswith("."):  # import_module takes these for a relative import
                raise ImportError("it is a path" if name else "it is empty")
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"--import {name} failed: {error}; give a module, such as my_mixers for the file my_mixers.py, that is "
                f"in the working folder or installed"
            ) from error


def take_task(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Import the modules of `--import`; return the name after `--task`, or None, and the arguments besides both."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    add_imports(parser)
    known, words = parser.parse_known_args(argv)
    import_modules(known.imports)
    return known.task, words
