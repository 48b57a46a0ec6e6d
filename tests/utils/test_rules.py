"""Test the rules that options and entries of files must follow."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field

from metamix.cli.evaluate import EvalOptions
from metamix.tasks.registry import TASKS, find_task
from metamix.training.recipe import EngineOptions
from metamix.utils.options import Options
from metamix.utils.rules import Count, Natural, NotNegative, Share, check_entries, fits, one_of, rule, rules_of, where


@dataclass
class Toys(Options):
    """Options with one rule of each kind."""

    size: Annotated[int, Field(ge=1, le=16)] = 4
    count: Count | None = None
    border: Natural | Literal["auto"] = "auto"
    share: Share = 0.5
    weight: NotNegative = 1.0
    name: str = "any"


@pytest.mark.parametrize(
    "values",
    [{"size": 16}, {"count": 3}, {"border": 0}, {"share": 1}, {"weight": 1e300}, {"name": ""}, {"name": Path("a")}],
)
def test_values_that_follow_the_rules_are_accepted(values):
    assert vars(Toys(**values)).items() >= values.items()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"size": 17}, "size is 17, but it must be a whole number from 1 to 16.$"),
        ({"size": 4.0}, "size is 4.0, but it must be a whole number"),
        ({"size": True}, "size is True, but"),
        ({"size": np.int64(4)}, "size is (4|np.int64.4.), but"),
        ({"name": 3}, "name is 3, but it must be a string.$"),
        ({"size": None}, "size is None, but"),
        ({"count": 0}, "count is 0, but it must be a whole number of at least 1, or none.$"),
        ({"border": "atuo"}, "border is 'atuo', .* a whole number of at least 0, or auto; did you mean 'auto'"),
        ({"share": 1.5}, "share is 1.5, but it must be a number from 0 to 1.$"),
        ({"share": math.nan}, "share is nan, but"),
        ({"weight": math.inf}, "weight is inf, but it must be a finite number of at least 0.$"),
        ({"weight": 10**400}, r"weight is 1000.*\.\.\., but it must be a finite number of at least 0.$"),
    ],
)
def test_values_that_break_a_rule_are_refused(values, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        Toys(**values)


TASK_CLASSES = [find_task(task).part("task") for task in TASKS]
OPTIONS = [EngineOptions, EvalOptions, *(c.Options for c in TASK_CLASSES), *(c.EvalOptions for c in TASK_CLASSES)]


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_every_class_of_options_checks_its_rules(cls):
    required = {"data_dir": "images"}.items() & {(name, "images") for name in cls.__dataclass_fields__}
    names = [name for name, limits in rules_of(cls).items() if not fits(-1, limits)]
    assert len(names) > 5
    for name in names:
        with pytest.raises(ValueError, match=f"^{name} is -1, but it must be "):
            cls(**dict(required) | {name: -1})


def test_entries_of_a_file_are_checked():
    rules = {
        "kind": rule(Annotated[str, one_of({"small": 1, "large": 2})]),
        "sizes": rule(Annotated[tuple[int, ...], where(lambda sizes: len(sizes) < 3, "one or two numbers")]),
    }
    check_entries({"kind": "small", "sizes": [1], "more": 3}, rules, "a.json")
    with pytest.raises(ValueError, match=r"^a.json: sizes is missing in the metadata\. Give a file that metamix"):
        check_entries({"kind": "small"}, rules, "a.json")
    with pytest.raises(ValueError, match=r"^a.json: kind is 'smal', .*; did you mean 'small'\? Export again$"):
        check_entries({"kind": "smal"}, rules, "a.json", None, "Export again")
    with pytest.raises(ValueError, match=r"sizes in the metadata is \[1, 2, 3\], but it must be one or two numbers\."):
        check_entries({"kind": "small", "sizes": [1, 2, 3]}, rules, "a.json")
