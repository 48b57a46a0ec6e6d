"""`metamix predict`: label images, or find objects in them, with the model of a run folder or a weight file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from metamix.cli.tasks import split_task, task_module
from metamix.models.metadata import ModelMetadata
from metamix.models.weights import find_weights
from metamix.utils.tensor_files import load_weights
from metamix.utils.text import exit_with_message

DESCRIPTION = """usage: metamix predict IMAGE_OR_FOLDER... --checkpoint RUN_OR_FILE [options]

What is predicted follows from the checkpoint: labels with probabilities (classification) or boxes (detection).
For the options of a task: metamix predict --task classification --help, metamix predict --task detection --help"""


def main(argv: Sequence[str]) -> None:
    """Hand the command line to the task that trained the checkpoint. Exits with 1 where an image cannot be read."""
    task, words = split_task(argv)
    if task is None:
        checkpoint = _checkpoint(words)
        if checkpoint is None:
            print(DESCRIPTION)
            raise SystemExit(0 if {"-h", "--help"} & set(words) else 2)
        with exit_with_message(ValueError, OSError):
            _, raw = load_weights(find_weights(checkpoint))
            task = ModelMetadata.from_dict(raw, checkpoint).task or "classification"
    with exit_with_message(ValueError):
        module = task_module(task, "predict")
    raise SystemExit(module.main(words))


def _checkpoint(words: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint")
    return parser.parse_known_args(words)[0].checkpoint
