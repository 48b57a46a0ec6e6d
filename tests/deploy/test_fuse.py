"""Test that `fuse` does not change the outputs of float64 models, and which layers it removes."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import GroupNorm1Act, LayerScale2d
from torch import nn

import metamix  # noqa: F401 - registers the models
from metamix.deploy import fuse
from metamix.mixers import list_mixers
from metamix.mixers.identity import Identity
from metamix.mixers.minattn import Cholesky, PositionBias
from metamix.mixers.raft import RaftMlp
from metamix.models.metaformer import Block
from metamix.models.raftmlp import MultiScaleEmbed

SMALL = dict(img_size=32, depths=(1, 1), dims=(16, 32), num_classes=5)


def randomize(model):
    """Set all parameters and statistics to random values, in float64."""
    torch.manual_seed(0)
    for name, value in model.double().eval().state_dict().items():
        if value.is_floating_point():
            spread = 0.5 * value[0].numel() ** -0.5 if value.ndim > 1 else 0.3
            value.normal_(std=spread).add_(value.ndim == 1)
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    return model


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(fused, model, x, tolerance=1e-12):
    expected = model(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(fused(x), expected, rtol=0, atol=tolerance * expected.abs().max().item())


def count(model, *kinds):
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("mixer", list_mixers())
def test_dropout_and_every_layer_scale_except_rafts_are_removed(mixer):
    model = randomize(
        timm.create_model("metaformer_pooling_nano", mixer=mixer, proj_drop_rate=0.1, drop_path_rate=0.1, **SMALL)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    for side in (32, 41):
        assert_same(fused, model, images(2, 3, side, 32))
    assert_same(fuse(model, images(1, 3, 41, 32)), model, images(2, 3, 41, 32))
    assert count(model, LayerScale2d) == 4 and count(fused, LayerScale2d) == (2 if mixer == "raft" else 0)
    assert count(fused, nn.Dropout, timm.layers.DropPath) == 0
    assert not any(p.requires_grad for p in fused.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mixer_args", [dict(level=2), dict(upsample="bilinear", ff_channel=0), dict(norm="group")])
def test_layer_scale_of_wavemix_is_folded_into_its_norm(mixer_args):
    model = randomize(timm.create_model("metaformer_wavemix_s12", mixer_args=mixer_args, **SMALL))
    fused = fuse(model)
    assert_same(fused, model, images(2, 3, 32, 37))
    assert count(fused, LayerScale2d) == 0


def test_parallel_kernels_of_raftmlp_become_one():
    args = dict(depths=(1, 1), dims=(8, 16), patch_sizes=(4, 2), embedding_kernels=((4, 8), (2, 4)), img_size=32)
    model = randomize(timm.create_model("raftmlp_s", **args))
    fused = fuse(model)
    for side in (32, 37):  # the stride does not divide 37, so that image is resized
        assert_same(fused, model, images(2, 3, side, 32))
    assert count(fused, MultiScaleEmbed, RaftMlp) == 0


def test_raft_weights_are_fixed_only_for_a_known_size():
    model = randomize(timm.create_model("metaformer_raft_nano", mixer_args=dict(resample="weights"), **SMALL))
    assert_same(fuse(model), model, images(1, 3, 48, 40))
    fixed = fuse(model, images(1, 3, 48, 40))
    assert_same(fixed, model, images(2, 3, 48, 40))
    assert count(fuse(model), RaftMlp) == 4 and count(fixed, RaftMlp) == 0


def test_raft_in_windows_is_fixed_for_any_size():
    options = dict(resample="windows", grid=4)
    model = randomize(timm.create_model("metaformer_raft_nano", mixer_args=options, **SMALL))
    fused = fuse(model)
    assert_same(fused, model, images(2, 3, 48, 40))
    assert count(fused, RaftMlp) == 0


@pytest.mark.parametrize("context", [None, 4])
def test_attention_weights_and_positions_are_fixed_for_a_known_size(context):
    options = dict(
        mixer="minattn", mixer_args=dict(qk="cholesky", num_heads=2, positions=True, context=context), pos_embed=True
    )
    model = randomize(timm.create_model("metaformer_pooling_nano", **SMALL | options))
    fixed = fuse(model, images(1, 3, 48, 40))
    assert_same(fixed, model, images(2, 3, 48, 40))
    assert count(fixed, Cholesky, PositionBias) == 0 and fixed.pos_embed.shape != model.pos_embed.shape
    assert_same(fuse(model), model, images(2, 3, 48, 40))


def test_layer_scale_stays_if_two_branches_share_a_norm():
    model = randomize(timm.create_model("metaformer_pooling_nano", tie_norms=True, **SMALL))
    fused = fuse(model)
    assert_same(fused, model, images(1, 3, 32, 32))
    assert count(fused, LayerScale2d) == 2


def test_backbones_inside_other_models_and_models_without_our_layers_are_fused():
    body = randomize(timm.create_model("metaformer_wavemix_s12", features_only=True, **SMALL | {"num_classes": 0}))
    fused, x = fuse(nn.Sequential(body)), images(1, 3, 32, 32)
    for features, expected in zip(fused(x), body(x), strict=True):
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-11 * expected.abs().max().item())
    assert count(fused, Block) and not count(fused, LayerScale2d)
    other = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)))
    assert_same(fuse(other), other, x)
    assert not count(fuse(other), nn.Dropout)


class Squared(Identity):
    def forward(self, x):
        return x.square()


@pytest.mark.parametrize(
    "model",
    [
        Block(3, Squared(3, size=(8, 8)), layer_scale=1.0),
        Block(3, Identity(3, size=(8, 8)), norm1=partial(GroupNorm1Act, act_layer=nn.GELU), layer_scale=1.0),
    ],
    ids=["mixer", "norm1 with activation"],
)
def test_subclasses_that_compute_something_else_are_not_fused(model):
    randomize(model)
    assert_same(fuse(model), model, images(2, 3, 8, 8))
