"""Run a subcommand of `metamix`. `main` is in `metamix_cli`, which answers --help without importing the package."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

from metamix.utils.text import did_you_mean
from metamix_cli import COMMANDS, USAGE, main

__all__ = ["COMMANDS", "main"]


def run(command: str, *rest: str) -> None:
    """Run a subcommand with its arguments; exit with 2 if there is no such command."""
    if command not in COMMANDS:
        print(f"metamix: there is no command {command!r}{did_you_mean(command, COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; readers refuse the image in words
    sys.argv[0] = f"metamix {command}"  # the program's name in the subcommand's --help
    import_module(COMMANDS[command][0]).main(list(rest))


if __name__ == "__main__":
    main()
