"""Make a classification task whose model takes milliseconds per step."""

from types import SimpleNamespace

from metamix.classification.options import ClassificationOptions
from metamix.classification.task import Classification

NO_TEACHER = SimpleNamespace(frozen_helpers=())  # stands in for the model part of a task
SMALL = {"model": "metaformer_identity_tiny", "model_args": {"depths": [1, 1, 1], "dims": [8, 8, 16]}}


def small_task(**options):
    return Classification(ClassificationOptions(**SMALL | options))
