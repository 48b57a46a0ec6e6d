"""Test that the classes of the tasks fit the protocols of the engine; mypy checks their types, see pyproject.toml."""

from metamix.classification.task import Classification
from metamix.detection.task import Detection
from metamix.restoration.task import Restoration
from metamix.segmentation.task import Segmentation
from metamix.tasks.registry import TASKS, find_task
from metamix.training.task import TaskClass

CLASSES: list[TaskClass] = [Classification, Detection, Segmentation, Restoration]


def test_these_are_the_classes_of_all_tasks():
    assert {find_task(name).part("task") for name in TASKS} == set(CLASSES)
