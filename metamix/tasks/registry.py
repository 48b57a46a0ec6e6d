"""Register tasks, and find the task of a name, a weight file or a data set.

In code outside the folders of the tasks, only this file names the tasks of the package.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metamix.models import official
from metamix.utils.checks import check_choice
from metamix.utils.options import no_option, parse_command
from metamix.weights.files import ARTIFACT, WEIGHTS, load_metadata
from metamix.weights.metadata import ModelMetadata

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

    `about` is the text of --help; `advise` is as for `no_option`.
    """
    unknown = partial(
        no_option, task=spec.name, tasks=TASKS, task_options=lambda name: find_task(name).part(part), advise=advise
    )
    return parse_command(words, spec.part(part), f"metamix {part}", description=about, unknown=unknown)


def task_of_model(name: str | None) -> str | None:
    """Return the only task that trains a model, which is named with or without a tag; None for other models."""
    base = (name or "").partition(".")[0]
    specs = [spec for spec in map(find_task, TASKS) if spec.models]
    return next((spec.name for spec in specs if base in spec.part("models")()), None)


def task_of_weights(path: Path, model: str | None = None) -> str:
    """Return the task of a weight file or a run folder; `model` names its model if the file does not."""
    foreign = path.is_file() and path.suffix not in (".safetensors", ".pt", ".pth")
    if foreign and (task := next((task for task in TASKS if path.suffix in find_task(task).suffixes), None)):
        return task
    file = path / WEIGHTS if (path / WEIGHTS).exists() else path  # all weight files of a run name the same task
    metadata = ModelMetadata.from_dict(load_metadata(file), file)
    return metadata.task or task_of_model(model) or task_of_model(metadata.model) or DEFAULT


def is_exported(place: str | Path | None) -> bool:
    """Return whether a path is a folder that `metamix export` wrote."""
    return place is not None and (Path(place) / ARTIFACT).is_file()


def task_of_folder(folder: str | os.PathLike[str] | None, *, alone: bool = False) -> str | None:
    """Return the task whose data sets have the layout of a folder; None if no task matches.

    If `alone` is true, the folder or one of its splits must hold only the names by which the task is recognised.
    """
    if not folder or not os.path.isdir(folder):
        return None
    places = [folder, *(os.path.join(folder, split) for split in ("train", "val", "test"))]
    listings = [set(os.listdir(place)) for place in places if os.path.isdir(place)]
    return next(
        (
            task
            for task in TASKS
            for group in find_task(task).folders
            if any(names == group if alone else names >= group for names in listings)
        ),
        None,
    )


def task_of_data(name: str, folder: str | None = None) -> str | None:
    """Return the task that reads a data set of this name or a folder of this layout; None if neither shows the task."""
    named = next((task for task in TASKS if name in find_task(task).data_sets), None)
    return named or task_of_folder(name) or task_of_folder(folder, alone=True)
