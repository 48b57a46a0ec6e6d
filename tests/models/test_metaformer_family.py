"""Test the comparison family: names, sizes and costs."""

import re
from functools import cache

import pytest
import timm
import torch
from torch import nn

import metamix
from metamix.models import count_macs
from metamix.models.listing import model_info
from metamix.models.metaformer_family import SIZES, conv_norm_act, fourfold_stem, twofold_stem
from tests.helpers.counting import count_macs_of_equal_blocks

MIXERS = metamix.list_mixers()

# Parameters and multiply-adds of the models in arXiv 2111.11418, table 1, counted in the authors' code.
POOLFORMER = {
    "s12": (11_915_176, 1_812_267_008),
    "s24": (21_388_968, 3_392_208_896),
    "s36": (30_862_760, 4_972_150_784),
    "m36": (56_172_520, 8_758_788_096),
    "m48": (73_473_448, 11_533_320_192),
}


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


ONE_BLOCK = (1, 1, 1, 1)  # the blocks of a stage are alike


@cache
def shapes(mixer, size, depths=None):
    """Build a model on the meta device, which takes no memory."""
    return create(f"metaformer_{mixer}_{size}", device="meta", num_classes=10, depths=depths or SIZES[size]["depths"])


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_family_has_every_mixer_in_every_size():
    assert list(SIZES) == ["nano", "tiny", *POOLFORMER]
    assert set(timm.list_models("metaformer_*")) == {f"metaformer_{mixer}_{size}" for mixer in MIXERS for size in SIZES}


@pytest.mark.parametrize("size", POOLFORMER)
def test_pooling_has_the_shapes_and_costs_of_poolformer(size):
    model = create(f"metaformer_pooling_{size}", device="meta")
    assert (parameters(model), count_macs_of_equal_blocks(model, (3, 224, 224))) == POOLFORMER[size]
    theirs = timm.create_model(f"poolformer_{size}", device="meta")
    assert [p.shape for p in model.parameters() if p.ndim > 1] == [p.shape for p in theirs.parameters() if p.ndim > 1]


@pytest.mark.parametrize("size", POOLFORMER)
def test_only_the_mixer_differs(size):
    def outside(mixer):
        model = shapes(mixer, size, ONE_BLOCK)
        state = {k: v.shape for k, v in model.state_dict().items() if ".mixer." not in k}
        text = re.sub(r"\(mixer\).*?(?=\n      *\((layer_scale1|drop_path1))", "", str(model), flags=re.S)
        return state, text, parameters(model)

    identity, text, floor = outside("identity")
    for mixer in MIXERS:
        state, same, total = outside(mixer)
        assert state == identity
        assert same == text
        assert (total > floor) == (mixer not in ("identity", "pooling"))


@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers_have_at_most_half_as_many_parameters_as_the_mlps(mixer):
    for size in POOLFORMER:
        stages = zip(SIZES[size]["depths"], shapes(mixer, size, ONE_BLOCK).stages)
        spare = sum(n * (parameters(s.blocks[0].mlp) / 2 - parameters(s.blocks[0].mixer)) for n, s in stages)
        assert spare >= 0, size


@pytest.mark.parametrize("size, macs", [("nano", 73_631_616), ("tiny", 128_265_216)])
def test_small_sizes_cost_almost_the_same_with_every_mixer(size, macs):
    """The costs come from the listing, which test_timm.py compares with the models."""
    costs = {mixer: model_info(f"metaformer_{mixer}_{size}").macs for mixer in MIXERS}
    assert costs["identity"] == costs["pooling"] == macs
    assert all(abs(cost / costs["identity"] - 1) <= 0.03 for cost in costs.values()), costs


@pytest.mark.parametrize("size", ["nano", "tiny"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers_of_small_sizes_have_at_most_the_parameters_of_full_mlps(mixer, size):
    def total(part, name):
        return sum(parameters(getattr(b, part)) for stage in shapes(name, size).stages for b in stage.blocks)

    assert total("mixer", mixer) <= total("mlp", "identity")


def test_each_stage_has_the_mlp_ratio_of_its_mixer():
    model = create("metaformer_pooling_nano", mixer=("pooling", "raft", "minattn"))
    assert [stage.blocks[0].mlp.fc1.out_channels for stage in model.stages] == [4 * 64, 2 * 128, 2 * 192]
    assert model.stages[1].blocks[0].mixer.vertical.fc1.weight.shape[0] == 2 * 8 * 8  # expansion, raft size, map side
    assert create("metaformer_raft_nano", mlp_ratio=1.0).stages[0].blocks[0].mlp.fc1.out_channels == 64


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("size, side, classes, least, most", [("nano", 32, 10, 1e6, 2e6), ("tiny", 128, 200, 3e6, 4e6)])
def test_small_sizes_train_on_their_images(size, side, classes, least, most, mixer):
    model = create(f"metaformer_{mixer}_{size}").train()
    assert least <= parameters(model) <= most
    assert model.pretrained_cfg["input_size"] == (3, side, side) and model.pretrained_cfg["num_classes"] == classes
    y = model(torch.randn(2, 3, side, side))
    assert y.shape == (2, classes)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mixer", ["raft", "nin"])
def test_tiny_has_the_same_weight_shapes_for_images_of_64_to_160_pixels(mixer):
    at_64, at_128, at_160 = (create(f"metaformer_{mixer}_tiny", img_size=side) for side in (64, 128, 160))
    at_128.load_state_dict(at_64.state_dict())
    at_160.load_state_dict(at_64.state_dict())


@pytest.mark.parametrize("size", ["tiny", "s12"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_pyramids_run_on_images_of_224_and_on_larger_images(mixer, size):
    model = create(f"metaformer_{mixer}_{size}", features_only=True, depths=ONE_BLOCK)
    with torch.no_grad():
        for h, w in ((224, 224), (320, 480)):
            features = model(torch.randn(1, 3, h, w))
            assert [f.shape[1:] for f in features] == [
                (dim, -(-h // stride), -(-w // stride)) for dim, stride in zip(SIZES[size]["dims"], (4, 8, 16, 32))
            ]
            assert all(f.isfinite().all() for f in features)


@pytest.mark.parametrize("mixer", MIXERS)
def test_work_is_linear_in_the_number_of_tokens(mixer):
    """Four times the pixels take at most 4.01 times the multiply-adds."""
    model = create(f"metaformer_{mixer}_s12", device="meta", depths=(1, 1, 1, 1), num_classes=0)
    at = [count_macs(model, (3, side, side)) for side in (448, 896)]
    assert at[1] < 4.01 * at[0]


def test_default_options_of_a_mixer_can_be_overridden():
    table = create("metaformer_minattn_nano").stages[0].blocks[0].mixer
    changed = create("metaformer_minattn_nano", mixer_args=dict(num_heads=1, context=None)).stages[0].blocks[0].mixer
    assert (table.heads, table.context, table.symmetric) == (4, (8, 8), True)
    assert (changed.heads, changed.context, changed.symmetric) == (1, None, True)


@pytest.mark.parametrize("size, dims, heads", [("nano", (64, 128, 256), 8), ("s12", (48, 96, 240, 384), 12)])
def test_heads_of_minattn_divide_other_widths(size, dims, heads):
    model = create(f"metaformer_minattn_{size}", dims=dims)
    assert model.stages[-1].blocks[0].mixer.heads == heads


# A user's mixer


@pytest.fixture
def mine(forget_mixers):
    @metamix.register_mixer("mine")
    class Mine(nn.Conv2d):
        def __init__(self, dim, *, size, kernel_size=3):
            super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    return Mine


def test_a_users_mixer_works_under_a_name_of_the_family(mine):
    model = create("metaformer_pooling_s12", mixer="mine", num_classes=10)
    assert [type(b.mixer) for stage in model.stages for b in stage.blocks] == [mine] * 12
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert {k for k in model.state_dict() if ".mixer." not in k} == set(create("metaformer_pooling_s12").state_dict())


@pytest.mark.parametrize("feature_cls", [None, "fx", "hook"])
def test_a_users_mixer_works_with_features_only(mine, feature_cls):
    kwargs = {} if feature_cls is None else dict(feature_cls=feature_cls)
    model = create("metaformer_pooling_s12", mixer="mine", features_only=True, **kwargs)
    assert [f.shape for f in model(torch.randn(1, 3, 64, 96))] == [
        (1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)
    ]  # fmt: skip


def test_a_users_mixer_in_some_stages_gets_its_options(mine):
    mixers = ("mine", "pooling", "minattn", "mine")
    model = create("metaformer_pooling_s12", mixer=mixers, mixer_args=({}, {}, {}, {"kernel_size": 5}))
    names = [type(stage.blocks[0].mixer).__name__ for stage in model.stages]
    assert names == ["Mine", "Pooling", "MinAttn", "Mine"]
    assert [model.stages[i].blocks[0].mixer.kernel_size for i in (0, 3)] == [(3, 3), (5, 5)]
    assert model.stages[2].blocks[0].mixer.heads == 10  # the family's default options still apply
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("embed", [conv_norm_act, twofold_stem, fourfold_stem])
def test_out_size_of_an_embedding_is_the_size_of_its_map(embed, size):
    down = embed(3, 4).eval()
    assert down(torch.randn(2, 3, *size)).shape == (2, 4, *down.out_size(size))
