"""`metamix verify`: find broken images and bad annotations in a data set before training on it."""

from __future__ import annotations

from collections.abc import Sequence

from metamix.cli.tasks import take_task, task_module
from metamix.utils.text import exit_with_message


def main(argv: Sequence[str]) -> None:
    """Check a data set. Exits with 1 where something is wrong with it.

    metamix verify folder --data-dir images            labelled images (the task classification)
    metamix verify bccd --task detection               annotations in COCO's format
    """
    with exit_with_message(ValueError):
        task, words = take_task(argv)
        module = task_module(task or "classification", "verify")
    raise SystemExit(module.main(words))
