"""Test backbones with pyramids: levels, gradients, norms, weights, errors."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

import metamix
from metamix.detection import build_backbone
from metamix.models.backbone import EXTRA
from metamix.models.pyramids import halve
from metamix.segmentation import build_segmenter
from metamix.weights.files import save_weights

TINY = dict(depths=(1, 1, 1), dims=(24, 24, 48))  # a nano model that runs in milliseconds
MIXERS = metamix.list_mixers()
MINATTN = dict(depth=2)


def sizes(features):
    return {name: tuple(x.shape[1:]) for name, x in features.items()}


def without_gradient(module):
    return [n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize(
    "name, args, strides",
    [
        ("metaformer_pooling_s12", dict(depths=(1, 1, 1, 1)), (4, 8, 16, 32)),
        ("metaformer_raft_nano", TINY, (4, 8, 16, 32)),  # its strides as a classifier are 2, 4, 8
        ("ninformer_cifar", dict(num_layers=1), (4, 8, 16, 32)),
        ("minattn_minimal_mlp_h1_cifar", MINATTN, (4, 8, 16, 32)),  # stride 8 as a classifier
        ("minattn_symmetric_nomlp_h4_mnist", MINATTN, (3.5, 7, 14, 28)),  # stride 7 as a classifier
        ("wavemix_192_16", dict(depth=1, dim=32), (4, 8, 16, 32)),
        ("raftmlp_s", dict(depths=(1, 1, 1, 1)), (4, 8, 16, 32)),
        ("resnet18", {}, (4, 8, 16, 32)),
        ("swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1), img_size=(64, 96)), (4, 8, 16, 32)),  # NHWC
        ("vit_tiny_patch16_224", dict(depth=3), (4, 8, 16, 32)),
    ],
)
def test_models_of_every_kind_give_maps_of_four_strides(name, args, strides):
    backbone = build_backbone(name, out_channels=8, **args)
    h, w = (112, 168) if backbone.size_divisible == 28 else (64, 96)
    features = backbone(torch.rand(1, 3, h, w))
    assert backbone.strides == strides
    assert sizes(features) == {str(i): (8, int(h / s), int(w / s)) for i, s in enumerate(strides)}


@pytest.mark.parametrize("name, args", [("metaformer_pooling_nano", TINY), ("minattn_minimal_mlp_h1_cifar", MINATTN)])
@pytest.mark.parametrize(
    "extra, names, strides",
    [("pool", ["1", "2", "pool"], (8, 16, 32)), ("p6p7", ["1", "2", "p6", "p7"], (8, 16, 32, 64))],
)
def test_extra_levels_follow_the_coarsest_level(name, args, extra, names, strides):
    backbone = build_backbone(name, out_indices=(1, 2), extra=extra, out_channels=8, **args)
    features = backbone(torch.rand(1, 3, 128, 64))
    assert list(features) == names and backbone.strides == strides and backbone.levels == ("1", "2")
    assert sizes(features) == {n: (8, 128 // s, 64 // s) for n, s in zip(names, strides)}


def test_the_last_pixel_of_an_odd_map_is_kept():
    assert halve(torch.tensor([[[[1.0, 3, 4, 2, 5]]]]), 1).tolist() == [[[[3, 4, 5]]]]


def test_extra_levels_of_one_pixel_have_no_uninitialized_gradients():
    """In bf16, torch.nn.Conv2d would leave the gradient uninitialized; see `metamix.layers.Conv2d`."""
    levels, x = EXTRA["p6p7"][1](16), torch.randn(4, 16, 1, 1)
    for _ in range(3):
        levels.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            maps, _ = levels([x], [x], ["2"])
        memory = [torch.full((16 * 16 * 9 * n,), float("nan"), dtype=torch.bfloat16) for n in (1, 2, 4)]
        del memory  # so that an uninitialized gradient holds NaN
        sum(x.sum() for x in maps).backward()
        assert not any(conv.weight.grad[..., [0, 2]].any() for conv in levels.children())


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0,), (1, 3)])
def test_every_parameter_gets_a_gradient(mixer, out_indices):
    backbone = build_backbone(f"metaformer_{mixer}_nano", out_indices=out_indices, out_channels=8, **TINY)
    sum(x.square().mean() for x in backbone(torch.rand(1, 3, 64, 64)).values()).backward()
    assert without_gradient(backbone) == []


def test_a_layer_without_a_gradient_is_found():
    backbone = build_backbone("metaformer_identity_nano", out_indices=(0, 1), out_channels=8, **TINY)
    features = backbone(torch.rand(1, 3, 64, 64))
    features["0"].mean().backward()  # as in a detector that uses one of the two levels
    assert without_gradient(backbone) == ["pyramid.fpn.layer_blocks.1.0.weight", "pyramid.fpn.layer_blocks.1.0.bias"]


def test_only_stages_that_the_levels_need_are_built():
    backbone = build_backbone("metaformer_identity_s12", out_indices=(0, 1), out_channels=8, depths=(1, 1, 1, 1))
    assert [norm.num_channels for norm in backbone.pyramid.norms] == [64, 128]
    assert len(backbone.body.model.stages) == 2


def test_a_model_without_weights_has_no_batch_norm_and_trains_on_one_image():
    backbone = build_backbone("wavemix_192_16", out_channels=8, dim=32, depth=1, proj_drop_rate=0.0)
    assert isinstance(timm.create_model("wavemix_192_16", dim=32, depth=1).stem[4], nn.BatchNorm2d)
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.rand(2, 3, 64, 64)
    alone = backbone(x[:1])["0"]
    torch.testing.assert_close(alone, backbone(x)["0"][:1])  # statistics do not depend on the batch
    torch.testing.assert_close(alone, backbone.eval()(x[:1])["0"])


def test_norms_that_replace_timms_batch_norms_keep_their_activation():
    backbone = build_backbone("regnetx_002", out_channels=8)
    norm = backbone.body.stem.bn
    assert norm.num_groups == 1 and norm(torch.randn(1, norm.num_channels, 4, 4)).min() == 0  # a ReLU follows
    assert not backbone.body.s1.b1.conv3.bn.weight.any()  # timm initialises the last norm of a branch with zeros
    sum(x.square().mean() for x in backbone(torch.rand(1, 3, 64, 64)).values()).backward()
    assert without_gradient(backbone) == []


def test_weights_are_loaded_and_their_batch_norms_frozen(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("metaformer_wavemix_nano", **TINY)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    backbone = build_backbone("metaformer_wavemix_nano", checkpoint=tmp_path / "weights.pt", out_channels=8, **TINY)
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]

    x = torch.rand(1, 3, 48, 64)
    expected = model.eval().forward_intermediates(x, intermediates_only=True)[1:]  # strides 4 and 8
    actual = backbone.train().body(x)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b)
    frozen = {n: b.clone() for n, b in backbone.named_buffers()}
    sum(f.square().mean() for f in backbone(x).values()).backward()
    assert without_gradient(backbone) == []
    assert all(torch.equal(frozen[n], b) for n, b in backbone.named_buffers())


@pytest.mark.parametrize("frozen", ["stem", "stages.0"])
def test_layers_after_frozen_layers_train_in_channels_last(frozen):
    """The backward pass of torch 2.13's group norm crashes if its input is channels_last and needs no gradient."""
    backbone = build_backbone("metaformer_pooling_nano", out_channels=8, **TINY).to(memory_format=torch.channels_last)
    backbone.body.model.stem.requires_grad_(False)
    backbone.body.model.get_submodule(frozen).requires_grad_(False)
    x = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    sum(f.square().mean() for f in backbone(x).values()).backward()
    frozen_parts = {"stem", frozen}
    assert [n for n in without_gradient(backbone) if not any(f"model.{part}." in n for part in frozen_parts)] == []
    assert all(p.grad is None for p in backbone.body.model.get_submodule(frozen).parameters())


def test_weights_trained_on_grey_images_work_on_colour_images(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("metaformer_pooling_nano", in_chans=1, **TINY).eval()
    about = dict(in_chans=1, img_size=32, mean=[0.3], std=[0.2])
    save_weights(tmp_path / "grey.safetensors", model.state_dict(), about)
    backbone = build_backbone("metaformer_pooling_nano", checkpoint=tmp_path / "grey.safetensors", **TINY)
    grey = torch.rand(1, 1, 32, 32)
    a = model.stem(grey)
    torch.testing.assert_close(backbone.body.model.stem(grey.expand(1, 3, 32, 32)), a)
    assert (backbone.mean, backbone.std) == ((0.3,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    "name, in_chans, mean",
    [
        ("metaformer_pooling_nano", 1, ((0.4914 + 0.4822 + 0.4465) / 3,)),
        ("metaformer_pooling_nano", 4, (0.4914, 0.4822, 0.4465, 0.4914)),
        ("resnet18", 1, ((0.485 + 0.456 + 0.406) / 3,)),
        ("wavemixlite_8_5", 3, (0.1307,) * 3),
    ],
)
def test_mean_and_std_fit_the_number_of_channels(name, in_chans, mean):
    args = TINY if name.startswith("metaformer") else {}
    if name.startswith("wavemix"):
        args = dict(stride=2, depth=1)
    backbone = build_backbone(name, in_chans=in_chans, out_channels=8, **args)
    assert backbone.mean == pytest.approx(mean, abs=1e-3) and len(backbone.std) == in_chans
    assert backbone(torch.rand(1, in_chans, 64, 64))["0"].shape == (1, 8, 16, 16)


def test_weights_of_another_mixer_are_refused(tmp_path):
    model = timm.create_model("metaformer_pooling_nano", mixer="identity", **TINY)
    args, file = dict(mixer="identity", depths=[1, 1, 1], dims=[24, 24, 48]), tmp_path / "w.safetensors"
    save_weights(file, model.state_dict(), {"model": "metaformer_pooling_nano", "model_args": args})
    with pytest.raises(ValueError, match=r"w.safetensors holds weights of .*identity\(\), but this model .*pooling\("):
        build_backbone("metaformer_pooling_nano", checkpoint=file, **TINY)
    build_backbone("metaformer_pooling_nano", checkpoint=file, mixer="identity", **TINY)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("metaformer_pooling_nano", **TINY).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights of stages.0 with the mixer pooling\(\), but this model .* raft"):
        build_backbone("metaformer_raft_nano", checkpoint=tmp_path / "weights.pt", **TINY)
    save_weights(tmp_path / "r.safetensors", timm.create_model("test_resnet").state_dict(), {"model": "resnet34"})
    with pytest.raises(ValueError, match="r.safetensors holds weights of resnet34, not of resnet18: give --model res"):
        build_backbone("resnet18", checkpoint=tmp_path / "r.safetensors")


@pytest.mark.parametrize("build", [build_backbone, partial(build_segmenter, "semantic_fpn", num_classes=2)])
def test_weights_of_another_task_are_refused(build, tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    metadata = {"model": "test_resnet", "task": "detection"}
    save_weights(tmp_path / "d.safetensors", {f"backbone.body.{key}": value for key, value in state.items()}, metadata)
    with pytest.raises(ValueError, match="has weights for detection: give a file of the classifier test_resnet$"):
        build("test_resnet", checkpoint=tmp_path / "d.safetensors")
    save_weights(tmp_path / "c.safetensors", state, metadata | {"task": "classification"})
    build("test_resnet", checkpoint=tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    "name, theirs, prefix, words",
    [
        ("resnet18", "resnet18", "net.", "lacks bn1"),
        ("resnet34", "resnet18", "", "lacks layer1.2.bn1.bias"),
        ("resnet18", "resnet34", "", "has tensors that the model lacks: layer1.2.bn1.bias"),
    ],
)
def test_weights_that_timm_would_ignore_are_refused(name, theirs, prefix, words, tmp_path):
    tensors = {prefix + key: value for key, value in timm.create_model(theirs).state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=f"weights.pt does not fit {name}: it {words}"):
        build_backbone(name, checkpoint=tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ("resnet18", "vit_tiny_patch16_224", "metaformer_raft_nano"))
def test_weights_of_a_file_are_loaded_and_kept_only_once(name, tmp_path):
    arguments = dict(dynamic_img_size=True) if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **arguments)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    backbone = build_backbone(name, checkpoint=tmp_path / "weights.pt", **arguments)
    parameters = dict(backbone.body.named_parameters())
    theirs = dict(model.named_parameters())
    for key, tensor in parameters.items():
        assert torch.equal(tensor, theirs[key.removeprefix("model.")])
    assert len(parameters) >= 20
    assert not any("state_dict" in getattr(m, "pretrained_cfg", {}) for m in backbone.modules())


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("metaformer_rat_s12", {}, "no model 'metaformer_rat_s12'; did you mean 'metaformer_raft_s12'"),
        ("resnet18", dict(extra="p6"), "extra is 'p6'; did you mean 'p6p7'"),
        ("resnet18", dict(out_channels=0), "out_channels is 0: give a whole number of at least 1"),
        ("resnet18", dict(batch_norms="frozen"), "batch_norms is 'frozen'; did you mean 'freeze'"),
        ("resnet18", dict(out_indices=(2, 1)), r"out_indices is \(2, 1\); give ascending levels from 0 to 3"),
        ("resnet18", dict(out_indices=()), "give ascending levels"),
        ("resnet18", dict(out_indices=(4,)), "give ascending levels"),
        ("resnet18", dict(pretrained=True, checkpoint="x.pt"), "both say where weights come from: give one"),
        ("levit_128", {}, r"strides 16, 32, 64, but none as fine as 4 \(level 0\): choose out_indices from \(2, 3\)"),
        ("wavemix_144_7", {}, "at stride 1, which may take tens of GiB for one image of 800 x 1216. Use a model of"),
        ("wavemixlite_8_5", {}, "at stride 1, which may take"),  # made for grey images
        ("wavemixlite_8_5", dict(in_chans=1), "at stride 1, which may take"),
        ("metaformer_pooling_nano", dict(depth=1), r"metaformer_pooling_nano does not take .*unexpected .*'depth'"),
        ("metaformer_raft_s12", dict(pretrained=True), "No weights are published for metaformer_raft_s12: give a run"),
    ],
)
def test_wrong_options_are_refused(name, args, words):
    with pytest.raises(ValueError, match=words):
        build_backbone(name, **args)


def test_a_model_of_stride_1_works_with_a_coarser_stem():
    backbone = build_backbone("wavemix_144_7", stride=2, out_channels=8, dim=16, depth=1)
    assert sizes(backbone(torch.rand(1, 3, 64, 64)))["0"] == (8, 16, 16)
