"""Start the command `metamix`.

This module lies beside the package, because importing any part of the package imports torch and timm. So --help and
--version are answered at once.
"""

from __future__ import annotations

import io
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
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
    """Answer --help and --version, or run a subcommand.

    Ctrl-C, SIGTERM, and an output that is closed or full end it without a traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file and class names may have letters that it cannot show
    # Processes of torchrun must end at once, even while they wait for each other.
    if "RANK" not in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            answer(words)
        finally:  # after sys.exit too
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        raise SystemExit(143 if error.args else 130) from None  # as a shell reports a program that a signal ended
    except OSError as error:  # a closed pipe, as in `metamix models | head`, or a full disk
        with suppress(io.UnsupportedOperation):  # such as in a notebook
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise SystemExit(141 if isinstance(error, BrokenPipeError) else f"error: {error}") from None


def terminate(number: int, frame: object) -> None:
    """End a command at SIGTERM as at Ctrl-C, so that it removes temporary files and writes what it has done."""
    raise KeyboardInterrupt("SIGTERM")


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
