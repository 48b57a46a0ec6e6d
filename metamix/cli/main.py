"""Run a subcommand of `metamix`. `main` is in `metamix_cli`, which answers --help without importing the package."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from metamix.utils.text import did_you_mean
from metamix_cli import COMMANDS, USAGE, main

__all__ = ["COMMANDS", "main"]


def run(command: str, *rest: str) -> None:
    """Run a subcommand with its arguments; exit with 2 if there is no such command."""
    if command not in COMMANDS:
        print(f"metamix: there is no command {command!r}{did_you_mean(command, COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[0] = f"metamix {command}"  # the program's name in the subcommand's --help
    try:
        import_module(COMMANDS[command][0]).main(list(rest))
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as a shell reports a program that Ctrl-C ended
    except BrokenPipeError:  # as in `metamix models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise SystemExit(141) from None


if __name__ == "__main__":
    main()
