"""Test the numbers and the limits in the report that compares the outputs of two models."""

import pytest
import torch

from metamix.deploy.report import Difference

EXPECTED = torch.tensor([[1.0, 3.0], [5.0, 3.0]])  # their mean is 3 and their variance is 2


def compare(precision, change, ranked=False):
    difference = Difference(precision, ranked)
    for expected, actual in zip(EXPECTED.split(1), (EXPECTED + torch.tensor(change)).split(1)):
        difference.update(expected, actual)
    return difference


def test_differences_are_relative_to_the_deviation():
    assert compare("fp32", [[0.1, 0.0], [0.0, 0.0]], ranked=True).result() == {
        "images": 2,
        "largest_difference": pytest.approx(0.1, rel=1e-5),
        "of_the_deviation": pytest.approx(0.1 / 2**0.5, rel=1e-5),
        "rms_of_the_deviation": pytest.approx(0.05 / 2**0.5, rel=1e-5),
        "same_top1": 1,
    }


@pytest.mark.parametrize(
    "precision, change, words",
    [
        ("fp32", 1.3e-4, None),
        ("fp32", 1.5e-4, "the outputs differ by up to 0.00011 of their standard deviation, and the limit is 0.0001"),
        ("bf16", 0.13, None),  # one of four values differs: 0.13 / 2 / 1.41 is 0.046
        ("bf16", 0.15, "the root mean square of the difference is 0.053 of the outputs' standard deviation, and"),
        ("int8", 3.0, None),
        ("fp32", float("nan"), "the outputs differ by up to inf of their standard deviation"),
    ],
)
def test_limits_of_each_precision(precision, change, words):
    problems = compare(precision, [[change, 0.0], [0.0, 0.0]]).problems()
    assert len(problems) == (words is not None) and (not problems or problems[0].startswith(words))


@pytest.mark.parametrize("noun", ["images", "pixels"])
def test_fp32_keeps_the_most_probable_class(noun):
    expected, actual = (torch.tensor([[score, 1 + 1e-6], [1.0, 0.0]]) for score in (1.0, 1 + 2e-6))
    if noun == "pixels":  # (n, classes, H, W)
        expected, actual = expected.T[None, :, None], actual.T[None, :, None]
    difference = Difference("fp32", ranked=True)
    difference.update(expected, actual)
    assert difference.problems() == [f"the most probable class is the same for 50.00% of the {noun} (limit 99.9%)"]
