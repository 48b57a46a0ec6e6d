"""Start the command `metamix`.

This module is outside the package, so that --help and --version answer at once: importing any part of the package
imports torch and timm.
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

COMMANDS = {  # name: (module with `main`, what the command does)
    "train": ("metamix.cli.train", "Train a model, or train several models and compare them."),
    "eval": ("metamix.cli.evaluate", "Score a trained model on a data set."),
    "predict": ("metamix.tasks.predict", "Label, segment or restore images, or find objects in them."),
    "explain": ("metamix.tasks.explain", "Show which parts of an image a prediction is based on."),
    "demo": ("metamix.tasks.demo", "Serve a web page that shows predictions for an image."),
    "export": ("metamix.tasks.export", "Write a model as ONNX, OpenVINO IR or torch.export, and check it."),
    "publish": ("metamix.tasks.publish", "Upload a model with a model card to the Hugging Face Hub."),
    "convert": ("metamix.tasks.convert", "Convert labels from another program to a data set to train on."),
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

    Ctrl-C, SIGTERM, a closed output or a full disk end the command without a traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # Apple GPUs lack gradients that maxim needs
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, for example by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may have letters that it cannot encode
    # Processes of torchrun keep the default handler, which ends them at once, even while they wait for each other.
    if "RANK" not in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            answer(words)
        finally:  # also after sys.exit
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        raise SystemExit(143 if error.args else 130) from None  # a shell's exit codes for SIGTERM and Ctrl-C
    except OSError as error:  # a closed pipe, as in `metamix models | head`, or a full disk
        with suppress(io.UnsupportedOperation):  # in a notebook, stdout has no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit succeeds
        raise SystemExit(141 if isinstance(error, BrokenPipeError) else f"error: {error}") from None


def terminate(number: int, frame: object) -> None:
    """Treat SIGTERM like Ctrl-C, so that a command removes temporary files and writes the results that it has."""
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
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # from Pillow; our readers reject the image
        sys.argv[0] = f"metamix {command}"  # the program's name in the subcommand's --help
        import_module(COMMANDS[command][0]).main(rest)
