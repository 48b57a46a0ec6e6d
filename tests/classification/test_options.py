"""Ranges and contradictions of the options."""

import pytest

from metamix.classification.options import ClassificationOptions
from tests.helpers.classifiers import small_task


def test_weights_of_no_teacher_are_refused():
    with pytest.raises(ValueError, match="teacher_checkpoint is t.pt, but no --teacher names its model"):
        small_task(teacher_checkpoint="t.pt")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"smoothing": 1.0}, "smoothing is 1.0, but it must be a number of at least 0 and below 1"),
        ({"drop_path": 1.0}, "drop_path is 1.0, but it must be a number of at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature is 0.0, but it must be a finite number above 0"),
        ({"temperature": float("inf")}, "temperature is inf, but it must be a finite number above 0"),
        ({"mixup": float("inf")}, "mixup is inf, but it must be a finite number"),
        ({"pretrained": True, "checkpoint": "f"}, r"pretrained and checkpoint \(f\) both say where .*: give one"),
        ({"flip": 2.0}, "flip is 2.0, but it must be a number from 0 to 1"),
        ({"model_args": {"img_size": 64}}, "model_args has img_size, which comes from --img-size; leave it out"),
        ({"model_args": {"num_classes": 3}}, "model_args has num_classes, which comes from the data; leave it out"),
        (
            {"model_args": {"drop_path_rate": 0.3}, "drop_path": 0.1},
            "model_args has drop_path_rate, which comes from --drop-path; leave it out",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClassificationOptions(**options)
