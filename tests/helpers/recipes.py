"""Parse the words of `metamix train`."""

from metamix.tasks.options import task_of_options
from metamix.tasks.registry import TASKS, find_task
from metamix.training.recipe import parse


def options_of(task):
    return find_task(task).part("task").Options


def parse_recipe(*words):
    """Return the recipe of a command line for any task."""
    return parse([*map(str, words)], TASKS, options_of, default_task=task_of_options, description="")
