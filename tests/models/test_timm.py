"""Test that every registered name behaves in timm like one of timm's own models.

The first half repeats the model tests of timm's repository for every name: at the trained size on the meta device, and
as small models on small images. Names that repeat others with more or wider blocks or more wavelet levels are tested
with `-m slow`, and some tests leave out the large sizes. The second half has further tests, which run on at least one
name of each mixer and family. `torch.compile`, `torch.export` and ONNX are in `test_timm_export.py`.
"""

import copy
import pickle
import re
from functools import lru_cache

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.models import create_feature_extractor, get_graph_node_names, get_model_input_config, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from metamix.models.checkpoint import layer_names
from metamix.models.listing import model_info
from metamix.models.registry import default_cfgs, register
from tests.helpers.counting import count_macs_of_equal_blocks

NAMES = list(default_cfgs)
LARGE = ("_s24", "_s36", "_m36", "_m48")  # ends of names
REPEATED = ("raftmlp_m", "raftmlp_l", "wavemix_256", "wavemix_320", "wavemix_192_16_l3")  # starts of names
FAMILIES = [
    *timm.list_models("metaformer_*_nano"), "raftmlp_s", "wavemix_144_7", "wavemix_192_16", "wavemixlite_8_10",
    "ninformer_cifar", "minattn_full_mlp_h4_cifar", "minattn_symmetric_nomlp_h4_mnist",
    "minattn_minimal_nomlp_h1_mnist",
]  # fmt: skip
ONE_OF_EACH = pytest.mark.parametrize("name", FAMILIES, scope="module")


def side(name):
    """Return the side of small square images: the largest multiple of the stride up to 16, but at least two strides."""
    cfg = default_cfgs[name].cfgs[""]
    stride = cfg.input_size[-1] // cfg.pool_size[-1]
    return max(2, 16 // stride) * stride


# Arguments that build fewer and narrower blocks, by a pattern of the model's name.
SMALL = {
    r"metaformer_\w+_nano": dict(depths=(1, 2, 1)),
    r"metaformer_\w+_tiny": dict(depths=(1, 1, 1, 1)),
    r"metaformer_\w+_s12": dict(depths=(1, 1, 2, 1), dims=(32, 64, 96, 128)),
    r"raftmlp_\w": dict(depths=(1, 1, 2, 1), dims=(16, 32, 48, 64)),
    r"wavemix_\d+_\d+\w*": dict(depth=4),
}


def small(name):
    """Return the arguments of a small model for small images."""
    sizes = [size for pattern, size in SMALL.items() if re.fullmatch(pattern, name)]
    return {"img_size": side(name)} | (sizes[0] if sizes else {})


def create(name, **kwargs):
    """Build a small model with the same weights at each call."""
    torch.manual_seed(0)
    return timm.create_model(name, **small(name) | kwargs).eval()


def images(model, *size, batch=2):
    torch.manual_seed(1)
    h, w = size or get_model_input_config(model)["input_size"][1:]
    p = next(model.parameters())
    return torch.randn(batch, model.in_chans, h, w).to(p.device, p.dtype)


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def shapes(tensors):
    return [tuple(t.shape) for t in tensors]


# Tests of every name. pytest runs all tests of one name before the next, so only the models of one name are in memory.
# Tests must not change them.


def slow_if_repeated(names):
    slow = pytest.mark.slow
    return [pytest.param(n, marks=slow) if n.endswith(LARGE) or n.startswith(REPEATED) else n for n in names]


@pytest.fixture(scope="module", params=slow_if_repeated(NAMES))
def name(request):
    return request.param


@pytest.fixture
def native(name):
    return native_model(name)


@pytest.fixture
def model(name):
    return small_model(name)


# These are not module fixtures: if pytest-xdist splits the tests of a name, pytest 9 passes the model of another name.
@lru_cache(maxsize=1)
def native_model(name):
    return timm.create_model(name, device="meta").eval()


@lru_cache(maxsize=1)
def small_model(name):
    return create(name)


# The large sizes repeat the blocks of s12, wider in m36 and m48. Other tests build them on the meta device.
NOT_LARGE = pytest.mark.parametrize(
    "name", slow_if_repeated(name for name in NAMES if not name.endswith(LARGE)), scope="module"
)


def test_default_cfg_describes_the_model(name, native):
    cfg, tensors = native.default_cfg, native.state_dict()
    assert all(t.is_meta for t in tensors.values())
    assert cfg["architecture"] == name
    for entry in ("input_size", "pool_size", "num_classes", "mean", "std", "crop_pct", "interpolation", "license"):
        assert cfg[entry], entry
    channels = cfg["input_size"][0]
    assert channels == native.in_chans == len(cfg["mean"]) == len(cfg["std"])
    assert cfg["num_classes"] == native.num_classes == native.get_classifier().out_features
    assert tensors[cfg["classifier"] + ".weight"].shape == native.get_classifier().weight.shape
    for conv in layer_names(cfg, "first_conv"):
        assert tensors[conv + ".weight"].shape[1] == channels
    assert get_model_input_config(native)["input_size"] == cfg["input_size"]
    for entry, value in resolve_data_config(model=native).items():
        assert entry == "crop_mode" or value == cfg[entry]


def test_listed_parameters_and_multiply_adds_are_up_to_date(name, native):
    """The listing reads `sizes.json`."""
    listed = model_info(name)
    assert listed.parameters == sum(p.numel() for p in native.parameters()), "run listing.write_sizes()"
    assert listed.macs == count_macs_of_equal_blocks(native, native.default_cfg["input_size"])


@NOT_LARGE
def test_features_and_heads_have_the_expected_shapes_at_the_trained_size(name, native):
    cfg, model = native.default_cfg, native
    h, w = cfg["input_size"][1:]
    maps, features = model.forward_intermediates(images(model, h, w))
    assert shapes(features) == [(2, i["num_chs"], h // i["reduction"], w // i["reduction"]) for i in model.feature_info]
    assert maps.shape == (2, model.num_features, *cfg["pool_size"])
    assert model.forward_head(maps).shape == (2, cfg["num_classes"])
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.head_hidden_size)


@NOT_LARGE
def test_default_features_come_from_all_stages_or_the_last_three_blocks(name, native):
    """Only isotropic models, which have one stage, return the last three blocks."""
    info = timm.create_model(name, features_only=True, device="meta").feature_info
    expected = native.feature_info[-3:] if len(native.stages) == 1 else native.feature_info
    assert len(expected) >= 3
    assert info.get_dicts(["num_chs", "reduction"]) == [{k: i[k] for k in ("num_chs", "reduction")} for i in expected]


@pytest.mark.parametrize("coarse", [False, True])
def test_parameters_are_grouped_by_depth(native, coarse):
    """The groups are the stem, each block (or stage) with the downsampling before it, and the head."""
    group, first = {}, 0  # group of each prefix; number of blocks in earlier stages
    for i, stage in enumerate(native.stages):
        for j in range(len(stage.blocks)):
            group[f"stages.{i}.blocks.{j}."] = i + 1 if coarse else first + j + 1
        group[f"stages.{i}.downsample."] = i + 1 if coarse else first + 1
        first += len(stage.blocks)
    last = max(group.values())
    group |= {"stem.": 0, "pos_embed": 0, "norm.": last + 1 if coarse else last, "head.": last + 1}
    groups = group_parameters(native, native.group_matcher(coarse), reverse=True)
    assert groups == {key: group[next(filter(key.startswith, group))] for key, _ in native.named_parameters()}


@NOT_LARGE
@torch.no_grad()
def test_outputs_are_finite_at_square_and_odd_sizes(name, model):
    for size in ((side(name), side(name)), (side(name) + 5, side(name) - 1)):
        y = model(images(model, *size))
        assert y.shape == (2, model.num_classes) and y.isfinite().all()


@NOT_LARGE
def test_every_parameter_gets_a_finite_gradient(name, model):
    model = copy.deepcopy(model).train()
    model.reset_classifier(42)
    y = model(images(model))
    assert y.shape == (2, 42)
    y.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# At least one name of each mixer and family


@ONE_OF_EACH
@torch.no_grad()
def test_reset_classifier_changes_classes_and_pooling(name, model):
    model, x = copy.deepcopy(model), images(model)
    maps = model.forward_features(x)
    pooled = model.forward_head(maps, pre_logits=True)
    assert_close(pooled, maps.mean((-2, -1)))
    classes = model.num_classes

    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    assert_close(model(x), maps)
    model.reset_classifier(5, "max")
    head, largest = model.get_classifier(), maps.amax((-2, -1))
    assert_close(model(x), F.linear(largest, head.weight, head.bias))
    model.reset_classifier(classes)
    assert model(x).shape == (2, classes)
    assert_close(model.forward_head(maps, pre_logits=True), largest)  # the pooling stays


@ONE_OF_EACH
@pytest.mark.parametrize("num_classes, pool", [(0, "avg"), (0, ""), (7, "max"), (7, "avgmax"), (7, "")])
@torch.no_grad()
def test_num_classes_and_global_pool_are_set_when_created(name, num_classes, pool):
    model = create(name, num_classes=num_classes, global_pool=pool)
    x = images(model)
    maps = model.forward_features(x)
    mean, largest = maps.mean((-2, -1)), maps.amax((-2, -1))
    expected = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2, "": maps}[pool]
    assert_close(model.forward_head(maps, pre_logits=True), expected)
    if num_classes:
        weight, bias = model.head.weight, model.head.bias
        expected = F.linear(expected, weight, bias) if pool else F.conv2d(expected, weight[..., None, None], bias)
    assert_close(model(x), expected)


@ONE_OF_EACH
@torch.no_grad()
def test_indices_choose_the_intermediate_features(name, model):
    x = images(model)
    final, features = model.forward_intermediates(x)
    assert_close(final, model.forward_features(x))
    n = len(features)
    for indices, chosen in ((1, [n - 1]), (2, [n - 2, n - 1]), ([0, -1], [0, n - 1]), ([-2], [n - 2]), ((1,), [1])):
        expected = [features[i] for i in chosen]
        assert_close(model.forward_intermediates(x, indices)[1], expected)
        assert_close(model.forward_intermediates(x, indices, intermediates_only=True), expected)
        stopped, taken = model.forward_intermediates(x, indices, stop_early=True)
        assert_close(taken, expected)
        assert_close(stopped, final if chosen[-1] == n - 1 else features[chosen[-1]])
    for feature, normed in zip(features, model.forward_intermediates(x, norm=True)[1]):
        assert_close(normed, model.norm(feature) if feature.shape[1] == model.num_features else feature)
    with pytest.raises(AssertionError, match=rf"feature index {n} is out of range \(0 to {n - 1}\)"):
        model.forward_intermediates(x, [n])


@ONE_OF_EACH
def test_stop_early_runs_only_the_needed_blocks(name, model):
    ran = []
    units = model.stages[0].blocks if model.isotropic else model.stages
    hooks = [unit.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, unit in enumerate(units)]
    model.forward_intermediates(images(model), [1], stop_early=True)
    assert ran == [0, 1]
    for hook in hooks:
        hook.remove()


@ONE_OF_EACH
@pytest.mark.parametrize("indices, last", [(1, -1), ([0, -2], -2), ([1], 1)])
def test_pruning_keeps_the_features_and_only_needed_parameters(name, model, indices, last):
    x, pruned = images(model), copy.deepcopy(model)
    _, expected = model.forward_intermediates(x, indices)
    taken = pruned.prune_intermediate_layers(indices, prune_norm=True)
    assert pruned.feature_info == model.feature_info[: taken[-1] + 1] and taken[-1] == last % len(model.feature_info)
    features = pruned.forward_intermediates(x, taken, intermediates_only=True)
    assert_close(features, expected)
    assert_close(pruned.forward_intermediates(x, [-1], intermediates_only=True), expected[-1:])
    assert_close(pruned(x), expected[-1])
    sum(feature.square().sum() for feature in features).backward()
    assert [key for key, p in pruned.named_parameters() if p.grad is None] == []  # only needed parameters are left
    pruned.reset_classifier(3, "avg")
    assert pruned(x).shape == (2, 3)


@ONE_OF_EACH
@torch.no_grad()
def test_pruning_without_norm_and_head_keeps_them_if_they_fit(name, model):
    x, pruned = images(model), copy.deepcopy(model)
    _, (feature,) = model.forward_intermediates(x, [-2])
    pruned.prune_intermediate_layers([-2], prune_norm=False, prune_head=False)
    if feature.shape[1] == model.num_features:
        assert_close(pruned(x), model.forward_head(model.norm(feature)))
    else:
        assert_close(pruned(x), feature)


@ONE_OF_EACH
@pytest.mark.parametrize("feature_cls, out_indices", [(None, None), (None, (0, 2)), ("hook", (1, -1)), ("fx", (1, -1))])
@torch.no_grad()
def test_features_only_equals_forward_intermediates(name, model, feature_cls, out_indices):
    x = images(model)
    default = len(model.stages) if len(model.stages) > 1 else 3
    expected = model.forward_intermediates(x, out_indices or default, intermediates_only=True)
    features = create(name, features_only=True, feature_cls=feature_cls, out_indices=out_indices)
    assert_close(features(x), expected)
    assert features.feature_info.channels() == [f.shape[1] for f in expected]
    assert features.feature_info.reduction() == [x.shape[-1] // f.shape[-1] for f in expected]


@pytest.mark.parametrize("feature_cls", ["list", "dict"])
@pytest.mark.parametrize("name", ["metaformer_raft_nano", "metaformer_wavemix_nano", "raftmlp_s"])
@torch.no_grad()
def test_timms_list_and_dict_features_equal_forward_intermediates(name, feature_cls):
    x = images(create(name))
    features = create(name, features_only=True, feature_cls=feature_cls)(x)
    expected = create(name).forward_intermediates(x, intermediates_only=True)
    assert_close(list(features.values()) if feature_cls == "dict" else features, expected)
    assert feature_cls == "list" or list(features) == ["0", "1", "2", "3"][: len(expected)]  # as in timm's models


@pytest.mark.parametrize("feature_cls", ["list", "dict"])
def test_timms_list_and_dict_features_are_refused_for_isotropic_models(feature_cls):
    with pytest.raises(ValueError, match=f"feature_cls='{feature_cls}' does not find the blocks of ninformer_cifar"):
        create("ninformer_cifar", features_only=True, feature_cls=feature_cls)


def test_names_of_weights_are_listed_once():
    """As for timm's own models, each set of weights is listed as NAME.TAG, and never as NAME alone."""
    listed = timm.list_pretrained("metaformer_*")
    assert "metaformer_pooling_s12.sail_in1k" in listed and "metaformer_pooling_nano.digits" in listed
    assert [name for name in listed if "." not in name] == []
    assert timm.create_model("metaformer_pooling_nano", pretrained=True).pretrained_cfg["tag"] == "cifar10"


def test_features_without_the_position_embedding_are_refused():
    arguments = dict(features_only=True, pos_embed=True)
    x = torch.randn(1, 3, 32, 32)
    model = create("metaformer_pooling_nano", pos_embed=True)
    features = create("metaformer_pooling_nano", **arguments)(x)
    assert_close(features, model.forward_intermediates(x, intermediates_only=True))
    for feature_cls in ("list", "dict", "hook"):
        with pytest.raises(ValueError, match=f"feature_cls='{feature_cls}' leaves out the position embedding"):
            create("metaformer_pooling_nano", feature_cls=feature_cls, **arguments)


@ONE_OF_EACH
def test_a_mixer_is_one_node_of_the_graph_of_timms_feature_extractor(name, model):
    model = copy.deepcopy(model)
    _, nodes = get_graph_node_names(model)
    mixer = "stages.0.blocks.0.mixer"
    assert [node for node in nodes if node.startswith(mixer)] == [mixer]
    traced, x = create_feature_extractor(model, [mixer, nodes[-1]]), images(model)
    _, y = traced(x).values()
    assert_close(y, model(x))
    _, y = traced.train()(x).values()
    y.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


# Endings of the names of parameters whose gradient is mathematically zero.
NO_EFFECT = {
    "metaformer_pooling_nano": (".norm1.bias",),  # a mean of neighbours minus the centre removes a constant
    "minattn_full_mlp_h4_cifar": (".key.bias",),  # shifts all similarities of a query equally, which softmax ignores
}


@ONE_OF_EACH
def test_every_parameter_has_an_effect(name):
    model = create(name, img_size=2 * side(name)).double().eval()  # batch statistics would remove some biases
    y = model(images(model))
    (y * torch.randn_like(y)).sum().backward()
    for key, p in model.named_parameters():
        if key.endswith(NO_EFFECT.get(name, ("none",))):
            assert p.grad.abs().max() < 1e-12, key
        else:
            assert p.grad.abs().max() > 1e-9, key


@ONE_OF_EACH
def test_grad_checkpointing_keeps_gradients_and_statistics(name, model):
    """Gradients and batch-norm statistics are the same, even with dropout, and each block runs twice."""

    def run(enable):
        m, runs = copy.deepcopy(model).train(), []
        m.set_grad_checkpointing(not enable)
        m.set_grad_checkpointing(enable)
        m.stages[-1].blocks[-1].mixer.register_forward_pre_hook(lambda *_: runs.append(1))
        x = images(m)
        torch.manual_seed(2)
        y = m(x)
        y.square().sum().backward()
        return len(runs), y, {key: p.grad for key, p in m.named_parameters()}, dict(m.named_buffers())

    (once, y, expected, statistics), (twice, again, grads, others) = run(False), run(True)
    assert (once, twice) == (1, 2)
    assert_close(again, y)
    assert_close(grads, expected, 1e-4)
    assert_close(others, statistics)


@ONE_OF_EACH
@torch.no_grad()
def test_every_layer_is_called(name, model):
    """A tool that wraps layers, such as LoRA, has no effect on a layer whose weights are used without calling it."""
    model, called = copy.deepcopy(model), set()
    layers = {m: key for key, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))}
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.add(module))
    model(images(model))
    assert not [key for layer, key in layers.items() if layer not in called]


def test_grad_checkpointing_keeps_statistics_of_synchronized_norms():
    plain = convert_sync_batchnorm(create("metaformer_wavemix_nano")).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images(model)).square().sum().backward()
    assert_close(dict(saving.named_buffers()), dict(plain.named_buffers()))


@ONE_OF_EACH
def test_layer_decay_scales_the_learning_rate_by_depth(name, native):
    groups = param_groups_layer_decay(native, layer_decay=0.5, no_weight_decay_list=native.no_weight_decay())
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scale) == len(list(native.parameters()))
    depth = sum(len(stage.blocks) for stage in native.stages)
    assert scale[id(native.head.weight)] == 1
    assert {scale[id(p)] for p in native.stages[-1].blocks[-1].parameters()} == {0.5}
    assert {scale[id(p)] for p in native.stages[0].blocks[0].parameters()} == {0.5**depth}
    assert {scale[id(p)] for p in native.stem.parameters()} == {0.5 ** (depth + 1)}


@ONE_OF_EACH
def test_weight_decay_leaves_out_norms_biases_and_positions(name, native):
    optimizer = create_optimizer_v2(native, opt="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, p in native.named_parameters():
        assert decayed[id(p)] == (0.0 if p.ndim == 1 or key == "pos_embed" else 0.1), key


@ONE_OF_EACH
@torch.no_grad()
def test_a_model_for_images_that_are_not_square_takes_any_size(name):
    s = side(name)
    model = create(name, img_size=(s, 2 * s))
    assert get_model_input_config(model)["input_size"][1:] == (s, 2 * s)
    for size in ((s, 2 * s), (2 * s, s), (s + 3, 2 * s - 1), (3 * s, 3 * s)):
        y = model(images(model, *size))
        assert y.shape == (2, model.num_classes) and y.isfinite().all()
    maps = model.forward_features(images(model))
    assert maps.shape[-2:] == tuple(n // model.feature_info[-1]["reduction"] for n in (s, 2 * s))


@ONE_OF_EACH
def test_in_chans_changes_only_the_first_convolutions(name, native):
    """Only the tensors that `first_conv` names change with the number of channels."""
    other = timm.create_model(name, device="meta", in_chans=5)
    a, b = native.state_dict(), other.state_dict()
    first = {f"{conv}.weight" for conv in layer_names(native.default_cfg, "first_conv")}
    assert {key for key in a if a[key].shape != b[key].shape} == first
    assert get_model_input_config(other)["input_size"][0] == other.in_chans == 5


@ONE_OF_EACH
def test_models_are_built_in_bfloat16(name, model):
    half = create(name, dtype=torch.bfloat16)
    assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    y = half(images(half))
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), model(images(model)), 0.1)
    half.reset_classifier(3)
    assert half(images(half)).dtype == torch.bfloat16
    meta = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    assert {(p.is_meta, p.dtype) for p in meta.parameters()} == {(True, torch.bfloat16)}


@ONE_OF_EACH
@torch.no_grad()
def test_channels_last_gives_the_same_outputs(name, model):
    x = images(model)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert_close(other(x.to(memory_format=torch.channels_last)), model(x), 1e-4)


@ONE_OF_EACH
def test_set_input_size_equals_building_for_the_size(name, native):
    size = (2 * side(name), side(name))
    model, made = copy.deepcopy(native), timm.create_model(name, device="meta", img_size=size)
    model.set_input_size(size)
    assert get_model_input_config(model)["input_size"][1:] == size
    tensors = model.state_dict()
    assert {key: t.shape for key, t in tensors.items()} == {key: t.shape for key, t in made.state_dict().items()}
    assert all(t.is_meta for t in tensors.values())


@ONE_OF_EACH
@torch.no_grad()
def test_set_input_size_keeps_outputs_unless_weights_are_resampled(name, model):
    model, h, w = copy.deepcopy(model), 2 * side(name), side(name)
    x = images(model, h, w)
    before = model(x)
    model.set_input_size((h, w))
    after = model(x)
    assert after.isfinite().all()
    if not any(word in name for word in ("raft", "nin", "minattn")):  # the other models do not depend on the size
        assert_close(after, before)
    model.set_input_size((h, w))
    assert_close(model(x), after)


@torch.no_grad()
def test_a_failed_set_input_size_leaves_the_model_unchanged(monkeypatch):
    model = timm.create_model("metaformer_raft_nano").eval()
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    monkeypatch.setattr(type(model.stages[2].blocks[0].mixer), "adapt_state", lambda self, state: {})
    with pytest.raises(ValueError, match=r"Raft does not fit maps of \(24, 24\): Raft.adapt_state .*: .*Missing key"):
        model.set_input_size(48)
    assert torch.equal(model(x), before)


@ONE_OF_EACH
def test_frozen_parameters_stay_frozen_at_another_size(name, model):
    model = copy.deepcopy(model).requires_grad_(False)
    model.set_input_size(2 * side(name))
    assert not any(p.requires_grad for p in model.parameters())


@ONE_OF_EACH
@pytest.mark.parametrize("by", ["deepcopy", "pickle"])
@torch.no_grad()
def test_copied_and_pickled_models_share_no_tensors(name, model, by):
    other = copy.deepcopy(model) if by == "deepcopy" else pickle.loads(pickle.dumps(model))
    x = images(model)
    y = model(x)
    assert_close(other(x), y)
    for p in other.parameters():
        p.zero_()
    assert not other(x).any()
    assert_close(model(x), y)  # no tensor is shared
    other.set_input_size(2 * side(name))
    assert get_model_input_config(model)["input_size"][1:] == (side(name),) * 2


# The registry


def test_all_names_are_registered_and_none_replaces_a_model_of_timm():
    assert len(NAMES) >= 88 and len(FAMILIES) >= 15
    assert set(NAMES) <= set(timm.list_models())
    for name, module in (("poolformer_s12", "timm.models.metaformer"), ("raftmlp_s", "metamix.models.registry")):
        with pytest.raises(ValueError, match=rf"a model named '{name}' \({module}\): choose another name"):
            register(name, cfg={})
    assert timm.model_entrypoint("poolformer_s12").__module__.startswith("timm.")


@pytest.mark.parametrize("name", ["metaformer_raft_nano", "raftmlp_s", "wavemix_144_7", "ninformer_cifar", NAMES[-1]])
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout'; did you mean 'drop_rate'"):
        timm.create_model(name, dropout=0.1)


@pytest.mark.parametrize("name", ["metaformer_pooling_nano", "metaformer_pooling_s12"])
def test_a_single_image_is_refused(name):
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\), not .*: for one image, give image\[None\]"):
        timm.create_model(name)(torch.zeros(3, 32, 32))


def test_the_mixer_of_a_name_can_be_replaced():
    def tensors(name, **kwargs):
        return {k: t.shape for k, t in timm.create_model(name, device="meta", **kwargs).state_dict().items()}

    swapped = tensors("metaformer_pooling_nano", mixer="raft")
    assert swapped == tensors("metaformer_raft_nano") != tensors("metaformer_pooling_nano")
    mixed = create("metaformer_pooling_nano", mixer=("pooling", "wavemix", "minattn"))
    assert [type(stage.blocks[0].mixer).__name__ for stage in mixed.stages] == ["Pooling", "WaveMix", "MinAttn"]
    assert mixed(images(mixed)).isfinite().all()


@pytest.mark.parametrize("name", ["metaformer_raft_s12", "minattn_full_mlp_h4_cifar"])
@pytest.mark.parametrize(
    "img_size, words",
    [
        (2, "img_size 2 is too small: the maps would be .*; give a larger one"),
        ((32, 32, 3), r"img_size is \(32, 32, 3\): give a whole number of at least 1, or \(height, width\)"),
        ("large", "img_size is 'large': give a whole number"),
        (True, "img_size is True: give a whole number"),
        (-32, "img_size is -32: give a whole number"),
    ],
)
def test_wrong_image_sizes_are_refused(name, img_size, words):
    model = timm.create_model(name, device="meta")
    for resize in (lambda size: timm.create_model(name, img_size=size, device="meta"), model.set_input_size):
        with pytest.raises(ValueError, match=words):
            resize(img_size)
    assert get_model_input_config(model)["input_size"] == model.default_cfg["input_size"]


def test_torchscript_is_not_supported():
    with pytest.raises(ValueError, match="scriptable=True.*use torch.compile or torch.export"):
        timm.create_model("metaformer_raft_nano", scriptable=True)


def test_a_traced_model_can_be_pickled():
    traced = torch.fx.symbolic_trace(timm.create_model("metaformer_raft_nano").eval())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), traced(x))


@pytest.mark.parametrize("name", ["my.net", "my net", ""])
def test_a_name_that_timm_would_not_find_is_refused(name):
    with pytest.raises(ValueError, match="a model cannot be named .*: give letters, digits and underscores"):
        register(name, cfg={})


@torch.no_grad()
def test_pretrained_weights_are_adapted_in_float32():
    """Shipped weights are in float16. Adding channels of the first convolution in float16 would lose three digits."""
    name = "metaformer_pooling_nano.cifar10"
    grey, colour = (timm.create_model(name, pretrained=True, in_chans=n).eval() for n in (1, 3))
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_an_overlay_may_name_weights_that_are_not_shipped(tmp_path):
    def create(**overlay):
        return timm.create_model(
            "metaformer_pooling_nano", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path / "cache"
        )

    with pytest.raises(FileNotFoundError, match="pretrained_cfg_overlay: there is no file .*nowhere"):
        create(file=str(tmp_path / "nowhere.safetensors"))
    state = timm.create_model("metaformer_pooling_nano").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    assert torch.equal(create(url=(tmp_path / "weights.pth").as_uri()).head.weight, state["head.weight"])
