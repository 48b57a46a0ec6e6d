"""Test the paired comparison of models on shared test images."""

import json

import pytest
import torch

from benchmarks.measure import accuracy
from benchmarks.weight_cards import load_family


def test_mcnemar_counts_images_that_only_one_model_gets_right():
    right = {
        "a": torch.tensor([True] * 9 + [False] * 3),
        "b": torch.tensor([True] * 2 + [False] * 7 + [True] * 1 + [False] * 2),
    }
    (pair,) = accuracy.compare(right)
    assert (pair["only_first"], pair["only_second"]) == (7, 1)
    assert pair["p"] == pytest.approx(2 * (1 + 8) / 2**8, rel=0.01)  # two-sided: 7 or more of 8 coin tosses agree


def test_p_is_1_for_models_that_are_right_on_the_same_images():
    right = torch.tensor([True, False])
    assert accuracy.compare({"a": right, "b": right})[0]["p"] == 1.0


@pytest.mark.slow
def test_shipped_weights_reproduce_their_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "PAIRS", tmp_path / "paired.json")
    monkeypatch.setattr(accuracy, "load_family", lambda tag: {"pooling": load_family(tag)["pooling"]})
    accuracy.main(["pairs", "--tag", "digits"])
    pairs = json.loads(accuracy.PAIRS.read_text())
    assert accuracy.from_hex(pairs["digits"]["top1"]["pooling"]["right"], 360).sum() == 359
    monkeypatch.setattr(accuracy, "is_right", None)  # known weights are not scored again
    accuracy.main(["pairs", "--tag", "digits"])
    assert json.loads(accuracy.PAIRS.read_text()) == pairs


def test_data_that_do_not_give_the_accuracy_on_the_card_are_refused(monkeypatch):
    card = load_family("digits")["pooling"]
    monkeypatch.setattr(accuracy, "is_right", lambda *_, **__: {"one_view": torch.ones(360, dtype=torch.bool)})
    with pytest.raises(ValueError, match="on these data, but its card says 50"):
        accuracy.score_pairs({"pooling": card | {"top1": 50.0}}, None, {})


def test_a_tag_without_the_compared_models_is_refused():
    with pytest.raises(SystemExit, match="'mnist', but the metaformer_.* have the tags cifar10, digits"):
        accuracy.main(["pairs", "--tag", "mnist"])
