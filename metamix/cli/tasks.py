"""The tasks of the command line. `metamix.training.task` defines what a task is."""

from importlib import import_module

from metamix.training.task import TaskClass

TASKS = {
    "classification": "metamix.classification.task:Classification",
    "detection": "metamix.detection.task:Detection",
}


def find_task(name: str) -> TaskClass:
    """The class of a task; its file is imported only here, so a task may need what others do not."""
    module, cls = TASKS[name].split(":")
    return getattr(import_module(module), cls)
