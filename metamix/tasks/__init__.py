"""Tasks: what model, data, loss and score mean. `protocol.Task` says what the engine asks of one."""

from importlib import import_module
from typing import Any

TASKS = {
    "classification": "metamix.tasks.classification:Classification",
    "detection": "metamix.tasks.detection:Detection",
}


def find_task(name: str) -> Any:
    """The class of a task; its file is imported only here, so a task may need what others do not."""
    module, cls = TASKS[name].split(":")
    return getattr(import_module(module), cls)
