"""Start the command `metamix`.

This module lies beside the package, because importing any part of the package imports torch and timm. So --help and
--version are answered at once.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

COMMANDS = {  # name: (module with a `main`, what it does)
    "train": ("metamix.cli.train", "Train a model, or several and compare them."),
    "eval": ("metamix.cli.evaluate", "Score a trained model on a data set."),
    "predict": ("metamix.tasks.predict", "Label, segment or restore images, or find objects in them."),
    "explain": ("metamix.tasks.explain", "Draw which parts of an image a prediction rests on."),
    "demo": ("metamix.tasks.demo", "Serve a page in the browser on which models predict an image."),
    "export": ("metamix.tasks.export", "Write a model as ONNX, OpenVINO IR or torch.export, and check it."),
    "publish": ("metamix.tasks.publish", "Upload a model with a model card to the Hugging Face Hub."),
    "convert": ("metamix.tasks.convert", "Turn labels of another program into a data set to train on."),
    "verify": ("metamix.tasks.verify", "Find broken images and bad annotations in a data set."),
    "benchmark": ("metamix.tasks.benchmark", "Measure how fast models are in each engine on this machine."),
    "models": ("metamix.cli.models", "List models with their sizes, costs and weights."),
}

USAGE = "\n".join(
    [
        "usage: metamix COMMAND [options]",
        "",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "metamix COMMAND --help explains a command; metamix --version prints the version.",
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Answer --help and --version, or run a subcommand. Ctrl-C and a closed pipe end it without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # file and class names may have letters that it cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        answer(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as a shell reports a program that Ctrl-C ended
    except BrokenPipeError:  # as in `metamix models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise SystemExit(141) from None


def answer(words: Sequence[str]) -> None:
    """Print the usage or the version, or run a subcommand; exit with 2 if there is no such command."""
    command, *rest = words or ["help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
    elif command in ("-V", "--version"):
        file = Path(__file__).with_name("metamix") / "version.py"  # importing the package would take seconds
        print(f"metamix {runpy.run_path(str(file))['__version__']}")
    elif command not in COMMANDS:
        from metamix.utils.text import did_you_mean

        print(f"metamix: there is no command {command!r}{did_you_mean(command, COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    else:
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; readers refuse the image in words
        sys.argv[0] = f"metamix {command}"  # the program's name in the subcommand's --help
        import_module(COMMANDS[command][0]).main(rest)
