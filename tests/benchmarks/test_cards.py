"""Test the cards in weights/: their accuracy, their training command, and the pages that are made from them.

To score weights that were not trained on scikit-learn's digits, set METAMIX_DATA to a folder that holds MNIST/ in
torchvision's layout, tiny-imagenet-200/, and cifar10/ with class folders.
"""

import os
import shlex
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml

import metamix
from benchmarks.paths import ROOT
from benchmarks.report.cards import command, page, stale
from benchmarks.scoring import load, score, task_of
from benchmarks.weight_cards import load_cards
from metamix.data import open_data
from metamix.tasks.network import load_initial_weights
from metamix.weights.files import load_weights
from metamix.weights.find import read_weights, weights_dir
from tests.helpers.counting import count_macs_of_equal_blocks
from tests.helpers.recipes import parse_recipe

CARDS = {card["name"]: card for card in load_cards()}
DIGITS = "metaformer_pooling_nano.digits"
CIFAR10 = [f"metaformer_{mixer}_nano.cifar10" for mixer in metamix.list_mixers()]
DATA = os.environ.get("METAMIX_DATA")


def test_every_mixer_has_weights():
    assert {*CIFAR10, DIGITS} <= set(CARDS)


def test_weights_are_small():
    """Floating-point weights are stored in float16, except for tensors with values that are too large for it."""
    paths = list(weights_dir().glob("*.safetensors"))
    # A wheel compresses the files to 93 % of their size, and must stay below 95 MB (see test_package.py).
    assert sum(path.stat().st_size for path in paths) < 100e6
    for path in paths:
        for name, tensor in load_weights(path)[0].items():
            too_large = tensor.dtype == torch.float32 and tensor.half().isinf().any()
            assert tensor.dtype in (torch.float16, torch.int64) or too_large, (path, name)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_describes_its_weights(name):
    card = CARDS[name]
    model = timm.create_model(name, pretrained=True)
    assert card["name"] == name
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["macs"] == count_macs_of_equal_blocks(model, card["pretrained_cfg"]["input_size"])
    assert card["data"] and card["samples"]["train"] > card["samples"]["test"] > 0
    assert card["weights"] in ("last", "ema") and card["stored_as"] == "float16"
    assert card["top1"] == pytest.approx(card["seeds"]["0"], abs=0.3)
    assert {"python", "metamix", "torch", "torchvision", "timm"} <= card["versions"].keys()
    assert card["commit"] and card["license"] == "apache-2.0"
    if "cost" in card:  # the cost is measured later, on a machine that runs nothing else
        assert card["cost"]["train_img_per_s"] > 0 and card["cost"]["infer_img_per_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR10)
def test_float16_weights_load_at_another_image_size(name):
    """timm and the fine-tuning of train.py load the same tensors."""
    classes = CARDS[name]["pretrained_cfg"]["label_names"]
    model = timm.create_model(name, pretrained=True, img_size=(48, 40))
    other = timm.create_model(name, img_size=(48, 40))
    path = weights_dir() / f"{name}.safetensors"
    assert load_initial_weights(other, name, *read_weights(path), classes) == f"weights from {name}"
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    assert model.eval()(torch.zeros(1, 3, 48, 40)).isfinite().all()


def data_dir_of(card):
    """Return the folder of the card's data, or None for the digits; skip the test if the data are missing."""
    data, tag = card["recipe"]["data"], card["name"].partition(".")[2]
    if data == "digits":
        return None
    if DATA is None:
        pytest.skip(f"needs {card['data']}: set METAMIX_DATA to the folder that holds it")
    place = str(Path(DATA, tag) if data == "folder" else Path(DATA))
    try:
        open_data(data, root=place)
    except FileNotFoundError as error:
        pytest.skip(f"needs {card['data']}: {error}")
    return place


@pytest.mark.parametrize("name", CARDS)
def test_the_weights_reproduce_the_accuracy_on_the_card(name):
    card = CARDS[name]
    top1, confusion = score(task_of(card, data_dir_of(card)), load(card))
    assert confusion.sum() == card["samples"]["test"]
    assert f"{top1:.2f}" == f"{card['top1']:.2f}"


@pytest.mark.parametrize("card", [*CARDS.values(), *load_cards(task="restoration")], ids=lambda card: card["name"])
def test_the_command_on_the_page_parses_to_the_recipe(card):
    words = shlex.split(command(card).replace("\\\n", " "))
    assert words[:2] == ["python", "train.py"]
    words = [ROOT / word if word.endswith(".yaml") else word for word in words[2:]]
    assert card["recipe"].items() <= parse_recipe(*words).flat().items()


def test_pages_match_the_cards():
    assert stale() == [], "run: python -m benchmarks.report.cards"


@pytest.mark.parametrize("name", CARDS)
def test_hugging_face_can_read_the_header_of_a_card(name):
    """A YAML parser reads the header, and Hugging Face's own library understands its entries."""
    text = (weights_dir() / f"{name}.md").read_text()
    _, header, _ = text.split("---\n", 2)
    parsed, card = yaml.safe_load(header), CARDS[name]
    assert {"license", "library_name", "tags", "datasets", "metrics", "model-index"} <= parsed.keys()
    assert (parsed["library_name"], parsed["license"]) == ("timm", "apache-2.0")
    (result,) = huggingface_hub.ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", card["top1"], card["data"])
    assert result.task_type == "image-classification"
    assert parsed["datasets"] == [result.dataset_type]
    assert result.dataset_type in ("cifar-10", "digits", "mnist", "tiny-imagenet")


def test_the_page_shows_speed_commit_data_and_seeds():
    card = CARDS[DIGITS] | {"data": "CIFAR-10, JPEG copy", "commit": "0123456789ab+"}
    card = {key: value for key, value in card.items() if key != "cost"}
    card["seeds"] = {"0": 90.0, "1": 91.0, "2": 92.0}
    text = page(card)
    assert "| speed | not measured |" in text and "0123456789ab with uncommitted changes" in text
    assert "91.00 ± 1.00 %, mean and standard deviation of seeds 0, 1, 2" in text
    assert "trained at 32x32 pixels on CIFAR-10, JPEG copy" in text and "only one seed was used" not in text
    card["seeds"] = {"0": 90.0}
    assert "| accuracy over seeds | unknown; only one seed was used |" in page(card)


def test_a_page_names_the_scored_split_and_the_accuracy_at_other_sizes():
    text = page(CARDS["metaformer_pooling_tiny.tiny_in200"])
    assert "split: validation" in text and "| validation accuracy | 54.27 % of 10,000 images" in text
    assert "| with another `img_size` | 29.1 % at 64 pixels, 47.1 % at 96 pixels, 56.1 % at 160 pixels" in text
    assert "docs/transfer.md has the command that made `runs/tiny-64`." in text
    assert "| test accuracy |" in page(CARDS[DIGITS])


def test_the_snippet_on_a_page_classifies_digits():
    name = DIGITS
    code = (weights_dir() / f"{name}.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    test = open_data("digits").test
    right = sum(names["classify"](image) == str(label) for image, label in map(test.read, range(100)))
    assert right >= 98
