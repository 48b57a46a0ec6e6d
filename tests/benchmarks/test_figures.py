"""Test the pictures that are drawn from results/ and the cards."""

import pytest
from PIL import Image

from benchmarks.report import figures
from benchmarks.report.speed import scaling_curves
from benchmarks.weight_cards import by_mixer, load_cards


def test_front():
    points = [(3, 90), (1, 80), (2, 85), (2, 70), (4, 88)]
    assert figures.front(points) == [(1, 80), (2, 80), (2, 85), (3, 85), (3, 90)]


@pytest.mark.usefixtures("rendered_figures")
def test_curves_skip_cards_and_epochs_without_scores(tmp_path):
    curve = {"train_loss": [2.0, 1.0, 0.5], "holdout_top1": [50.0, 60.0, None]}
    unscored = {"train_loss": [2.0, 1.0], "holdout_top1": [None, None]}
    family = by_mixer(load_cards("digits"))
    cards = {mixer: {key: value for key, value in family[mixer].items() if key != "curve"} for mixer in family}
    cards["identity"]["curve"], cards["raft"]["curve"] = curve, unscored
    figures.draw_curves(tmp_path / "curves.png", cards)
    assert min(Image.open(tmp_path / "curves.png").size) > 700


@pytest.mark.usefixtures("rendered_figures")
def test_front_and_scaling_are_drawn(tmp_path):
    family = by_mixer(load_cards("cifar10"))
    figures.draw_front(tmp_path / "front.png", family, {mixer: (i + 1.0, 88.0) for i, mixer in enumerate(family)})
    figures.draw_scaling(tmp_path / "scaling.png", scaling_curves())
    for name in ("front.png", "scaling.png"):
        assert min(Image.open(tmp_path / name).size) > 700
