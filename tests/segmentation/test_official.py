"""Test that segmenters load the weights of WaveMix's authors and of mmsegmentation."""

import pytest
import torch

from metamix.models import load_official
from metamix.segmentation import build_segmenter
from metamix.segmentation.options import SegmentationOptions
from metamix.segmentation.published import POOLFORMER_SEMANTIC_FPN, WEIGHTS, PublishedSegmenter
from metamix.segmentation.task import Segmentation
from tests.helpers.goldens import read_exact, read_golden

SEMSEG = "segmentation/wavemix_semseg_level1_48x32"
ARCH = dict(layers=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), mlp_ratios=(4, 4, 4, 4), layer_scale_init_value=1e-5)
WIDTHS = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


@torch.no_grad()
def test_the_wavemix_segmenter_gives_the_same_output_as_the_authors_code():
    constructor, state, tensors = read_golden(SEMSEG)
    model = load_official("wavemix_segmentation", state, **constructor).double()
    images, theirs = tensors["input"].double(), read_exact(SEMSEG)["output"]
    assert (model(images) - theirs).abs().max() < 1e-9
    model.head[0].weight.copy_(model.head[0].weight.flip(2))  # control: other weights give another output
    assert (model(images) - theirs).abs().max() > 1e-3
    with pytest.raises(ValueError, match="stride is 1, which our model does not support. Accepted: 2, so that the out"):
        load_official("wavemix_segmentation", state, **constructor | dict(stride=1))
    del state["expand.2.bias"]
    with pytest.raises(ValueError, match=r"lacks expand\.2\.bias"):
        load_official("wavemix_segmentation", state, **constructor)


def random_state(shapes):
    torch.manual_seed(0)
    return {name: torch.rand(shape) * 0.1 + 0.05 for name, shape in shapes.items()}


def mmsegmentation_state(classes=5, dims=ARCH["embed_dims"], neck=16, channels=8):
    """Return a random state dict of a small PoolFormer with Semantic FPN, with mmsegmentation's names."""
    shapes = {"backbone.patch_embed.proj.weight": (dims[0], 3, 7, 7), "backbone.patch_embed.proj.bias": (dims[0],)}
    for i, dim in enumerate(dims):
        block = f"backbone.network.{2 * i}.0."
        for norm in (f"{block}norm1", f"{block}norm2", f"backbone.norm{2 * i}"):
            shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
        shapes |= {f"{block}layer_scale_1": (dim,), f"{block}layer_scale_2": (dim,)}
        shapes |= {f"{block}mlp.fc1.weight": (4 * dim, dim, 1, 1), f"{block}mlp.fc1.bias": (4 * dim,)}
        shapes |= {f"{block}mlp.fc2.weight": (dim, 4 * dim, 1, 1), f"{block}mlp.fc2.bias": (dim,)}
        if i:
            down = f"backbone.network.{2 * i - 1}.proj."
            shapes |= {f"{down}weight": (dim, dims[i - 1], 3, 3), f"{down}bias": (dim,)}
        for conv, shape in ((f"lateral_convs.{i}", (neck, dim, 1, 1)), (f"fpn_convs.{i}", (neck, neck, 3, 3))):
            shapes |= {f"neck.{conv}.conv.weight": shape, f"neck.{conv}.conv.bias": (neck,)}
        for k in range(max(1, i)):
            conv = f"decode_head.scale_heads.{i}.{2 * k}."
            shapes |= {f"{conv}conv.weight": (channels, channels if k else neck, 3, 3)}
            shapes |= {f"{conv}bn.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
            shapes |= {f"{conv}bn.num_batches_tracked": ()}
    shapes |= {"decode_head.conv_seg.weight": (classes, channels, 1, 1), "decode_head.conv_seg.bias": (classes,)}
    return random_state(shapes)


def test_weights_of_mmsegmentations_semantic_fpn_are_loaded(tmp_path):
    state = mmsegmentation_state()
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": state}, tmp_path / "fpn_poolformer.pth")
    file = torch.load(tmp_path / "fpn_poolformer.pth", weights_only=True)
    arguments = dict(arch=ARCH, out_channels=16, channels=8, num_classes=5)
    model = load_official("poolformer_semantic_fpn", file, **arguments)
    assert model(torch.rand(1, 3, 40, 70)).shape == (1, 5, 40, 70)
    third = model.head.branches[3][2]
    assert torch.equal(third[0].weight, state["decode_head.scale_heads.3.4.conv.weight"])
    assert torch.equal(third[1].running_var, state["decode_head.scale_heads.3.4.bn.running_var"])
    assert torch.equal(model.backbone.pyramid.norms[3].weight, state["backbone.norm6.weight"])
    assert torch.equal(model.backbone.pyramid.fpn.inner_blocks[1][0].bias, state["neck.lateral_convs.1.conv.bias"])
    del state["backbone.norm2.bias"]
    with pytest.raises(ValueError, match=r"lacks backbone\.norm2\.bias"):
        load_official("poolformer_semantic_fpn", state, **arguments)
    with pytest.raises(ValueError, match="arch is 's13', which our model does not support. Accepted: s12, s24"):
        load_official("poolformer_semantic_fpn", state, arch="s13")
    with pytest.raises(ValueError, match="Accepted: a dict of embed_dims, layer_scale_init_value, layers, mlp_ratios"):
        load_official("poolformer_semantic_fpn", state, arch=dict(layers=(1, 1, 1, 1)))


def cityscapes_state(model):
    """Return the state dict of a WaveMix segmenter with the names of the authors' code."""
    names = {"backbone.body.model.stem.": "conv.", "backbone.body.model.stages.0.blocks.": "layers.", "head.": "pool."}
    names |= {".mixer.reduce.": ".reduction.", ".fc1.": ".0.", ".fc2.": ".3.", ".up.": ".4.", ".norm.": ".5."}
    names |= {f".mixer.levels.{i}.": f".feedforward{i + 1}." for i in range(3)}
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


def test_weights_of_wavemixs_cityscapes_network_are_loaded():
    with torch.device("meta"):
        whole = build_segmenter("wavemix", "wavemix_192_16_l3.cityscapes", 20)
    assert [tuple(layer.weight.shape) for layer in whole.head] == [(192, 128, 4, 4), (128, 64, 4, 4), (20, 64, 1, 1)]
    sizes = dict(depth=1, final_dim=16, ff_channel=16, num_classes=4, pool_channels=(12, 8))
    state = cityscapes_state(
        build_segmenter("wavemix", "wavemix_192_16_l3", 4, head_channels=(12, 8), backbone_args=dict(dim=16, depth=1))
    )
    assert {"pool.2.bias", "layers.0.feedforward3.0.weight", "conv.4.running_mean"} <= state.keys()
    model = load_official("wavemix_cityscapes", state, **sizes)
    assert torch.equal(model.head[1].weight, state["pool.1.weight"])
    assert model(torch.rand(1, 3, 30, 41)).shape == (1, 4, 30, 41)


def test_published_weights_have_the_expected_download_addresses():
    assert len(WEIGHTS) == 6
    assert WEIGHTS["wavemix_192_16_l3.cityscapes"].url == (
        "https://huggingface.co/cloudwalker/wavemix/resolve/main/Saved_Models_Weights/cityscapes_83.04.pth"
    )
    assert WEIGHTS["metaformer_pooling_m48.ade20k"].url == (
        "https://download.openmmlab.com/mmsegmentation/v0.5/poolformer/fpn_poolformer_m48_8x4_512x512_40k_ade20k/"
        "fpn_poolformer_m48_8x4_512x512_40k_ade20k_20220504_003923-64168d3b.pth"
    )


def test_an_unknown_tag_or_a_model_without_published_weights_is_refused():
    Segmentation.check_model("wavemix_192_16_l3.cityscapes", True)
    Segmentation.check_model("wavemix_192_16_l3.galaxy10", True)
    with pytest.raises(ValueError, match="wavemix_192_16_l3 has no tag 'cityscape'"):
        Segmentation.check_model("wavemix_192_16_l3.cityscape", True)
    with pytest.raises(ValueError, match="No weights are published for ninformer_cifar"):
        Segmentation.check_model("ninformer_cifar", True)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publish a small segmenter with five classes under the name of a real one, and return its tensors."""
    state, file = mmsegmentation_state(), tmp_path / "fpn.pth"
    torch.save({"state_dict": state}, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    entry = PublishedSegmenter("semantic_fpn", file.as_uri(), 5, POOLFORMER_SEMANTIC_FPN)
    monkeypatch.setitem(WEIGHTS, "metaformer_pooling_s12.ade20k", entry)
    return state


def test_a_downloaded_segmenter_keeps_its_classifier_only_if_the_number_of_classes_fits(published):
    def build(classes, neck=16):
        widths = dict(backbone_args=WIDTHS, neck_channels=neck, head_channels=8)
        return build_segmenter("semantic_fpn", "metaformer_pooling_s12.ade20k", classes, pretrained=True, **widths)

    for classes in (5, 3):
        model = build(classes)
        assert torch.equal(model.head.branches[0][0][0].weight, published["decode_head.scale_heads.0.0.conv.weight"])
        assert torch.equal(model.backbone.body.model.stem.bias, published["backbone.patch_embed.proj.bias"])
        loaded = torch.equal(model.head.classifier.bias, published["decode_head.conv_seg.bias"][:classes])
        assert loaded == (classes == 5) and model.num_classes == classes
    with pytest.raises(ValueError, match=r"fpn.pth does not fit semantic_fpn on metaformer_"):
        build(5, neck=8)
    with pytest.raises(ValueError, match="has weights for the head semantic_fpn: give this head instead of upernet"):
        build_segmenter("upernet", "metaformer_pooling_s12.ade20k", 150, pretrained=True)


@pytest.mark.parametrize("classes", ["abcde", "abcd"])
def test_a_note_names_the_new_tensors_of_a_downloaded_segmenter(classes, scenes, published):
    root = scenes(train=1, val=1)
    (root / "classes.txt").write_text("\n".join(classes))
    options = SegmentationOptions(
        data_dir=str(root), model="metaformer_pooling_s12.ade20k", pretrained=True, model_args=WIDTHS,
        head_args=dict(neck_channels=16, head_channels=8), crop=(32,),
    )  # fmt: skip
    model = Segmentation(options).model
    model.build()
    new = "" if len(classes) == 5 else "; new: head.classifier.weight, head.classifier.bias"
    assert model.notes == [f"published weights of backbone and head: metaformer_pooling_s12.ade20k{new}"]
