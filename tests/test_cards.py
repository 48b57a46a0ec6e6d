"""What the cards in weights/ say holds: the shipped tensors reproduce their accuracy to the printed digit."""

import json

import pytest
import timm
import torch

import metamix  # noqa: F401 - registers the models with timm
from metamix.data import DataOptions, Normalize, eval_loader, open_data
from metamix.models.build import weights_dir
from metamix.tasks.classification import load_pretrained

CARDS = {path.stem: json.loads(path.read_text()) for path in sorted(weights_dir().glob("*.json"))}
MIXERS = ("identity", "pooling", "raft", "maxim", "wavemix", "nin", "minattn")
DIGITS = [f"metaformer_{mixer}_nano.digits" for mixer in MIXERS]


def test_every_mixer_has_learned_the_digits():
    assert set(DIGITS) <= set(CARDS)


def test_weights_are_small():
    sizes = [path.stat().st_size for path in weights_dir().glob("*.safetensors")]
    assert max(sizes) < 10e6 and sum(sizes) < 40e6


@pytest.mark.parametrize("name", DIGITS)
def test_the_stored_16_bits_load_at_another_size(name):
    """Through timm, and through the fine-tuning of train.py: the same tensors."""
    model = timm.create_model(name, pretrained=True, img_size=(48, 40))
    other = timm.create_model(name, img_size=(48, 40))
    path = weights_dir() / f"{name}.safetensors"
    assert load_pretrained(other, str(path), list("0123456789")) == []
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    assert model.eval()(torch.zeros(1, 1, 48, 40)).isfinite().all()


@pytest.mark.parametrize("name", DIGITS)
def test_accuracy(name):
    card = CARDS[name]
    model = timm.create_model(name, pretrained=True).eval()
    cfg, options = model.pretrained_cfg, DataOptions(data="digits")
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    normalize = Normalize(mean=cfg["mean"], std=cfg["std"])
    right = total = 0
    with torch.no_grad():
        for batch in eval_loader(open_data("digits").test, options, batch_size=360, rank=0, world=1):
            right += (model(normalize(batch)["image"]).argmax(1) == batch["label"]).sum().item()
            total += len(batch["label"])
    assert total == 360
    assert f"{100 * right / total:.2f}" == f"{card['top1']:.2f}"
