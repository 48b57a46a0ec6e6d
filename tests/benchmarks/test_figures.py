"""Test the pictures that are drawn from results/ and the cards."""

import pytest
from PIL import Image

from benchmarks.report import figures
from benchmarks.report.speed import scaling_curves
from benchmarks.weight_cards import by_mixer, load_cards


def test_the_front_is_a_staircase_of_the_best_score_up_to_each_cost():
    points = [(3, 90), (1, 80), (2, 85), (2, 70), (4, 88)]
    assert figures.front(points) == [(1, 80), (2, 80), (2, 85), (3, 85), (3, 90)]


@pytest.mark.usefixtures("rendered_figures")
def test_fronts_curves_and_scaling_are_drawn(tmp_path):
    family = by_mixer(load_cards("cifar10"))
    costs = {"latency, ms": {mixer: (i + 1.0, 88.0) for i, mixer in enumerate(family)} | {"another": (3.5, 90.0)}}
    figures.draw_fronts(tmp_path / "front.png", "accuracy, %", costs | {"left out": {}})
    figures.draw_curves(tmp_path / "curves.png", family)
    figures.draw_scaling(tmp_path / "scaling.png", scaling_curves())
    for name in ("front.png", "curves.png", "scaling.png"):
        assert min(Image.open(tmp_path / name).size) > 700


def test_transfer_points_have_plausible_times_and_scores():
    points = figures.transfer_points("camvid")
    assert {"pooling", "wavemix"} <= set(points)
    assert all(1 < ms < 10 and 30 < score < 90 for ms, score in points.values())
