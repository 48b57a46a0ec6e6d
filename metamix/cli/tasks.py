"""The tasks of the command line. `training.task.Task` is their protocol."""

from importlib import import_module
from typing import Any

TASKS = {
    "classification": "metamix.classification.task:Classification",
    "detection": "metamix.detection.task:Detection",
}


def find_task(name: str) -> Any:
    """The class of a task; its file is imported only here, so a task may need what others do not."""
    module, cls = TASKS[name].split(":")
    return getattr(import_module(module), cls)
