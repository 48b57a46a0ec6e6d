"""Read finished runs and compare their recipes."""

from dataclasses import MISSING, Field, fields
from pathlib import Path

import yaml

from benchmarks.paths import read_json
from metamix.tasks.registry import find_task
from metamix.training.recipe import EngineOptions


def read_run(run: Path) -> tuple[dict, dict]:
    """Read the summary and the recipe of a run; raise ValueError if the run is not finished."""
    if not (run / "summary.json").is_file():
        raise ValueError(f"{run} has no summary.json: give the folder of a finished run of train.py")
    return read_json(run / "summary.json"), yaml.safe_load((run / "recipe.yaml").read_text())


def options_of(task: str) -> list[Field]:
    """Return the options of the engine and of a task."""
    return [field for options in (EngineOptions, find_task(task).part("task").Options) for field in fields(options)]


def free_options(task: str) -> set[str]:
    """Return the options that do not change a result, such as the run folder, the device and logging."""
    return {field.name for field in options_of(task) if field.metadata["on_resume"] == "ignore"}


def differences(recipe: dict, other: dict) -> dict:
    """Return the options in which `other` differs from `recipe`, with the values of `other`.

    The seed and options that do not change a result are not compared. A recipe without a task is for classification. If
    a recipe lacks an option, the option's default is compared.
    """
    recipe, other = ({"task": "classification"} | each for each in (recipe, other))
    task = recipe["task"]
    options = options_of(task)
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in options}
    recipe, other = (defaults | each for each in (recipe, other))
    keys = sorted((recipe.keys() | other.keys()) - free_options(task) - {"seed"})
    return {key: other.get(key) for key in keys if other.get(key) != recipe.get(key)}
