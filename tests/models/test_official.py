"""Test that models of `load_official` give the outputs of the authors' code, and that wrong input is refused."""

import einops
import pytest
import pywt
import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1
from timm.models.metaformer import MetaFormer as TimmMetaFormer
from timm.models.metaformer import checkpoint_filter_fn as timm_names
from torch import nn

from metamix.mixers import MinAttn
from metamix.mixers.wavemix import dwt2
from metamix.models import ShortcutClassifier, load_official, official, raftmlp, wavemix
from tests.helpers.goldens import GOLDENS, read_exact, read_golden


class Golden:
    """Read the authors' arguments, weights, input and float64 output; MAXIM's maps become (B, C, H, W)."""

    def __init__(self, name: str):
        self.constructor, self.state, tensors = read_golden(name)
        self.features = {k: v for k, v in tensors.items() if k.startswith(("features/", "extra/"))}
        self.source = next((s for s in official.SOURCES if name.startswith(s)), None)
        self.input, self.output = tensors["input"], read_exact(name)["output"]
        if self.source == "maxim_mab":
            self.input, self.output = self.input.movedim(-1, 1), self.output.movedim(-1, 1)

    def model(self) -> nn.Module:
        return load_official(self.source, self.state, **self.constructor)

    def deviation(self, output: torch.Tensor) -> float:
        return float((output - self.output).abs().max() / self.output.std())


MODELS = sorted(p.stem for p in GOLDENS.glob("*.json") if not p.stem.startswith(("minattn", "wavemix_dwt")))
ONE_OF_EACH = (
    "poolformer_tiny_40x72", "raftmlp_r2_crossmlp_96x80", "raftmlp_r2_crossmlp_shortcut_64x64",
    "raftmlp_r4_embmixer_64x64", "wavemix_cls_level1_pachify_64x64", "wavemix_cls_level3_strided_s1_64x64",
    "ninformer_tiny_16x16", "maxim_mab_b2x4_g3x2_12x8",
)  # fmt: skip


def test_all_goldens_are_here():
    assert len(MODELS) == 13 and len(list(GOLDENS.glob("minattn_*.json"))) == 12


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_outputs_equal_the_authors_outputs(name):
    golden = Golden(name)
    model = golden.model()
    assert golden.deviation(model(golden.input)) < 1e-4
    assert golden.deviation(model.double()(golden.input.double())) < 1e-9


@pytest.mark.parametrize("name", [n for n in MODELS if Golden(n).features])
@torch.no_grad()
def test_features_equal_the_authors_features(name):
    """The authors' features are stored in float32."""
    golden = Golden(name)
    model = golden.model()
    trunk = model.model if isinstance(model, ShortcutClassifier) else model
    stem = trunk.embed(golden.input)
    stages = trunk.forward_intermediates(golden.input, intermediates_only=True)
    ours = {f"features/{i}": stage for i, stage in enumerate(stages)} | {
        "extra/level0_embedding": stem,
        "features/stem": stem,
        "features/block0_residual_branch": trunk.stages[0].blocks[0].mixer(stem),
    }
    for key, theirs in golden.features.items():
        feature = ours[key].flatten(2).mT if theirs.ndim == 3 else ours[key]  # (B, N, C)
        assert (feature - theirs).abs().max() < 1e-4 * theirs.std(), key


def swap_gelu(model):
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "none" if module.approximate == "tanh" else "tanh"


def swap_eps(model):
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-5 if module.eps == 1e-6 else 1e-6


def count_padding(model):
    for module in model.modules():
        if isinstance(module, nn.AvgPool2d):
            module.count_include_pad = True


def resample_branch(model):
    for stage in model.stages:
        for block in stage.blocks:
            block.mixer.resample = "branch"


MISTAKES = [
    *((name, mistake) for name in ONE_OF_EACH for mistake in (swap_gelu, swap_eps)),
    ("poolformer_tiny_40x72", count_padding),
    ("raftmlp_r2_crossmlp_96x80", resample_branch),
]


@pytest.mark.parametrize("name, mistake", MISTAKES)
@torch.no_grad()
def test_the_tolerance_catches_small_mistakes(name, mistake):
    golden = Golden(name)
    model = golden.model()
    mistake(model)
    assert golden.deviation(model.double()(golden.input.double())) > 1e-9


@pytest.mark.parametrize("name", [n for n in ONE_OF_EACH if n.startswith(("raftmlp", "wavemix"))])
@torch.no_grad()
def test_the_tolerance_catches_another_order_of_channels(name, monkeypatch):
    for family in (raftmlp, wavemix):
        monkeypatch.setattr(family, "rearrange", lambda x, to, **axes: x.reshape(einops.rearrange(x, to, **axes).shape))
    golden = Golden(name)
    assert golden.deviation(golden.model().double()(golden.input.double())) > 1e-9


@torch.no_grad()
def test_checkpoints_of_timms_poolformer_are_loaded():
    """Our model has timm's features and, unlike timm's model, the authors' logits."""
    golden = Golden("poolformer_tiny_40x72")
    arguments = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=10)
    version_1 = dict(downsample_norm=None, mlp_act=nn.GELU, mlp_bias=True, norm_layers=GroupNorm1, use_mlp_head=False)
    version_1 |= dict(layer_scale_init_values=1e-5, res_scale_init_values=None)
    theirs = TimmMetaFormer(**arguments, **version_1).eval()
    theirs.load_state_dict(timm_names(golden.state, theirs))
    ours = load_official("timm_poolformer", theirs.state_dict(), **arguments, **version_1)
    features = [m.forward_intermediates(golden.input, intermediates_only=True) for m in (ours, theirs)]
    for a, b in zip(*features, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    ours.double(), theirs.double()
    assert golden.deviation(ours(golden.input.double())) < 1e-9
    assert golden.deviation(theirs(golden.input.double())) > 0.1  # timm pools before it normalises


# Minimal attention: our mixer in a third party's encoder

SIMILARITY = {
    "unchanged": dict(qk="separate"),
    "Wqk": dict(qk="collapsed"),
    "Wqk+noWvWo": dict(qk="collapsed", value=False),
    "symmetry": dict(qk="cholesky"),
}
ATTENTION_NAMES = {"qk": "query", "out": "proj", "trainable_params": "query.entries"}


def encoder(image, state, constructor, eps=1e-5):
    """Run an encoder with a class token and a norm after each half of a layer, and classify the class token."""
    dim = constructor["embed_dim"]
    x = F.conv2d(
        image, state["embedding.patcher.0.weight"], state["embedding.patcher.0.bias"], constructor["patch_size"]
    )
    x = x.flatten(2).mT  # (B, N, C)
    x = (
        torch.cat([state["embedding.cls_token"].expand(len(x), 1, dim), x], dim=1)
        + state["embedding.position_embeddings"]
    )
    for i in range(constructor["num_layers"]):
        p = f"transformer_encoder.layers.{i}."
        p = {k.removeprefix(p): v for k, v in state.items() if k.startswith(p)}
        heads = constructor["num_heads"]
        mixer = MinAttn(dim, size=(x.shape[1], 1), num_heads=heads, **SIMILARITY[constructor["modification"]]).to(
            x.dtype
        )
        attention = {}
        for key, value in p.items():
            if key.startswith("self_attn."):
                first, *rest = key.removeprefix("self_attn.").split(".")
                value = value[..., None, None] if rest == ["weight"] else value
                attention[".".join([ATTENTION_NAMES.get(first, first), *rest])] = value
        mixer.load_state_dict(attention)
        x = x + mixer.eval()(x.mT[..., None])[..., 0].mT  # the tokens are a map of one column
        x = F.layer_norm(x, (dim,), p["norm1.weight"], p["norm1.bias"], eps)
        if constructor["include_mlp"]:
            hidden = F.gelu(F.linear(x, p["mlp.0.weight"], p["mlp.0.bias"]))
            x = x + F.linear(hidden, p["mlp.2.weight"], p["mlp.2.bias"])
            x = F.layer_norm(x, (dim,), p["norm2.weight"], p["norm2.bias"], eps)
    return F.linear(x[:, 0], state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDENS.glob("minattn_*.json")))
@torch.no_grad()
def test_minimal_attention_gives_the_outputs_of_the_original_code(name):
    golden = Golden(name)
    double = {k: v.double() for k, v in golden.state.items()}
    assert golden.deviation(encoder(golden.input, golden.state, golden.constructor)) < 1e-4
    assert golden.deviation(encoder(golden.input.double(), double, golden.constructor)) < 1e-9
    assert golden.deviation(encoder(golden.input.double(), double, golden.constructor, eps=1e-6)) > 1e-9


# The wavelet transform


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDENS.glob("wavemix_dwt_*.json")))
def test_the_wavelet_transform_equals_the_authors_transform(name):
    constructor, _, tensors = read_golden(name)
    low = tensors["input"].double()
    for level in range(constructor["J"]):
        bands = dwt2(low, pywt.Wavelet(constructor["wave"]).filter_bank[:2]).unflatten(1, (4, -1))
        low, high = bands[:, 0], bands[:, 1:].transpose(1, 2)  # (B, C, 3, h, w), as in the authors' tensors
        assert (high - tensors[f"yh/{level}"]).abs().max() < 1e-6
        assert (high.flip(2) - tensors[f"yh/{level}"]).abs().max() > 1e-6  # the control: bands in another order
    assert (low - tensors["yl"]).abs().max() < 1e-6


# State dicts and trees


def test_a_state_dict_may_be_stored_under_a_key():
    golden = Golden("ninformer_tiny_16x16")
    arguments = golden.constructor
    plain = golden.model()(golden.input)
    for wrapped in ({"state_dict": golden.state, "epoch": 3}, {"model": golden.state}):
        assert torch.equal(load_official("ninformer", wrapped, **arguments)(golden.input), plain)


def test_a_loaded_model_names_no_published_weights():
    """The builders use registered names, but a loaded model does not have the registered weights."""
    golden = Golden("wavemix_cls_level1_pachify_64x64")
    model = golden.model()
    assert model.pretrained_cfg["architecture"] == "wavemix_192_16"
    assert not {"tag", "url", "hf_hub_id", "file"} & model.pretrained_cfg.keys()
    assert model.pretrained_cfg["num_classes"] == model.num_classes == golden.constructor["num_classes"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_tensors_that_do_not_fit_are_named(name):
    golden = Golden(name)
    for key in list(golden.state)[::20]:
        for state, words in (
            ({k: v for k, v in golden.state.items() if k != key}, f"lacks {key}"),
            (golden.state | {key: torch.ones(*golden.state[key].shape, 3)}, f"has {key} of shape"),
            (golden.state | {f"{key}.old": golden.state[key]}, f"that the model lacks: {key}.old"),
        ):
            with pytest.raises(ValueError, match=words):
                load_official(golden.source, state, **golden.constructor)


def test_tensors_with_our_names_are_refused():
    golden = Golden("poolformer_tiny_32x32")
    with pytest.raises(ValueError, match="lacks network.0.0.layer_scale_1"):
        load_official("poolformer", golden.model().state_dict(), **golden.constructor)


@pytest.mark.parametrize(
    "state, words",
    [
        ("weights.pth", "state_dict is a str; give tensors by name"),
        ({"net": {"arch": "wavemix"}}, "net/arch is not a tensor, but of type str: give only tensors, by name"),
        ({"model": nn.Identity()}, "model is not a tensor, but of type Identity"),
    ],
)
def test_state_dicts_with_values_that_are_not_tensors_are_refused(state, words):
    with pytest.raises(ValueError, match=words):
        load_official("wavemix", state)


# Arguments


def build(source, **constructor):
    return official.SOURCES[source]({"LayerNorm_in/scale": torch.ones(8)}, **constructor)[0]


POOL = dict(layers=[1, 1], embed_dims=[8, 16], num_classes=10, downsamples=[True, True], mlp_ratios=[4, 4])
TIMM = dict(depths=[1, 1], dims=[8, 16])
LEVEL = dict(depth=1, dim=8, patch_size=4, raft_size=2, embedding_kernels=[4, 8])
RAFT = dict(layers=[LEVEL, LEVEL | dict(raft_size=4, depth=2)], pretrained_image_size=64)
WAVE = dict(final_dim=16, ff_channel=16, depth=2, level=1)
NIN = dict(d_model=16, d_ffn=32, num_layers=2, image_size=16, seq_len=16)
MAXIM = dict(block_size=(2, 4), grid_size=(3, 2))


def first(model):
    return model.stages[0].blocks[0]


def last(model):
    return model.stages[-1].blocks[0]


def reduction(model):
    return model.feature_info[1]["reduction"]


HONOURED = [
    ("poolformer", POOL | dict(pool_size=5), lambda m: first(m).mixer.pool.kernel_size, 5),
    ("poolformer", POOL | dict(mlp_ratios=[2, 3]), lambda m: first(m).mlp.fc1.out_channels, 16),
    ("poolformer", POOL | dict(mlp_ratios=[2, 3]), lambda m: last(m).mlp.fc1.out_channels, 48),
    ("poolformer", POOL | dict(norm_layer=nn.BatchNorm2d), lambda m: type(m.norm), nn.BatchNorm2d),
    ("poolformer", POOL | dict(act_layer=nn.ReLU), lambda m: type(first(m).mlp.act), nn.ReLU),
    ("poolformer", POOL | dict(num_classes=0), lambda m: type(m.head), nn.Identity),
    ("poolformer", POOL | dict(in_patch_size=5, in_stride=3, in_pad=1), lambda m: m.stem.out_size((9, 9)), (3, 3)),
    ("poolformer", POOL | dict(down_patch_size=5, down_stride=3, down_pad=1), reduction, 12),
    ("poolformer", POOL | dict(drop_rate=0.3), lambda m: (first(m).mlp.drop1.p, m.head_drop.p), (0.3, 0)),
    ("poolformer", POOL | dict(drop_path_rate=0.3), lambda m: last(m).drop_path1.drop_prob, pytest.approx(0.3)),
    ("poolformer", POOL | dict(use_layer_scale=False), lambda m: type(first(m).layer_scale1), nn.Identity),
    ("poolformer", POOL | dict(layer_scale_init_value=0.5), lambda m: first(m).layer_scale1.gamma[0].item(), 0.5),
    ("poolformer", POOL | dict(downsamples=[False, False]), reduction, 8),
    ("timm_poolformer", TIMM | dict(in_chans=1), lambda m: m.stem.in_channels, 1),
    ("timm_poolformer", TIMM | dict(global_pool="max"), lambda m: m.global_pool.pool_type, "max"),
    ("timm_poolformer", TIMM | dict(drop_rate=0.2), lambda m: m.head_drop.p, 0.2),
    ("timm_poolformer", TIMM | dict(proj_drop_rate=0.2), lambda m: first(m).mlp.drop1.p, 0.2),
    ("timm_poolformer", TIMM | dict(layer_scale_init_values=None), lambda m: type(first(m).layer_scale1), nn.Identity),
    ("raftmlp", RAFT, lambda m: m.model.stages[1].blocks[1].mixer.vertical.raft_size, 4),
    ("raftmlp", RAFT | dict(shortcut=False, in_channels=1), lambda m: m.stem.convs[1].in_channels, 1),
    ("raftmlp", dict(layers=[LEVEL]), lambda m: type(m).__name__, "MetaFormer"),
    ("raftmlp", RAFT | dict(token_expansion_factor=3), lambda m: len(first(m.model).mixer.vertical.fc1.weight), 96),
    ("raftmlp", RAFT | dict(channel_expansion_factor=3), lambda m: first(m.model).mlp.fc1.out_channels, 24),
    ("raftmlp", RAFT | dict(embedding_type="emb_mixer"), lambda m: [c.kernel_size[0] for c in m.model.stem.convs], [4]),
    ("wavemix", WAVE | dict(initial_conv="strided", stride=3), lambda m: m.stem.reduction, 9),
    ("wavemix", WAVE | dict(patch_size=3), lambda m: m.stem.reduction, 3),
    ("wavemix", WAVE | dict(mult=3), lambda m: first(m).mixer.levels[0].fc1.out_channels, 48),
    ("wavemix", WAVE | dict(ff_channel=24), lambda m: first(m).mixer.levels[0].up.in_channels, 24),
    ("wavemix", WAVE | dict(dropout=0.1), lambda m: first(m).mixer.levels[0].drop.p, 0.1),
    ("ninformer", NIN | dict(dropout=0.1), lambda m: {first(m).mlp.drop1.p, first(m).mixer.token_mlp.drop2.p}, {0.1}),
    ("ninformer", NIN | dict(in_channels=1), lambda m: m.stem.in_channels, 1),
    ("maxim_mab", MAXIM | dict(input_proj_factor=4), lambda m: m.mixer.fc1.out_channels, 32),
    ("maxim_mab", MAXIM | dict(block_gmlp_factor=4), lambda m: m.mixer.block.fc1.out_channels, 32),
    ("maxim_mab", MAXIM | dict(grid_gmlp_factor=4), lambda m: m.mixer.grid.fc1.out_channels, 32),
]


@pytest.mark.parametrize("source, constructor, observe, expected", HONOURED)
def test_arguments_are_honoured(source, constructor, observe, expected):
    assert observe(build(source, **constructor)) == expected


REFUSED = [
    ("pool_former", {}, "source is 'pool_former'; did you mean 'poolformer'?"),
    ("poolformer", POOL | dict(layer_scale_init=1), "no option 'layer_scale_init'; .*'layer_scale_init_value'?"),
    ("poolformer", {}, "poolformer needs layers, embed_dims"),
    ("poolformer", POOL | dict(mlp_ratios=[4]), "mlp_ratio has 1 value, but needs 2"),
    ("poolformer", POOL | dict(embed_dims=[8, 8], downsamples=[False, True]), "downsamples is .* followed by a stage"),
    ("poolformer", POOL | dict(fork_feat=True), "fork_feat is True.*features_only"),
    ("poolformer", POOL | dict(init_cfg={}), "init_cfg is {}"),
    ("poolformer", POOL | dict(pretrained="a.pth"), "pretrained is 'a.pth'"),
    ("timm_poolformer", TIMM | dict(mlp_bias=False), "mlp_bias is False.*Accepted: True"),
    ("timm_poolformer", TIMM | dict(token_mixers=nn.Identity), "token_mixers is .*timm's Pooling"),
    ("timm_poolformer", TIMM | dict(res_scale_init_values=1.0), "res_scale_init_values is 1.0"),
    ("timm_poolformer", TIMM | dict(downsample_norm=nn.LayerNorm), "downsample_norm is "),
    ("timm_poolformer", TIMM | dict(norm_layers=nn.LayerNorm), "norm_layers is "),
    ("timm_poolformer", TIMM | dict(output_norm=nn.LayerNorm), "output_norm is "),
    ("timm_poolformer", TIMM | dict(use_mlp_head=True), "use_mlp_head is True"),
    ("raftmlp", RAFT | dict(token_mixing_type="par"), "token_mixing_type is 'par'"),
    ("raftmlp", RAFT | dict(embedding_type="conv"), "embedding_type is 'conv'.*'emb_cross_mlp' or 'emb_mixer'"),
    ("raftmlp", dict(layers=[dict(dim=8)]), r"layers\[0\] is .*depth, dim, embedding_kernels, patch_size, raft_size"),
    ("raftmlp", dict(layers=[LEVEL | dict(patch_size=2)]), r"layers\[0\]\['patch_size'\] is 2.*the smallest kernel"),
    ("wavemix", WAVE | dict(initial_conv="stride"), "initial_conv is 'stride'.*'pachify' or 'strided'"),
    ("wavemix", WAVE | dict(level=5), "level is 5"),
    ("ninformer", NIN | dict(patch_size=0), "patch_size is 0: give a whole number"),
    ("ninformer", NIN | dict(seq_len=64), "seq_len is 64.*16, the number of patches in an image of 16 pixels"),
    ("maxim_mab", MAXIM | dict(use_bias=False), "use_bias is False"),
    ("maxim_mab", MAXIM | dict(dropout_rate=0.1), "dropout_rate is 0.1"),
]  # fmt: skip


@pytest.mark.parametrize("source, constructor, words", REFUSED)
def test_arguments_are_refused_by_name(source, constructor, words):
    with pytest.raises(ValueError, match=words):
        load_official(source, {"LayerNorm_in/scale": torch.ones(8)}, **constructor)
