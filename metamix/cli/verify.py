"""`metamix verify`: find broken images and bad annotations in a data set before training on it."""

from __future__ import annotations

from collections.abc import Sequence

from metamix.tasks.registry import take_task, task_module
from metamix.utils.text import exit_with_message

DESCRIPTION = """usage: metamix verify DATA [--task NAME] [options]

  metamix verify folder --data-dir images       labelled images (the task classification)
  metamix verify bccd --task detection          annotations in COCO's format
  metamix verify scenes --task segmentation     images and masks
  metamix verify pairs --task restoration       pairs of images, or clean images with --clean

Every problem is printed. The exit code is 1 if there is one. For all options: metamix verify --task NAME --help."""


def main(argv: Sequence[str]) -> None:
    """Check a data set. Exits with 1 if something is wrong with it."""
    with exit_with_message(ValueError):
        task, words = take_task(argv)
        if task is None and (not words or {"-h", "--help"} & set(words)):
            print(DESCRIPTION)
            raise SystemExit(0 if words else 2)
        module = task_module(task or "classification", "verify")
    raise SystemExit(module.main(words))
