"""Test the check of a run's data when it is continued."""

from pathlib import Path

import pytest

from metamix.training.checkpoints import check_identity

IDENTITY = {"classes": ["ant", "bee"], "mean": [0.25, 0.5], "digest": "0123"}


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"classes": ["bee", "ant"]}, "classes"),
        ({"mean": [0.25, 0.51], "digest": "4567"}, "mean, files, labels or boxes"),
    ],
)
def test_other_data_are_refused(saved, words):
    start = f"^run was made with other data; these differ: {words}. Give the data of .*--checkpoint to start from these"
    with pytest.raises(ValueError, match=start):
        check_identity(IDENTITY | saved, IDENTITY, Path("run"))


def test_the_same_data_on_another_processor_are_accepted():
    """On another processor, means of the same images differ in their last digits."""
    check_identity(IDENTITY | {"mean": [0.250001, 0.5]}, IDENTITY, Path("run"))
