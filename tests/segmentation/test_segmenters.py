"""Test segmentation networks with our and timm's backbones: sizes, gradients, exports and wrong arguments."""

import copy
from typing import get_args, get_type_hints

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn
from torch.export import Dim

import metamix  # noqa: F401  registers the models
from metamix.segmentation import build_segmenter
from metamix.segmentation.heads import SemanticFPNHead
from metamix.segmentation.options import SegmentationOptions
from metamix.segmentation.published import WEIGHTS, PublishedSegmenter
from metamix.segmentation.segmenters import HEADS
from metamix.weights.layout import OURS

TINY = dict(depths=(1, 1, 1), dims=(8, 16, 16))  # a nano model that runs in milliseconds
NARROW = dict(semantic_fpn=dict(neck_channels=8, head_channels=8), upernet=dict(head_channels=8), wavemix={})


def segmenter(head="semantic_fpn", backbone="metaformer_pooling_nano", classes=5, **options):
    torch.manual_seed(0)
    args = TINY if "nano" in backbone else dict(depth=2)
    return build_segmenter(head, backbone, classes, **dict(backbone_args=args) | NARROW[head] | options)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_option_head_accepts_every_head():
    assert get_args(get_type_hints(SegmentationOptions)["head"]) == tuple(HEADS)


def test_segmenters_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        fpn = build_segmenter("semantic_fpn", "metaformer_pooling_s12", 150)
        uper = build_segmenter("upernet", "metaformer_pooling_s12", 150)
        semseg = build_segmenter("wavemix", "wavemix_256_16_l4", 20)
        cityscapes = build_segmenter("wavemix", "wavemix_192_16_l3.cityscapes", 20)
    assert (count(semseg), count(cityscapes)) == (63_164_628, 28_190_388)
    assert count(fpn.backbone.pyramid.fpn, fpn.head) == 4_266_646
    assert uper.head.classifier.in_channels == 512 and uper.auxiliary.conv[0].weight.shape == (256, 320, 3, 3)
    assert uper.backbone.channels == (64, 128, 320, 512)


@pytest.mark.parametrize("backbone", ["metaformer_pooling_nano", "metaformer_raft_nano", "vit_tiny_patch16_224"])
def test_a_backbone_with_few_channels_gets_a_narrow_neck(backbone):
    with torch.device("meta"):
        model = build_segmenter("semantic_fpn", backbone, 11)
    assert model.backbone.channels == (64,) * 4 and model.backbone.strides == (4, 8, 16, 32)
    assert model.head.classifier.in_channels == 64


@pytest.mark.parametrize("backbone", ["metaformer_raft_nano", "minattn_minimal_mlp_h1_cifar", "wavemix_192_16"])
@pytest.mark.parametrize("head", HEADS)
def test_images_of_any_size_get_scores_of_the_same_size(head, backbone):
    model = segmenter(head, backbone)
    images = torch.rand(2, 3, 45, 70)
    scores = model(images)
    assert [x.shape for x in scores] == [(2, 5, 45, 70)] * (2 if head == "upernet" else 1)
    sum(x.square().mean() for x in scores).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    model.eval()
    with torch.no_grad():
        for size in ((1, 1), (7, 40), (64, 32)):
            assert model(torch.rand(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_transformers_take_images_of_any_size(backbone):
    depth = dict(depth=3) if backbone.startswith("vit") else dict(depths=(1, 1, 1, 1), embed_dim=24)
    model = segmenter(backbone=backbone, backbone_args=depth, img_size=64).eval()
    assert model(torch.rand(1, 3, 100, 70)).shape == (1, 5, 100, 70)


@torch.no_grad()
def test_feature_maps_may_be_smaller_than_their_stride_implies():
    """Inception-v3's stem does not pad, so 96 x 128 pixels give a last feature map of 1 x 2 instead of 3 x 4."""
    model = build_segmenter("wavemix", "inception_v3", 5, head_channels=[8] * 5).eval()
    maps = list(model.backbone(torch.rand(1, 3, 96, 128)).values())
    assert maps[0].shape[-2:] == (1, 2)
    assert model(torch.rand(1, 3, 65, 97)).shape == (1, 5, 65, 97)


@torch.no_grad()
def test_a_backbone_of_fixed_size_takes_images_up_to_that_size():
    model = segmenter(backbone="mixer_s32_224", backbone_args={}, img_size=(60, 90)).eval()
    assert model.fixed_size == (64, 96) and segmenter().fixed_size is None
    for size in ((64, 96), (30, 40)):
        assert model(torch.rand(1, 3, *size)).shape == (1, 5, *size)
    with pytest.raises(ValueError, match="images have 65 x 96 pixels.* takes 64 x 96 at most: give tiles of 64"):
        model(torch.rand(1, 3, 65, 96))


@torch.no_grad()
def test_images_are_padded_at_the_bottom_and_on_the_right():
    model, images = segmenter().eval(), torch.rand(1, 3, 40, 50)
    padded = model(F.pad(images, (0, 14, 0, 24)))
    torch.testing.assert_close(model(images), padded[..., :40, :50], rtol=0, atol=0)


@torch.no_grad()
def test_semantic_fpn_is_a_sum_of_upsampled_branches():
    torch.manual_seed(0)
    head = SemanticFPNHead((6, 6, 6, 6), 3, channels=4).eval().double()
    maps = [torch.rand(1, 6, 16 // 2**i, 24 // 2**i, dtype=torch.float64) for i in range(4)]
    total = head.branches[0](maps[0])
    for i in (1, 2, 3):
        x = maps[i]
        for k in range(i):
            conv, norm, act = head.branches[i][k]
            x = F.interpolate(act(norm(conv(x))), scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    assert [len(branch) for branch in head.branches] == [1, 1, 2, 3]
    torch.testing.assert_close(head(maps), head.classifier(total), rtol=1e-12, atol=1e-12)


def test_options_change_the_levels_the_auxiliary_head_and_the_widths():
    coarse = segmenter(finest_stride=8, auxiliary=True, auxiliary_channels=12)
    assert coarse.backbone.strides == (8, 16, 32) and coarse.auxiliary.level == 1
    assert coarse.auxiliary.conv[0].weight.shape == (12, 8, 3, 3)
    assert coarse.classifier == ("head.classifier", "auxiliary.classifier")
    assert segmenter("upernet", auxiliary=False).auxiliary is None
    assert segmenter("wavemix").classifier == ("head.3",)
    assert [layer.out_channels for layer in segmenter("wavemix", head_channels=(9, 7, 5)).head] == [9, 7, 5, 5]
    assert segmenter("wavemix", "wavemix_192_16", backbone_args=dict(depth=1)).backbone.size_divisible == 4


def test_spatial_weights_fit_the_padded_image():
    model = segmenter("semantic_fpn", "metaformer_raft_nano", img_size=(50, 70))
    assert model.backbone.body.model.stages[0].blocks[0].mixer.grid == (32, 48)  # padded to 64 x 96; stride 2
    deconv = segmenter("wavemix", "metaformer_raft_nano", img_size=(50, 70))
    assert deconv.backbone.body.model.stages[0].blocks[0].mixer.grid == (28, 36)  # padded to 56 x 72; stride 2
    with torch.device("meta"):
        build_segmenter("semantic_fpn", "resnet18", 3, img_size=(50, 70))  # resnet18 has no spatial weights


@pytest.mark.parametrize("head", HEADS)
def test_batch_norms_train_unless_weights_are_loaded(head, tmp_path, monkeypatch):
    def count_batch_norms(name="metaformer_wavemix_nano", **options):
        body = segmenter(head, name, **options).backbone.body
        return sum(isinstance(module, nn.BatchNorm2d) for module in body.modules())

    file = tmp_path / "weights.pt"
    torch.save(timm.create_model("metaformer_wavemix_nano", **TINY).state_dict(), file)
    assert count_batch_norms() == 13 and count_batch_norms(frozen_norms=True) == 0
    assert count_batch_norms(checkpoint=file) == 0
    assert count_batch_norms(checkpoint=file, frozen_norms=False) == 13
    whole = tmp_path / "whole.pth"
    torch.save(segmenter(head, "metaformer_wavemix_nano").state_dict(), whole)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    name = "metaformer_wavemix_nano.whole"
    monkeypatch.setitem(WEIGHTS, name, PublishedSegmenter(head, whole.as_uri(), 5, OURS))
    assert count_batch_norms(name, pretrained=True) == 0
    assert count_batch_norms(name, pretrained=True, frozen_norms=False) == 13


def test_layer_decay_and_gradient_checkpointing_reach_the_backbone():
    model = segmenter("upernet", "metaformer_raft_nano")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {n for n, _ in model.named_parameters()}
    assert {layer for name, layer in layers.items() if ".body." not in name} == {max(layers.values())}
    assert layers["backbone.body.model.stem.0.weight"] == 0
    model.set_grad_checkpointing()
    assert model.backbone.body.model.stages[0].blocks[0].grad_checkpointing


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_channels_last_and_bfloat16_hardly_change_the_scores(head):
    model, images = segmenter(head).eval(), torch.rand(1, 3, 40, 64)
    expected = model(images)
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    actual = nhwc(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images), expected, rtol=0.1, atol=0.05)  # the scores are float32


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_segmenter_compiles_as_one_graph(head):
    model, images = segmenter(head, "metaformer_identity_nano").eval(), torch.rand(1, 3, 40, 64)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))


SLOW = [
    pytest.param(head, backbone, {}, marks=pytest.mark.slow)
    for head in HEADS
    for backbone in ("metaformer_wavemix_nano", "minattn_minimal_mlp_h1_cifar")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "head, backbone, options", [("semantic_fpn", "metaformer_identity_nano", dict(finest_stride=16)), *SLOW]
)
@torch.no_grad()
def test_an_exported_segmenter_takes_images_of_any_size(head, backbone, options):
    """The coarsest feature map has more than one pixel, because torch.export would fix a side of length 1."""
    model = segmenter(head, backbone, **options).eval()
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=shapes).module()
    for size in ((1, 3, 75, 50), (3, 3, 64, 33)):
        images = torch.rand(size)
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(head="semanticfpn"), "head is 'semanticfpn'; did you mean 'semantic_fpn'"),
        (dict(num_classes=1), "num_classes is 1: give a whole number of at least 2"),
        (dict(in_chans=0), "in_chans is 0: give a whole number of at least 1"),
        (dict(img_size=(64, 0)), r"img_size is \(64, 0\): give a whole number of at least 1, or"),
        (dict(neck_chanels=8), "semantic_fpn has no option 'neck_chanels'; did you mean 'neck_channels'"),
        (dict(depths=(1, 1)), r"no option 'depths'.* of the backbone go into backbone_args"),
        (dict(head="wavemix", auxiliary=True), "wavemix has no option 'auxiliary'"),
        (dict(neck_channels=0), "neck_channels is 0, but it must be a whole number of at least 1"),
        (dict(finest_stride=2), "finest_stride is 2, but it must be 4, 8, 16 or 32"),
        (dict(dropout=2), "dropout is 2, but it must be a number from 0 to 1"),
        (dict(backbone_args=dict(in_chans=1)), "backbone_args has in_chans, which is an argument of build_segmenter"),
        (dict(frozen_norms="no"), "frozen_norms is 'no', but it must be True, False or None"),
        (dict(backbone_args=dict(widths=1)), "metaformer_pooling_nano does not take"),
        (dict(backbone="vit_tiny_patch16_224", backbone_args=dict(depth=1)), "vit_tiny_patch16_224 does not take"),
        (dict(backbone="wavemix_144_7"), "keeps all its maps at stride 1, which may take"),
        (dict(head="wavemix", backbone="wavemix_144_7"), "keeps all its maps at stride 1, which may take"),
        (dict(head="wavemix", backbone="minattn_symmetric_nomlp_h4_mnist"), "have stride 7, but the wavemix head can"),
        (dict(head="wavemix", head_channels=[8]), r"head_channels is \[8\], but .* give 3 widths.* \[96, 48, 24\]"),
        (dict(head="wavemix", head_channels=8), "head_channels is 8, but it must be a list of widths"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    arguments = dict(head="semantic_fpn", backbone="metaformer_pooling_nano", num_classes=3) | arguments
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        build_segmenter(**arguments)


def test_wrong_images_are_refused():
    model = segmenter("upernet", in_chans=1)
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 32, 32\); this model takes \(B, 1, H, W\)"):
        model(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="upernet trains on batches of 2 or more"):
        model(torch.rand(1, 1, 32, 32))
    assert model.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 5, 32, 32)
