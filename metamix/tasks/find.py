"""Find the task of options, weights, a model, a folder or a data set."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm

from metamix.deploy.artifact import load_artifact
from metamix.utils.text import did_you_mean
from metamix.weights.files import ARTIFACT, WEIGHTS, load_metadata, newest_weights
from metamix.weights.find import find_weights
from metamix.weights.metadata import ModelMetadata

from .registry import DEFAULT, TASKS, find_task


def task_of_options(options: Mapping[str, Any]) -> str:
    """Return the task of the `checkpoint` or of the `model` that a recipe or a command line names.

    If neither shows a task, or the checkpoint cannot be read, the task is `DEFAULT`.

    Raises:
        ValueError: the checkpoint is an exported model.
    """
    # A value that is not text, such as a list of models in a recipe, is refused when the options are read.
    texts = {name: value for name, value in options.items() if isinstance(value, str)}
    checkpoint, model = texts.get("checkpoint"), texts.get("model")
    if task := task_of_model(model):
        return task
    if checkpoint and is_exported(checkpoint):
        newest_weights(Path(checkpoint))  # raises ValueError, which says what to do instead
    with suppress(OSError, ValueError):  # a run that is resumed does not need the file
        return task_of(checkpoint, model)[0] if checkpoint else DEFAULT
    return DEFAULT


def task_of(source: str, model: str | None = None) -> tuple[str, Path | None]:
    """Return the task of weights, and the path of their file, their run folder or the folder of the exported model.

    The path is None if the task's `load` takes the name instead: for published weights, and for every name of a
    restoration model. Arguments and errors are as in `metamix.load`.
    """
    if is_exported(source):
        return load_artifact(source).model.task or DEFAULT, Path(source)
    if task := task_of_model(source):
        return task, None
    try:
        path = find_weights(source)
    except FileNotFoundError:
        if "/" in source or Path(source).suffix in (".safetensors", ".pt", ".pth", ".npz"):
            raise
        if not timm.is_model(source):
            suggestion = did_you_mean(source, [*timm.list_models(), *os.listdir()])
            raise FileNotFoundError(f"there is no file, run folder or model {source}{suggestion}") from None
        return DEFAULT, None
    return task_of_weights(path, model), path


def task_of_weights(path: Path, model: str | None = None) -> str:
    """Return the task of a weight file or a run folder; `model` names its model if the file does not."""
    foreign = path.is_file() and path.suffix not in (".safetensors", ".pt", ".pth")
    if foreign and (task := next((task for task in TASKS if path.suffix in find_task(task).suffixes), None)):
        return task
    file = path / WEIGHTS if (path / WEIGHTS).exists() else path  # all weight files of a run name the same task
    metadata = ModelMetadata.from_dict(load_metadata(file), file)
    return metadata.task or task_of_model(model) or task_of_model(metadata.model) or DEFAULT


def task_of_model(name: str | None) -> str | None:
    """Return the task of a model that only one task trains; None for others. The first of several names counts."""
    base = (name or "").partition(",")[0].partition(".")[0]
    specs = [spec for spec in map(find_task, TASKS) if spec.models]
    return next((spec.name for spec in specs if base in spec.part("models")()), None)


def task_of_data(name: str, folder: str | None = None) -> str | None:
    """Return the task that reads a data set of this name or a folder of this layout; None if neither shows the task."""
    named = next((task for task in TASKS if name in find_task(task).data_sets), None)
    return named or task_of_folder(name) or task_of_folder(folder, alone=True)


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


def is_exported(place: str | Path | None) -> bool:
    """Return whether a path is a folder that `metamix export` wrote."""
    return place is not None and (Path(place) / ARTIFACT).is_file()


def check_trust(trust: bool, sources: Iterable[str | Path]) -> None:
    """Raise ValueError if --trust is given, but none of the models is exported."""
    if trust and not any(map(is_exported, sources)):
        raise ValueError("--trust is for exported models, and weight files run no code: leave it out")
