"""Test that every way to load weights checks names and shapes, and refuses NaN and infinity."""

import copy
import re

import pytest
import timm
import torch
from torch import nn

import metamix
from metamix.models.backbone import build_backbone
from metamix.models.checkpoint import adapt_checkpoint
from metamix.models.official import SOURCES, load_official
from metamix.weights.files import save_weights
from metamix.weights.fit import check_fit, function_mismatch, load_into
from metamix.weights.layout import OURS


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_complex_and_integer_parameters_load_from_tensors_of_the_same_type(dtype):
    net = nn.Module()
    net.weight = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)
    load_into(net, {"weight": torch.ones(2, dtype=dtype)}, "f")
    assert net.weight.tolist() == [1, 1]


def test_weights_that_do_not_fit_are_refused(net):
    tensors = net.state_dict()
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("1.")}
    lacks = "f does not fit this Sequential: it lacks 1.bias, 1.num_batches_tracked, 1.running_mean, 1.running_var and"
    for state, words in (
        (fewer, f"{lacks} 1 more. Build the model that it was saved from, with the same arguments"),
        (tensors | {"3.weight": torch.ones(1)}, "it has tensors that the model lacks: 3.weight."),
        (tensors | {"2.bias": torch.ones(7)}, "it has 2.bias of shape (7,) where the model has (2,)."),
        (tensors | {"2.bias": torch.ones(2).char()}, "it has 2.bias of torch.int8 where the model has torch.float32."),
        (tensors | {"2.bias": torch.ones(2) * 1j}, "it has 2.bias of torch.complex64 where the model has"),
        (tensors | {"1.num_batches_tracked": torch.tensor(torch.nan)}, "1.num_batches_tracked holds NaN or infinity"),
        (tensors | {"2.bias": torch.ones(2).double() * 1e300}, "its tensor 2.bias holds NaN or infinity"),
        (tensors | {"1.running_var": torch.full((4,), torch.inf)}, "its tensor 1.running_var holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            load_into(net, state, "f")


def test_only_the_head_may_be_missing_or_differ(net):
    tensors = {name: tensor + 1 for name, tensor in net.state_dict().items() if not name.startswith("2.")}
    head = net[2].weight.clone()
    assert load_into(net, tensors | {"2.weight": torch.ones(9, 4)}, "f", head=("2",)) == ["2.weight", "2.bias"]
    assert torch.equal(net[2].weight, head) and torch.equal(net[0].weight, tensors["0.weight"])
    del tensors["1.running_mean"]
    with pytest.raises(ValueError, match="f does not fit this Sequential: it lacks 1.running_mean"):
        load_into(net, tensors, "f", head=("2",))


def test_only_the_channels_of_the_first_convolution_may_differ():
    of_model, options = {"c.weight": nn.Parameter(torch.zeros(4, 1, 3, 3))}, dict(layout=OURS, first_convs=("c",))
    assert check_fit({"c.weight": torch.zeros(4, 3, 3, 3)}, of_model, "net", "f", **options) == []
    with pytest.raises(ValueError, match=r"it has c.weight of shape \(4, 3, 5, 5\) where the model has \(4, 1, 3, 3\)"):
        check_fit({"c.weight": torch.zeros(4, 3, 5, 5)}, of_model, "net", "f", **options)


NAME, TINY = "metaformer_identity_nano", {"depths": (1, 1, 1), "dims": (8, 8, 16), "num_classes": 10}
POOLFORMER = {"layers": [1, 1], "embed_dims": [8, 16], "num_classes": 10}


@pytest.mark.parametrize("load", [
    lambda file: timm.create_model(NAME, checkpoint_path=file, **TINY),
    lambda file: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **TINY),
    lambda file: build_backbone(NAME, checkpoint=file, out_indices=(1, 2), **TINY),
    lambda file: metamix.load_classifier(file, model=NAME, model_args=TINY),
])  # fmt: skip
def test_every_way_to_load_a_file_refuses_infinity(load, tmp_path):
    state = timm.create_model(NAME, **TINY).state_dict()
    save_weights(tmp_path / "w.safetensors", state, {})
    load(tmp_path / "w.safetensors")
    state["norm.weight"][3] = torch.inf
    save_weights(tmp_path / "w.safetensors", state, {})
    with pytest.raises(ValueError, match="w.safetensors cannot be used: its tensor norm.weight holds NaN or infinity"):
        load(tmp_path / "w.safetensors")


def test_16_bit_weights_are_resampled_in_float32():
    net = timm.create_model("metaformer_raft_nano", img_size=32).bfloat16()
    model = timm.create_model("metaformer_raft_nano", img_size=64)
    short, exact = (adapt_checkpoint(model, each.state_dict(), "w.pth") for each in (net, copy.deepcopy(net).float()))
    assert all(torch.equal(short[name].float(), exact[name].float()) for name in exact)


def test_nan_is_refused_for_timm_models_image_models_and_official_weights(tmp_path):
    resnet = timm.create_model("test_resnet")
    state = resnet.state_dict()
    state["conv1.0.weight"][0] = torch.nan
    with pytest.raises(ValueError, match=r"w.pth cannot be used: its tensor conv1.0.weight holds NaN"):
        adapt_checkpoint(resnet, state, "w.pth")
    image_model = metamix.create_image_model("wavemixsr_nano")
    state = image_model.state_dict()
    state["stem.0.bias"][0] = torch.nan
    save_weights(tmp_path / "w.safetensors", state, {})
    with pytest.raises(ValueError, match=r"w.safetensors cannot be used: its tensor stem.0.bias holds NaN"):
        metamix.create_image_model("wavemixsr_nano", checkpoint=tmp_path / "w.safetensors")
    model, layout = SOURCES["ninformer"]({})
    state = {layout.name(name): tensor for name, tensor in model.state_dict().items()}
    state["patcher.bias"] = torch.full_like(state["patcher.bias"], torch.nan)
    with pytest.raises(ValueError, match="The checkpoint cannot be used: its tensor patcher.bias holds NaN"):
        load_official("ninformer", state)


def test_the_message_names_an_activation_that_differs():
    assert function_mismatch({"norm": "a"}, {"norm": "a"}, "f holds weights") is None
    text = function_mismatch({"norm": "a", "act": "b"}, {"norm": "a"}, "f holds weights")
    assert text == (
        "f holds weights with act b, but this model has no act. The tensors may fit, but the models compute "
        "different functions."
    )
