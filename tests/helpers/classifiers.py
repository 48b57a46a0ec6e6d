"""Make a classification task whose model takes milliseconds per step."""

from metamix.classification.options import ClassificationOptions
from metamix.classification.task import Classification

SMALL = {"model": "metaformer_identity_tiny", "model_args": {"depths": [1, 1, 1], "dims": [8, 8, 16]}}


def small_task(**options):
    return Classification(ClassificationOptions(**SMALL | options))
