"""Register tasks, and read the options of their commands.

In code outside the folders of the tasks, only this file names the tasks of the package.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from metamix.models import official
from metamix.utils.checks import check_choice
from metamix.utils.options import no_option, parse_command

from .spec import TaskSpec, import_part

DEFAULT = "classification"
TASKS: dict[str, TaskSpec | str] = {  # a spec, or "module:name" of a spec
    name: f"metamix.{name}.spec:SPEC" for name in ("classification", "detection", "segmentation", "restoration")
}
PUBLIC = {  # functions of the package `metamix` that belong to a task, and where they are
    "load_classifier": "metamix.classification.load:load_classifier",
    "load_detector": "metamix.detection.load:load_detector",
    "load_restorer": "metamix.restoration.load:load_restorer",
    "load_segmenter": "metamix.segmentation.load:load_segmenter",
    "save_classifier": "metamix.classification.save:save_classifier",
}
official.MODULES.append("metamix.segmentation.official")


def register_task(spec: TaskSpec) -> None:
    """Register a task for all commands; raise ValueError if another task has its name."""
    if spec.name in TASKS and find_task(spec.name) != spec:
        raise ValueError(f"there is already a task {spec.name!r}: choose another name")
    TASKS[spec.name] = spec


def find_task(name: str) -> TaskSpec:
    """Return the spec of the task `name`; raise ValueError if there is none."""
    check_choice("task", name, TASKS, "For a task of your own, give --import MODULE, or import its module in Python.")
    spec = TASKS[name]
    return import_part(spec) if isinstance(spec, str) else spec


def list_tasks() -> str:
    """Return a line for each task: its name and what its models do."""
    return "\n".join(f"  {name:<16}{find_task(name).about}" for name in TASKS)


def parse_task_command(
    spec: TaskSpec, part: str, words: Sequence[str], about: str, *, advise: bool = False
) -> tuple[Any, set[str]]:
    """Read the options of a task's part, such as "predict"; return them and the names of the given options.

    `about` is the text of --help. `no_option` explains `advise`.
    """
    unknown = partial(
        no_option, task=spec.name, tasks=TASKS, task_options=lambda name: find_task(name).part(part), advise=advise
    )
    return parse_command(words, spec.part(part), f"metamix {part}", description=about, unknown=unknown)
