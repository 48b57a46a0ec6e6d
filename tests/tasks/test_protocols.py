"""List the task classes, so that mypy checks them against the engine's protocols (see pyproject.toml)."""

from metamix.classification.task import Classification
from metamix.detection.task import Detection
from metamix.restoration.task import Restoration
from metamix.segmentation.task import Segmentation
from metamix.tasks.registry import TASKS, find_task
from metamix.training.task import TaskClass

CLASSES: list[TaskClass] = [Classification, Detection, Segmentation, Restoration]


def test_the_list_has_the_class_of_every_task():
    assert {find_task(name).part("task") for name in TASKS} == set(CLASSES)
