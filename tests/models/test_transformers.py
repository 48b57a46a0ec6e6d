"""Test our models in Hugging Face transformers: a saved and loaded backbone, and a DETR that also trains a step."""

import pytest
import torch
from safetensors.torch import load_file

from metamix.models.metaformer_family import SIZES

NANO = list(SIZES["nano"]["dims"])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install 'metamix[transformers]'")


def config(transformers, name, out_indices, **kwargs):
    kwargs |= dict(backbone=name, out_indices=out_indices, use_pretrained_backbone=False)
    return transformers.TimmBackboneConfig(**kwargs)


@pytest.mark.parametrize(
    "name, out_indices, channels",
    [
        ("metaformer_raft_nano", (0, 1, 2), NANO),
        ("metaformer_wavemix_nano", (1, 2), NANO[1:]),
        ("ninformer_cifar", (3,), [256]),
    ],
)
def test_a_saved_backbone_gives_the_same_features_when_loaded(transformers, tmp_path, name, out_indices, channels):
    backbone = transformers.TimmBackbone(config(transformers, name, out_indices, freeze_batch_norm_2d=True)).eval()
    backbone.save_pretrained(tmp_path)
    again = transformers.TimmBackbone(transformers.TimmBackboneConfig.from_pretrained(tmp_path)).eval()
    image = torch.rand(1, 3, 40, 64)
    assert backbone.channels == again.channels == channels
    assert not torch.equal(again(image).feature_maps[0], backbone(image).feature_maps[0])
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for a, b in zip(backbone(image).feature_maps, again(image).feature_maps, strict=True):
        assert torch.equal(a, b)


def test_a_detr_trains_a_step_and_is_saved_and_loaded(transformers, tmp_path):
    small = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5)
    small |= dict(encoder_attention_heads=2, decoder_attention_heads=2)
    torch.manual_seed(0)
    small |= dict(backbone_config=config(transformers, "metaformer_minattn_nano", (2,)), num_labels=3)
    small |= dict(backbone=None, use_timm_backbone=False, use_pretrained_backbone=False)  # version 5 would add a ResNet
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(**small))
    image = torch.rand(2, 3, 48, 64)
    labels = [
        dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.3, 0.2]])),
        dict(class_labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4)),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = model(image, labels=labels).loss
    before.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    optimizer.step()

    model.eval().save_pretrained(tmp_path)
    again = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(image).logits, model(image).logits)
        assert torch.equal(again(image).pred_boxes, model(image).pred_boxes)
