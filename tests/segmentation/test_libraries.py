"""Test our backbones in segmentation_models_pytorch and in Hugging Face's UPerNet."""

import pytest
import torch

import metamix  # noqa: F401  registers the models
from metamix.segmentation.heads import UPerHead

S12 = dict(encoder_name="tu-metaformer_pooling_s12", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
NANO = dict(encoder_name="tu-metaformer_raft_nano", depths=(1, 1, 1), dims=(8, 8, 16), encoder_depth=3)
NARROW = dict(
    Unet=dict(decoder_channels=(16, 16, 8, 8, 8)),
    FPN=dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32),  # its norms have 32 groups
    UPerNet=dict(decoder_channels=8),
    Segformer=dict(decoder_segmentation_channels=8),
)


@pytest.mark.parametrize("encoder", [S12, NANO], ids=["s12", "nano"])
@pytest.mark.parametrize("head", NARROW)
def test_heads_of_segmentation_models_pytorch_train_our_backbones(head, encoder):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install 'metamix[segmentation]'")
    options = dict(NARROW[head])
    if encoder is NANO:  # its maps have strides 2, 4 and 8
        options |= dict(Unet=dict(decoder_channels=(16, 8, 8)), FPN=dict(upsampling=1)).get(head, {})
    model = getattr(smp, head)(**encoder, **options, encoder_weights=None, classes=4)
    images = torch.rand(2, 3, 64, 96)
    scores = model(images)
    assert scores.shape == (2, 4, 64, 96)
    scores.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def upernet(channels, **options):
    transformers = pytest.importorskip("transformers", reason="pip install 'metamix[transformers]'")
    backbone = transformers.TimmBackboneConfig(
        backbone="metaformer_wavemix_nano", use_pretrained_backbone=False, out_indices=[0, 1, 2]
    )
    config = transformers.UperNetConfig(backbone_config=backbone, num_labels=4, hidden_size=channels, **options)
    return transformers.UperNetForSemanticSegmentation(config)


def test_hugging_faces_upernet_trains_our_backbone():
    model = upernet(16, auxiliary_channels=8, auxiliary_in_channels=192)
    result = model(torch.rand(2, 3, 48, 64), labels=torch.randint(0, 4, (2, 48, 64)))
    assert result.logits.shape == (2, 4, 48, 64)
    result.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@torch.no_grad()
def test_our_upernet_equals_the_upernet_of_hugging_face():
    theirs = upernet(16, use_auxiliary_head=False).decode_head.eval().double()
    ours = UPerHead(theirs.in_channels, 4, channels=16).eval().double()
    pooled = [block.layers[1] for block in theirs.psp_modules.blocks]
    pairs = [(ours.bottleneck, theirs.bottleneck), (ours.fuse, theirs.fpn_bottleneck), *zip(ours.pools, pooled)]
    pairs += [*zip(ours.laterals, theirs.lateral_convs), *zip(ours.outputs, theirs.fpn_convs)]
    for (conv, norm, *_), block in pairs:
        conv.load_state_dict(block.conv.state_dict())
        norm.load_state_dict(block.batch_norm.state_dict())
    ours.classifier.load_state_dict(theirs.classifier.state_dict())
    maps = [torch.rand(1, dim, 24 // 2**i, 16 // 2**i).double() for i, dim in enumerate(theirs.in_channels)]
    assert len(pairs) == 2 + 4 + 2 + 2 and count(ours) == count(theirs)
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-12, atol=1e-12)


def count(module):
    return sum(p.numel() for p in module.parameters())
