"""Test the skeleton alone, with every option, in small models. test_timm.py tests it through timm's functions."""

import copy
import math
from functools import partial

import numpy
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn.utils import prune

from metamix.layers import GELU, GroupNorm1, resize_to
from metamix.mixers import register_mixer
from metamix.models import MetaFormer
from metamix.models.embed import ConvEmbed
from metamix.models.metaformer import Block
from metamix.models.resize import resample_spatial_weights


def small(**kwargs) -> MetaFormer:
    """Build three blocks in two stages on maps of sides 8 and 4: float64, eval mode, all parameters random."""
    torch.manual_seed(0)
    shape = dict(img_size=32, num_classes=5, depths=(1, 2), dims=(8, 16), layer_scale=0.1)
    model = MetaFormer(**shape | kwargs).double().eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.4 + 0.1 if value.ndim < 2 else torch.randn_like(value) * 0.3)
    return model


ISOTROPIC = dict(depths=(2,), dims=(8,), stem=partial(ConvEmbed, kernel_size=4, stride=4))


def images(*size, batch=2, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, 3, *size or (32, 32), dtype=dtype)


def blocks(model):
    return [block for stage in model.stages for block in stage.blocks]


def assert_equal(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1, expected.abs().max().item()))


# The formula


def group_norm(x, norm):
    mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def layer_norm(x, norm):
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def linear(x, layer):
    return torch.einsum("oi,bihw->bohw", layer.weight.flatten(1), x) + layer.bias[:, None, None]


def formula(
    model, x, *, norm1=group_norm, norm2=group_norm, norm=group_norm, tie=False, mlp=True, scale=True, act=F.gelu
):
    """Compute stem, x <- x + s1 * mixer(norm1(x)), x <- x + s2 * mlp(norm2(x)), norm, mean and head."""
    x = F.conv2d(x, model.stem.weight, model.stem.bias, model.stem.stride, model.stem.padding)
    if model.pos_embed is not None:
        x = x + model.pos_embed
    for i, stage in enumerate(model.stages):
        if i:
            x = F.conv2d(x, stage.downsample.weight, stage.downsample.bias, stride=2, padding=1)
        for block in stage.blocks:
            s1 = block.layer_scale1.gamma[:, None, None] if scale else 1
            x = x + s1 * block.mixer(norm1(x, block.norm1))
            if mlp:
                s2 = block.layer_scale2.gamma[:, None, None] if scale else 1
                h = norm2(x, block.norm1 if tie else block.norm2)
                x = x + s2 * linear(act(linear(h, block.mlp.fc1)), block.mlp.fc2)
    return norm(x, model.norm).mean((2, 3)) @ model.head.weight.T + model.head.bias


def unchanged(x, norm):
    assert not list(norm.parameters())
    return x


OPTIONS = {
    "default": ({}, {}),
    "layer norms": (
        dict(norm1=LayerNorm2d, norm2="layernorm2d", norm=partial(LayerNorm2d, eps=1e-3)),
        dict(norm1=layer_norm, norm2=layer_norm, norm=layer_norm),
    ),
    "no norm1": (dict(norm1="None"), dict(norm1=unchanged)),
    "no norm2": (dict(norm2=None), dict(norm2=unchanged)),
    "no norm": (dict(norm="none"), dict(norm=unchanged)),
    "tied norms": (dict(tie_norms=True), dict(tie=True)),
    "no MLP": (dict(mlp_ratio=0), dict(mlp=False)),
    "no layer scale": (dict(layer_scale=0), dict(scale=False)),
    "activation by name": (dict(act_layer="relu"), dict(act=F.relu)),
    "activation by class": (dict(act_layer=nn.SiLU), dict(act=F.silu)),
    "positions": (dict(pos_embed=True), {}),
    "another mixer": (dict(mixer="raft"), {}),
}


@pytest.mark.parametrize("shape", [{}, ISOTROPIC], ids=["pyramid", "isotropic"])
@pytest.mark.parametrize("option", OPTIONS)
def test_outputs_with_every_option_equal_the_formula(option, shape):
    kwargs, changes = OPTIONS[option]
    model, x = small(**shape, **kwargs), images()
    assert_equal(model(x), formula(model, x, **changes))


def test_a_users_stem_and_downsampling_are_built():
    class Halve(nn.Module):
        """Halve the map. This stem defines only the members that the skeleton needs."""

        reduction = 2

        def __init__(self, in_chans, dim):
            super().__init__()
            self.proj = nn.Conv2d(in_chans * 4, dim, 1)

        def out_size(self, size):
            return size[0] // 2, size[1] // 2

        def forward(self, x):
            return self.proj(F.pixel_unshuffle(x, 2))

    model = small(stem=Halve, downsample=Halve, mixer="raft")
    assert model(images()).shape == (2, 5)
    assert [b.mixer.grid for b in blocks(model)] == [(16, 16), (8, 8), (8, 8)]
    assert [f["reduction"] for f in model.feature_info] == [2, 4]
    different = small(depths=(1, 1, 1), dims=(8, 8, 8), downsample=[Halve, partial(ConvEmbed, kernel_size=1, stride=1)])
    assert [f["reduction"] for f in different.feature_info] == [4, 8, 8]


def test_a_stem_of_two_strides_is_refused():
    with pytest.raises(ValueError, match=r"stride is \(4, 2\): give a stem or downsampling layer one stride"):
        MetaFormer(mixer="identity", depths=(1,), dims=(8,), stem=lambda i, o: ConvEmbed(i, o, 4, stride=(4, 2)))


@pytest.mark.parametrize(
    "k, s, p",
    [(7, 4, 2), (3, 2, 1), (4, 4, 0), (3, 1, 1), ((3, 5), (2, 1), (1, 0)), ((4, 3), 1, "same"), (3, 2, "valid")],
)
def test_out_size_is_the_size_of_the_map(k, s, p):
    embed = ConvEmbed(1, 1, kernel_size=k, stride=s, padding=p)
    for size in ((8, 9), (13, 7), (32, 224)):
        assert embed(torch.zeros(1, 1, *size)).shape[2:] == embed.out_size(size)


# What is built


def keys(model):
    return set(model.state_dict())


def test_unused_parts_are_not_built():
    everything = keys(small(mixer="pooling"))
    assert {k for k in everything if "blocks" in k} == {
        f"stages.{stage}.{part}"
        for stage in ("0.blocks.0", "1.blocks.0", "1.blocks.1")
        for part in (
            "norm1.weight", "norm1.bias", "layer_scale1.gamma", "norm2.weight", "norm2.bias", "layer_scale2.gamma",
            "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
        )
    }  # fmt: skip

    def left_out(**kwargs):
        assert keys(small(**kwargs)) < everything
        return {".".join(k.split(".")[4:]) or k for k in everything - keys(small(**kwargs))}

    norm2 = {"norm2.weight", "norm2.bias"}
    mlp = {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}
    assert left_out(mlp_ratio=0) == norm2 | mlp | {"layer_scale2.gamma"}
    assert left_out(layer_scale=0) == {"layer_scale1.gamma", "layer_scale2.gamma"}
    assert left_out(norm1="none") == {"norm1.weight", "norm1.bias"}
    assert left_out(norm2="none") == left_out(tie_norms=True) == norm2
    assert left_out(norm="none") == {"norm.weight", "norm.bias"}
    assert left_out(num_classes=0) == {"head.weight", "head.bias"}
    assert keys(small(pos_embed=True)) - everything == {"pos_embed"}


def test_timms_group_norm_is_replaced_by_ours():
    """Our group norm can also be trained after frozen layers."""
    for norm in ("groupnorm1", timm.layers.GroupNorm1):
        model = timm.create_model("metaformer_pooling_nano", norm1=norm)
        assert type(model.stages[0].blocks[0].norm1) is GroupNorm1


def test_layer_scale_weights_and_biases_have_their_initial_values():
    torch.manual_seed(0)
    model = MetaFormer(img_size=32, depths=(1,), dims=(64,), layer_scale=1e-5)
    block = blocks(model)[0]
    for scale in (block.layer_scale1, block.layer_scale2):
        assert scale.gamma.unique().tolist() == [pytest.approx(1e-5)]
    for layer in (block.mlp.fc1, block.mlp.fc2, model.head):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()


@pytest.mark.parametrize("ratio, hidden", [(4, [32, 64]), (1.5, [12, 24]), (0.25, [2, 4]), ((4, 2), [32, 32])])
def test_mlp_ratio_sets_the_hidden_widths(ratio, hidden):
    model = small(mlp_ratio=ratio)
    assert [stage.blocks[0].mlp.fc1.out_channels for stage in model.stages] == hidden


def test_a_stage_of_mlp_ratio_0_has_no_mlp():
    model = small(mlp_ratio=(0, 2))
    assert model.stages[0].blocks[0].mlp is None and model.stages[1].blocks[0].mlp is not None


def test_rates_of_dropout_and_drop_path_reach_their_layers():
    model = small(depths=(2, 3), drop_rate=0.1, proj_drop_rate=0.2, drop_path_rate=0.4, mixer="nin")
    assert model.head_drop.p == 0.1
    for block in blocks(model):
        for mlp in (block.mlp, block.mixer.channel_mlp, block.mixer.token_mlp):
            assert mlp.drop1.p == mlp.drop2.p == 0.2
    for paths in ([b.drop_path1 for b in blocks(model)], [b.drop_path2 for b in blocks(model)]):
        assert isinstance(paths[0], nn.Identity)
        assert [p.drop_prob for p in paths[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for module in small(mixer="nin").modules():
        assert not ((isinstance(module, nn.Dropout) and module.p) or "DropPath" in type(module).__name__)


def test_rates_act_in_training_only():
    x = images()
    for rate in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
        model = small(**{rate: 0.5})
        assert_equal(model(x), small()(x))
        model.train()
        assert (model(x) - model(x)).abs().max() > 1e-3, rate


def test_each_stage_may_have_its_own_mixer_and_options():
    model = small(mixer=("raft", "minattn"), mixer_args=({"raft_size": 4}, {"num_heads": 2, "qk": "shared"}))
    first, second, third = (b.mixer for b in blocks(model))
    assert (type(first).__name__, first.grid, first.vertical.raft_size) == ("Raft", (8, 8), 4)
    for mixer in (second, third):
        assert (type(mixer).__name__, mixer.heads, mixer.symmetric) == ("MinAttn", 2, True)
    same = small(mixer="raft", mixer_args={"raft_size": 4})
    assert [(b.mixer.grid, b.mixer.vertical.raft_size) for b in blocks(same)] == [((8, 8), 4), ((4, 4), 4), ((4, 4), 4)]


# Any size


def test_positions_are_resampled():
    model, plain = small(pos_embed=True), small()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "pos_embed"})
    assert model.pos_embed.shape == (1, 8, 8, 8) and model.no_weight_decay() == {"pos_embed"}
    added = F.interpolate(model.pos_embed, size=(11, 9), mode="bicubic", align_corners=False)
    plain.stem.register_forward_hook(lambda module, inputs, output: output + added)
    assert_equal(model(images(45, 37)), plain(images(45, 37)))


@pytest.mark.parametrize("shape", [{}, ISOTROPIC], ids=["pyramid", "isotropic"])
def test_set_input_size_equals_building_and_loading_adapted_parameters(shape):
    kwargs = dict(mixer="raft", pos_embed=True, **shape)
    model, built = small(**kwargs).train(), small(img_size=(64, 48), **kwargs)
    model.stem.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    before = copy.deepcopy(model)
    model.set_input_size((64, 48))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}
    assert model.pos_embed.shape[2:] == (16, 12) and blocks(model)[0].mixer.grid == (16, 12)
    assert {k for k, p in model.named_parameters() if not p.requires_grad} == {"stem.weight", "stem.bias", "pos_embed"}
    assert all(m.training for m in model.modules()) and all(p.dtype == torch.float64 for p in model.parameters())
    for old, new in zip(blocks(before), blocks(model)):
        for key, value in new.mixer.adapt_state(old.mixer.state_dict()).items():
            assert torch.equal(new.mixer.state_dict()[key], value)
    untouched = [k for k in keys(model) if ".mixer." not in k and k != "pos_embed"]
    assert all(torch.equal(model.state_dict()[k], before.state_dict()[k]) for k in untouched)


def test_set_input_size_takes_numbers_of_numpy():
    model = timm.create_model("metaformer_raft_nano", num_classes=2)
    model.set_input_size(numpy.int64(64))
    assert model.stages[0].blocks[0].mixer.grid == (32, 32)


@pytest.mark.parametrize("mixer", ["raft", "nin"])
def test_set_input_size_keeps_bfloat16(mixer):
    model = timm.create_model(f"metaformer_{mixer}_nano", dtype=torch.bfloat16)
    model.set_input_size(48)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_set_input_size_keeps_mixers_without_a_size():
    """Their hooks, their frozen or synchronised batch norms and their wrapped layers stay."""
    model = small(mixer="wavemix")
    timm.utils.freeze(model, ["stages"])
    blocks(model)[0].mixer.reduce = nn.Sequential(blocks(model)[0].mixer.reduce)
    mixers = [block.mixer for block in blocks(model)]
    model.set_input_size(64)
    assert all(block.mixer is mixer for block, mixer in zip(blocks(model), mixers))
    assert not any(p.requires_grad for p in model.stages.parameters())


def test_set_input_size_updates_the_context():
    model = small(mixer="minattn", mixer_args=dict(context=8))
    assert [block.mixer.context for block in blocks(model)] == [(8, 8), (4, 4), (4, 4)]
    model.set_input_size(64)
    assert [block.mixer.context for block in blocks(model)] == [(8, 8)] * 3


def test_set_input_size_to_the_same_size_changes_nothing():
    model, x = small(mixer="nin", pos_embed=True), images()
    y = model(x)
    parameters = dict(model.named_parameters())
    model.set_input_size(32)
    assert_equal(model(x), y, 0)
    assert not any(module.training for module in model.modules())
    assert all(p is parameters[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("mixer", ["raft", "nin", "minattn"])
def test_an_optimizer_keeps_training_parameters_whose_shape_stays(mixer):
    model = small(mixer=mixer, mixer_args={"positions": True} if mixer == "minattn" else None).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.set_input_size(64)
    fresh = copy.deepcopy(model)
    for each, step in ((model, optimizer), (fresh, torch.optim.SGD(fresh.parameters(), lr=0.1))):
        each(images(64, 64)).square().sum().backward()
        step.step()
    kept = {name for name, p in model.named_parameters() if p.shape == shapes[name]}
    assert kept < shapes.keys()  # some shapes depend on the size
    expected = dict(fresh.named_parameters())
    assert all(torch.equal(p, expected[name]) == (name in kept) for name, p in model.named_parameters())


def test_tied_parameters_stay_tied_at_another_input_size(forget_mixers):
    @register_mixer("tied")
    class Tied(nn.Module):
        def __init__(self, dim, *, size):
            super().__init__()
            self.a, self.b = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
            self.b.weight = self.a.weight
            self.scale = nn.Parameter(torch.ones(size))

        def forward(self, x):
            return self.b(self.a(x)) * resize_to(self.scale[None, None], x.shape[-2:])

        def adapt_state(self, state):
            return state | {"scale": torch.ones_like(self.scale)}

    model = small(mixer="tied")
    before = blocks(model)[0].mixer.a.weight
    model.set_input_size(64)
    mixer = blocks(model)[0].mixer
    assert mixer.a.weight is mixer.b.weight is before


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_complex_and_real_parameters_keep_their_types_at_another_input_size(forget_mixers, norm):
    @register_mixer("filter")
    class Filter(nn.Module):
        def __init__(self, dim, *, size):
            super().__init__()
            self.weight = nn.Parameter(torch.full(size, 1j, dtype=torch.complex64))
            self.scale = nn.Parameter(torch.ones(size))

        def forward(self, x):
            return torch.fft.ifft2(torch.fft.fft2(x) * resize_to(self.weight.imag[None, None], x.shape[-2:])).real

        def adapt_state(self, state):
            return {name: value.mean().expand_as(getattr(self, name)) for name, value in state.items()}

    model = small(mixer="filter", norm1=norm)  # without a norm, the first parameter of a block is complex
    model.set_input_size(64)
    assert all((block.mixer.weight == 1j).all() for block in blocks(model))
    assert all(block.mixer.scale.dtype == torch.float64 for block in blocks(model))
    (block,) = blocks(MetaFormer(mixer="filter", depths=(1,), dims=(8,), dtype=torch.bfloat16))
    assert block.mixer.weight.dtype == torch.complex64 and block.mixer.scale.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is torch.complex64: give a type of floating-point numbers"):
        MetaFormer(dtype=torch.complex64)


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_of_another_size_need_adapt_state(forget_mixers, persistent):
    @register_mixer("masked")
    class Masked(nn.Module):
        def __init__(self, dim, *, size):
            super().__init__()
            self.register_buffer("mask", torch.ones(size), persistent=persistent)

        def forward(self, x):
            return x * self.mask

    words = r"Masked does not fit maps of \(16, 16\): mask has shape \(8, 8\) instead of \(16, 16\)"
    with pytest.raises(ValueError, match=words):
        small(mixer="masked").set_input_size(64)


# Features


def test_features_of_another_format_are_refused():
    with pytest.raises(ValueError, match="output_fmt is 'NLC'; features are maps: use output_fmt='NCHW'"):
        small().forward_intermediates(images(), output_fmt="NLC")


# Head


def test_a_model_without_any_parameter_in_its_blocks_has_a_head():
    bare = dict(mixer="identity", norm1="none", norm="none", mlp_ratio=0, layer_scale=0, **ISOTROPIC)
    model = small(**bare)
    assert keys(model) == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    assert_equal(model(images()), 4 * model.stem(images()).mean((2, 3)) @ model.head.weight.T + model.head.bias)


# Training


def test_mixers_and_mlps_can_have_different_dropout_rates():
    model = small(mixer="nin", mixer_args=({}, dict(proj_drop=0.3)), proj_drop_rate=0.1)
    assert [b.mixer.channel_mlp.drop1.p for b in blocks(model)] == [0.1, 0.3, 0.3]
    assert {b.mlp.drop1.p for b in blocks(model)} == {0.1}


# Errors


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(depths=3), "depths is 3: give a whole number of at least 1 for each stage"),
        (dict(depths=(1, 0)), r"depths is \(1, 0\): give a whole number of at least 1"),
        (dict(dims=(8, "16")), r"dims is \(8, '16'\): give a whole number of at least 1"),
        (dict(mlp_ratio=-1), "mlp_ratio is -1: give a finite number of at least 0"),
        (dict(mlp_ratio=math.inf), "mlp_ratio is inf: give a finite number of at least 0"),
        (dict(mlp_ratio=1e-3), "mlp_ratio 0.001 times 8 channels is less than one: give 0 for no MLP"),
        (dict(mlp_ratio=(4, "4")), "mlp_ratio is '4': give a finite number of at least 0"),
        (dict(layer_scale="1"), "layer_scale is '1': give a finite number of at least 0"),
        (dict(dims=(8,)), r"depths \(1, 2\) and dims \(8,\) differ in length: give one dim per depth"),
        (dict(mixer=("raft",) * 3), "mixer has 3 values, but needs 2: give 2 values, or a single value"),
        (dict(downsample=[ConvEmbed] * 2), "downsample has 2 values, but needs 1"),
        (dict(mixer_args=[{}, dict(size=8)]), "mixer_args has size: use mixer, dims and img_size"),
        (dict(global_pool="mean"), "global_pool is 'mean': give one of 'avg', 'max', 'avgmax', ''"),
        (dict(global_pool=None), "global_pool is None: give one of 'avg'"),
        (dict(num_classes=-1), "num_classes is -1: give a whole number of at least 0"),
        (dict(num_classes=True), "num_classes is True: give a whole number"),
        (dict(in_chans=0), "in_chans is 0: give a whole number of at least 1"),
        (dict(drop_path_rate=1.5), "drop_path_rate is 1.5: give a number from 0 to 1"),
        (dict(proj_drop_rate="0.1"), "proj_drop_rate is '0.1': give a number from 0 to 1"),
        (dict(mixer={}), "mixer is {}: give the name of a registered mixer, or a name for each stage"),
        (dict(mixer_args="pool_size=7"), "mixer_args is 'pool_size=7': give a dict of the mixer's options, or a dict"),
        (dict(mixer_args=[{}, 3]), r"mixer_args is \[{}, 3\]: give a dict"),
        (dict(act_layer="gelux"), "act_layer is 'gelux'; did you mean 'gelu'"),
        (dict(norm2="grupnorm"), "norm2 is 'grupnorm'; did you mean 'groupnorm"),
        (dict(norm=True), "norm is True. Accepted: batchnorm"),
        (dict(act_layer=""), "act_layer is ''. Accepted: silu"),
    ],
)
def test_wrong_options_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        small(**kwargs)


def test_a_refused_size_leaves_the_model_unchanged():
    model, x = small(mixer="raft", pos_embed=True), images()
    y = model(x)
    with pytest.raises(ValueError, match="img_size 2 is too small"):
        model.set_input_size(2)
    assert_equal(model(x), y, 0)


def test_a_users_mixer_is_built_and_must_define_adapt_state(forget_mixers):
    @register_mixer("mine")
    class Mine(nn.Module):
        def __init__(self, dim, *, size):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(dim, *size))

        def forward(self, x):
            return x.flip(-1)

    model = small(mixer=("mine", "raft"), img_size=(32, 16))
    assert blocks(model)[0].mixer.scale.shape == (8, 8, 4)
    assert_equal(model(images(32, 16)), formula(model, images(32, 16)))
    words = r"scale has shape \(8, 8, 4\) instead of \(8, 16, 16\). .* define Mine.adapt_state"
    with pytest.raises(ValueError, match=words):
        model.set_input_size(64)
    larger = small(mixer=("mine", "raft"), img_size=64)
    with pytest.raises(ValueError, match=rf"^FILE does not fit stages.0.blocks.0.mixer: {words}"):
        resample_spatial_weights(model.state_dict(), larger, "FILE")
    assert_equal(model(images(32, 16)), formula(model, images(32, 16)))


def test_a_failing_adapt_state_is_explained(forget_mixers):
    @register_mixer("broken")
    class Broken(nn.Module):
        def __init__(self, dim, *, size):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(size))

        def adapt_state(self, state):
            raise IndexError("scale has no third side")

    model, larger = small(mixer="broken"), small(mixer="broken", img_size=64)
    words = r"Broken.adapt_state cannot resample scale \(8, 8\): scale has no third side"
    with pytest.raises(ValueError, match=rf"^Broken does not fit maps of \(16, 16\): {words}"):
        model.set_input_size(64)
    with pytest.raises(ValueError, match=f"^FILE does not fit stages.0.blocks.0.mixer: {words}"):
        resample_spatial_weights(model.state_dict(), larger, "FILE")


def test_a_pruned_mixer_cannot_be_resampled():
    model = small(mixer="raft")
    prune.l1_unstructured(blocks(model)[0].mixer.vertical.fc1, "weight", 0.5)
    with pytest.raises(ValueError, match=r"Raft.adapt_state cannot resample .*vertical.fc1.weight_orig"):
        model.set_input_size(64)


def test_a_fractional_mlp_ratio_gives_the_exact_hidden_width():
    assert Block(176, nn.Identity(), mlp_ratio=960 / 176).mlp.fc1.out_channels == 960


@pytest.mark.parametrize("act_layer", ("gelu", nn.GELU))
def test_every_name_of_gelu_builds_our_gelu(act_layer):
    assert type(small(act_layer=act_layer).stages[0].blocks[0].mlp.act) is GELU


@pytest.mark.parametrize("name", ["metaformer_pooling_nano", "metaformer_wavemix_nano", "raftmlp_s"])
def test_low_rank_adapters_train_on_every_convolution(name):
    """Like peft's LoRA, add two convolutions of the layer's class; the second one starts at zero."""

    class Adapted(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, kind = layer, type(layer)
            self.down = kind(layer.in_channels, 4, layer.kernel_size, layer.stride, layer.padding, bias=False)
            self.up = kind(4, layer.out_channels, (1, 1), (1, 1), groups=layer.groups, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return self.layer(x) + self.up(self.down(x))

    model = timm.create_model(name, img_size=64, num_classes=5).eval()
    before = model(images(64, 64, dtype=torch.float32))
    layers = [path for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    for path in layers:
        parent, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, Adapted(model.get_submodule(path)))
    after = model(images(64, 64, dtype=torch.float32))
    assert_equal(after, before, 1e-5)
    after.sum().backward()
    assert all(model.get_submodule(path).up.weight.grad is not None for path in layers)
