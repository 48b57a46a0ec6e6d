"""Read finished runs and compare their recipes."""

import json
from dataclasses import fields
from pathlib import Path

import yaml

from metamix.cli.tasks import find_task
from metamix.training.recipe import EngineOptions


def read_run(run: Path) -> tuple[dict, dict]:
    """Read the summary and the recipe of a run.

    Args:
        run: folder of a finished run of train.py, or the card of a weight file that a run made.

    Raises:
        ValueError: the run is not finished.
    """
    if run.suffix == ".json":
        card = json.loads(run.read_text())
        return card, card["recipe"]
    if not (run / "summary.json").is_file():
        raise ValueError(f"{run} has no summary.json: give the folder of a finished run of train.py")
    return json.loads((run / "summary.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())


def free_options(task: str) -> set[str]:
    """Return the options that do not change a result: where a run writes, on which device, how it is logged."""
    return {
        field.name
        for options in (EngineOptions, find_task(task).Options)
        for field in fields(options)
        if field.metadata["on_resume"] == "free"
    }


def differences(recipe: dict, other: dict) -> dict:
    """Return the options in which `other` differs from `recipe`, with its values. The seed is not compared."""
    ignored = free_options(recipe.get("task", "classification")) | {"seed"}
    return {key: value for key, value in other.items() if key not in ignored and value != recipe.get(key)}
