"""Find the tasks that commands know by name, and their parts. `metamix.training.task` defines what a task is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from metamix.models import official
from metamix.training.task import TaskClass
from metamix.utils.text import did_you_mean
from metamix.utils.user_modules import add_imports, import_modules

official.MODULES.append("metamix.segmentation.official")

TASKS = {  # the package under metamix: the class in its task.py
    "classification": "Classification",
    "detection": "Detection",
    "restoration": "Restoration",
    "segmentation": "Segmentation",
}
LESS_MEMORY = {  # what to do if scoring or prediction needs more than there is
    "classification": "give a smaller --batch-size",
    "detection": "give --device cpu, or smaller images",
    "restoration": "give smaller tiles, such as --tile 256",
    "segmentation": "give smaller tiles, such as --tile 256",
}


def find_task(name: str) -> TaskClass:
    """Return the class of a task. Its module is imported only now: a task may need extras that others do not."""
    return getattr(task_module(name, "task"), TASKS[name])


def train_options(name: str) -> type:
    """Return the dataclass of a task's options in `metamix train`."""
    return find_task(name).Options


def eval_options(name: str) -> type:
    """Return the dataclass of a task's options in `metamix eval`."""
    return find_task(name).EvalOptions


def task_module(name: str, part: str) -> ModuleType:
    """Import a part of a task, such as "predict".

    Raises:
        ValueError: there is no task of that name.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}{did_you_mean(name, TASKS)} Tasks: {', '.join(TASKS)}.")
    return import_module(f"metamix.{name}.{part}")


def take_task(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `--task NAME` and `--import MODULE` out of a command line, and import the modules.

    Returns:
        The task's name, None if it is not given, and the other arguments.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    add_imports(parser)
    known, rest = parser.parse_known_args(argv)
    import_modules(known.imports)
    return known.task, rest
