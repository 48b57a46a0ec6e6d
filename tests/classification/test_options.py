"""Test ranges and contradictions of the options."""

import pytest

from metamix.classification.options import ClassificationOptions


@pytest.mark.parametrize(
    "options, said",
    [
        ({"smoothing": 1.0}, "smoothing is 1.0, but it must be a number of at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature is 0.0, but it must be a finite number above 0"),
        ({"model_args": {"num_classes": 3}}, "model_args has num_classes, which comes from the data; leave it out"),
        ({"model_args": {"drop_path_rate": 0.3}, "drop_path": 0.1}, "has drop_path_rate, which comes from --drop-path"),
        ({"teacher_checkpoint": "t.pt"}, "teacher_checkpoint is t.pt, but no model is given: add --teacher"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClassificationOptions(**options)
