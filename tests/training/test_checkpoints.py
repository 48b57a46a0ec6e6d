"""Test when a checkpoint is due, and that a run is continued only with the same data."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from metamix.training.checkpoints import Checkpoints, check_identity, check_resumable
from metamix.training.recipe import EngineOptions, Recipe
from metamix.utils.options import Options

IDENTITY = {"classes": ["ant", "bee"], "mean": [0.25, 0.5], "digest": "0123"}


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"classes": ["bee", "ant"]}, "classes"),
        ({"mean": [0.25, 0.5001], "digest": "4567"}, "mean, files, labels or boxes"),
    ],
)
def test_continuing_with_other_data_is_refused(saved, words):
    start = f"^run was made with other data; these differ: {words}. Give the data of .*--checkpoint to start from these"
    with pytest.raises(ValueError, match=start):
        check_identity(IDENTITY | saved, IDENTITY, Path("run"))


def test_the_error_names_a_smaller_data_set_even_if_the_run_seems_finished():
    recipe = Recipe("toys", EngineOptions(lr=2e-3), Options())
    state = {"recipe": recipe.flat() | {"lr": 1e-3}, "step": 600, "steps_per_epoch": 100, "about": {}}
    with pytest.raises(ValueError, match="100 steps per epoch, but there are now 50: the data have changed"):
        check_resumable(Path("run"), state, recipe, {}, steps_per_epoch=50)


def test_the_same_data_on_another_processor_is_accepted():
    """On another processor, the mean of the same images may differ in its last digits."""
    check_identity(IDENTITY | {"mean": [0.250001, 0.5]}, IDENTITY, Path("run"))


def test_a_checkpoint_is_due_when_the_set_minutes_have_passed(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: seconds)
    monkeypatch.setattr("metamix.training.checkpoints.time", clock)
    seconds = 1000
    checkpoints = Checkpoints(Path("run"), minutes=2)
    seconds = 1119
    assert not checkpoints.due
    seconds = 1120
    assert checkpoints.due
    checkpoints.written(5)
    assert not checkpoints.due
