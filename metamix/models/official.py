"""Checkpoints of the authors' own code: `load_official(source, state_dict, **constructor)` makes our model of them.

Each source is three things, in the order of this file: how the authors name a tensor that we call otherwise; how they
lay it out, where that differs; and a function that takes their constructor's arguments by their names and builds our
model. An argument that our models cannot honour is refused.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NoReturn

import numpy as np
import torch
from einops import rearrange
from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.layers import LayerNorm2d
from timm.models.metaformer import Pooling as TimmPooling
from torch import Tensor, nn

from metamix.layers import GroupNorm1
from metamix.mixers import Maxim
from metamix.mixers.raft import RaftMlp
from metamix.utils.text import nearest

from . import metaformer_family as comparison
from . import ninformer, raftmlp, wavemix
from .metaformer import Block, ConvEmbed
from .registry import check_state, unwrap


@dataclass(frozen=True)
class Format:
    """How a file names and lays out the tensors of one of our models.

    Args:
        names: (pattern, replacement) pairs of `re.sub`; applied in turn to our name of a tensor they give the file's.
        layout: (our name, the file's tensor, model) -> the tensor as we lay it out.
    """

    names: Sequence[tuple[str, str | Callable]] = ()
    layout: Callable[[str, Tensor, nn.Module], Tensor] = lambda key, tensor, model: tensor

    def name(self, key: str) -> str:
        for pattern, replacement in self.names:
            key = re.sub(pattern, replacement, key)
        return key

    def translate(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
        """(the tensors of `state` that `model` has, under our names and in our layout; the names of the others)."""
        own = model.state_dict()
        names = {key: self.name(key) for key in own}
        given = {key: self.convert(key, state[name], model, own[key]) for key, name in names.items() if name in state}
        return given, state.keys() - set(names.values())

    def convert(self, key: str, tensor: Tensor, model: nn.Module, own: Tensor) -> Tensor:
        try:
            tensor = self.layout(key, tensor, model)
        except RuntimeError:  # of another shape, which `check_state` names
            return tensor
        # Linear maps of theirs are convolutions here, with kernels of 1x1 or as large as the map.
        return tensor.reshape(own.shape) if own.ndim == 4 and tensor.shape == own.flatten(1).shape else tensor


# PoolFormer, Yu et al. 2022: github.com/sail-sg/poolformer, and timm's port of it

POOLFORMER = Format((
    (r"^stem\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
    (r"^stages\.(\d+)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
    (r"layer_scale(\d)\.gamma", r"layer_scale_\1"),
))  # fmt: skip

TIMM_POOLFORMER = Format((
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
    (r"^stem\.", "stem.conv."),
    (r"\.downsample\.", ".downsample.conv."),
    (r"(layer_scale\d)\.gamma", r"\1.scale"),
))  # fmt: skip


def poolformer(
    _,
    *,
    layers: Sequence[int],
    embed_dims: Sequence[int],
    mlp_ratios: Sequence[float] = (4, 4, 4, 4),
    downsamples: Sequence[bool] = (True, True, True, True),
    pool_size: int = 3,
    norm_layer: Callable[[int], nn.Module] = GroupNorm1,
    act_layer: type[nn.Module] = nn.GELU,
    num_classes: int = 1000,
    in_patch_size: int = 7,
    in_stride: int = 4,
    in_pad: int = 2,
    down_patch_size: int = 3,
    down_stride: int = 2,
    down_pad: int = 1,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    use_layer_scale: bool = True,
    layer_scale_init_value: float = 1e-5,
    fork_feat: bool = False,
    init_cfg: None = None,
    pretrained: None = None,
):
    accept("mlp_ratios", tuple(mlp_ratios), [(mlp_ratios[0],) * len(layers)], "one ratio for all stages")
    if any(not down and a == b for down, (a, b) in zip(downsamples, pairwise(embed_dims))):
        refuse("downsamples", downsamples, "True for every stage but the last, or wherever the width changes")
    accept("fork_feat", fork_feat, [False], "False; `features_only` of timm.create_model gives the stages' maps")
    accept("init_cfg", init_cfg, [None], "None; give the weights as the state dict")
    accept("pretrained", pretrained, [None], "None; give the weights as the state dict")
    model = comparison.metaformer(
        "metaformer_pooling_s12",
        size="s12",
        mixer="pooling",
        mixer_args=dict(pool_size=pool_size),
        depths=tuple(layers),
        dims=tuple(embed_dims),
        mlp_ratio=mlp_ratios[0],
        norm1=norm_layer,
        norm2=norm_layer,
        norm=norm_layer,
        act_layer=act_layer,
        num_classes=num_classes,
        stem=partial(ConvEmbed, kernel_size=in_patch_size, stride=in_stride, padding=in_pad),
        downsample=partial(ConvEmbed, kernel_size=down_patch_size, stride=down_stride, padding=down_pad),
        proj_drop_rate=drop_rate,  # theirs is the dropout of the MLPs
        drop_path_rate=drop_path_rate,
        layer_scale=layer_scale_init_value if use_layer_scale else 0,
    )
    return model, POOLFORMER


def timm_poolformer(
    _,
    *,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    token_mixers: type[nn.Module] = TimmPooling,
    mlp_act: type[nn.Module] = nn.GELU,
    mlp_bias: bool = True,
    drop_path_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    drop_rate: float = 0.0,
    layer_scale_init_values: float = 1e-5,
    res_scale_init_values: None = None,
    downsample_norm: None = None,
    norm_layers: type[nn.Module] = GroupNorm1,
    output_norm: type[nn.Module] = LayerNorm2d,
    use_mlp_head: bool = False,
):
    # The defaults are those of timm's poolformer_*; its MetaFormer has other models too.
    accept("token_mixers", token_mixers, [TimmPooling], "timm's Pooling")
    accept("mlp_bias", mlp_bias, [True], "True")
    accept("res_scale_init_values", res_scale_init_values, [None], "None")
    accept("downsample_norm", downsample_norm, [None], "None")
    accept("norm_layers", norm_layers, [GroupNorm1, TimmGroupNorm1], "GroupNorm1")
    accept("output_norm", output_norm, [LayerNorm2d], "LayerNorm2d, whose weights our GroupNorm before the mean takes")
    accept("use_mlp_head", use_mlp_head, [False], "False")
    model = comparison.metaformer(
        "metaformer_pooling_s12",
        size="s12",
        mixer="pooling",
        in_chans=in_chans,
        num_classes=num_classes,
        global_pool=global_pool,
        depths=tuple(depths),
        dims=tuple(dims),
        act_layer=mlp_act,
        drop_path_rate=drop_path_rate,
        proj_drop_rate=proj_drop_rate,
        drop_rate=drop_rate,
        layer_scale=layer_scale_init_values or 0,
    )
    return model, TIMM_POOLFORMER


# RaftMLP, Tatsunami and Taki 2022: github.com/okojoalg/raft-mlp

RAFTMLP = (
    (r"^model\.", ""),  # within LevelHeads
    (r"^head\.", "classifier."),
    (r"^norms\.(\d+)\.", r"heads.\1.1."),
    (r"^gates\.(\d+)\.", r"heads.\1.4."),
    (r"^stem\.", "stages.0.downsample."),
    (r"^stages\.(\d+)\.", r"levels.\1."),
    (r"\.blocks\.(\d+)\.", lambda m: f".fn.{2 + int(m[1])}."),
    (r"\.mixer\.(vertical|horizontal)\.norm\.", r".mixer.\1.norm.1."),
    (r"\.mixer\.vertical\.", ".1."),
    (r"\.mixer\.horizontal\.", ".3."),
    (r"\.norm2\.", ".5.norm."),
    (r"\.mlp\.", ".5."),
    (r"\.fc1\.", ".fn.0."),
    (r"\.fc2\.", ".fn.3."),
)


def raftmlp_layout(key: str, tensor: Tensor, model: nn.Module, patch: str) -> Tensor:
    *path, name, kind = key.split(".")
    parent = model.get_submodule(".".join(path))
    if isinstance(parent, RaftMlp) and name == "norm":  # their norm sees the channels in another order than the stream
        return rearrange(tensor, "(c r) -> (r c)", r=parent.raft_size)
    if path[-1:] == ["convs"] and kind == "weight":  # one Linear has the patches of all kernels, side by side
        columns = tensor.split([conv.weight[0].numel() for conv in parent], dim=1)[int(name)]
        k = parent[int(name)].kernel_size[0]
        return rearrange(columns, patch, h=k, w=k)
    return tensor


def raft_mlp(
    _,
    *,
    layers: Sequence[Mapping],
    in_channels: int = 3,
    pretrained_image_size: int = 224,
    num_classes: int = 1000,
    token_expansion_factor: int = 2,
    channel_expansion_factor: int = 4,
    token_mixing_type: str = "ser_pm",
    embedding_type: str = "emb_cross_mlp",
    shortcut: bool = True,
):
    accept("token_mixing_type", token_mixing_type, ["ser_pm"], "'ser_pm', vertical then horizontal")
    accept("embedding_type", embedding_type, ["emb_cross_mlp", "emb_mixer"], "'emb_cross_mlp' or 'emb_mixer'")
    cross = embedding_type == "emb_cross_mlp"
    wanted = {"depth", "dim", "patch_size", "raft_size", "embedding_kernels"}
    for i, layer in enumerate(layers):
        if layer.keys() - {"embedding_kernels"} != wanted - {"embedding_kernels"} or (cross and layer.keys() != wanted):
            refuse(f"layers[{i}]", dict(layer), f"a dict of {', '.join(sorted(wanted))}")
        if cross:
            accept(
                f"layers[{i}]['patch_size']",
                layer["patch_size"],
                [min(layer["embedding_kernels"])],
                "the smallest kernel",
            )
    last = len(layers) - 1
    raft = dict(expansion=token_expansion_factor, resample="stream")
    model = raftmlp.raftmlp(
        "raftmlp_s",
        in_chans=in_channels,
        img_size=pretrained_image_size,
        num_classes=num_classes,
        depths=tuple(layer["depth"] for layer in layers),
        dims=tuple(layer["dim"] for layer in layers),
        patch_sizes=tuple(layer["patch_size"] for layer in layers),
        embedding_kernels=tuple(
            tuple(layer["embedding_kernels"]) if cross else (layer["patch_size"],) for layer in layers
        ),
        mixer_args=[dict(raft_size=layer["raft_size"], **raft) for layer in layers],
        channel_expansion=channel_expansion_factor,
    )
    if shortcut and last > 0:
        model = raftmlp.LevelHeads(model)
    names = (
        *RAFTMLP,
        (r"^norm\.", f"heads.{last if shortcut else 0}.1."),
        (r"\.downsample\.convs\.\d+\.", ".fn.0.fc." if cross else ".fn.1."),
    )
    patch = "o (c h w) -> o c h w" if cross else "o (h w c) -> o c h w"
    return model, Format(names, partial(raftmlp_layout, patch=patch))


# WaveMix, Jeevan et al. 2022: github.com/pranavphoenix/WaveMix, its classifier

WAVEMIX_NAMES = (
    (r"^head\.", "pool.2."),
    (r"^stem\.", "conv."),
    (r"^stages\.0\.blocks\.(\d+)\.mixer\.", r"layers.\1."),
    (r"\.reduce\.", ".reduction."),
    (r"\.levels\.(\d+)\.", lambda m: f".feedforward{int(m[1]) + 1}."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".3."),
    (r"\.up\.", ".4."),
    (r"\.norm\.", ".5."),
)


def wavemix_layout(key: str, tensor: Tensor, model: nn.Module) -> Tensor:
    if not key.endswith(".fc1.weight"):
        return tensor
    c = model.num_features // 4
    low, high, deeper = tensor.split([c, 3 * c, tensor.shape[1] - 4 * c], dim=1)
    # Theirs: the three bands of a channel, then those of the next.
    high = rearrange(high, "o (c band) h w -> o (band c) h w", band=3)
    return torch.cat([low, high, deeper], dim=1)


WAVEMIX = Format(WAVEMIX_NAMES, wavemix_layout)
WAVEMIX_ONE_LEVEL = Format(((r"\.levels\.0\.", ".feedforward."), *WAVEMIX_NAMES), wavemix_layout)


def wave_mix(
    _,
    *,
    num_classes: int = 1000,
    depth: int = 16,
    mult: int = 2,
    ff_channel: int = 192,
    final_dim: int = 192,
    dropout: float = 0.5,
    level: int = 3,
    initial_conv: str = "pachify",
    patch_size: int = 4,
    stride: int = 2,
):
    accept("initial_conv", initial_conv, ["pachify", "strided"], "'pachify' or 'strided'")
    model = wavemix.wavemix(
        "wavemix_192_16",
        num_classes=num_classes,
        dim=final_dim,
        depth=depth,
        level=level,
        mult=mult,
        ff_channel=ff_channel,
        proj_drop_rate=dropout,
        **(dict(patch_size=patch_size) if initial_conv == "pachify" else dict(stride=stride)),
    )
    return model, WAVEMIX_ONE_LEVEL if level == 1 else WAVEMIX


# NiNformer, Abdullah 2024: github.com/Abdullah-88/NiNformer

NINFORMER = Format((
    (r"^head\.", "classifier."),
    (r"^stem\.", "patcher."),
    (r"^stages\.0\.blocks\.", "model."),
    (r"\.norm1\.", ".norm."),
    (r"\.mixer\.value\.", ".mgu.proj."),
    (r"\.mixer\.token_norm\.", ".mgu.Mixer.token_mix.0."),
    (r"\.mixer\.token_mlp\.", ".mgu.Mixer.token_mix.2."),
    (r"\.mixer\.channel_norm\.", ".mgu.Mixer.channel_mix.0."),
    (r"\.mixer\.channel_mlp\.", ".mgu.Mixer.channel_mix.1."),
    (r"\.mlp\.", ".ffn."),
    (r"\.fc1\.", ".net.0."),
    (r"\.fc2\.", ".net.3."),
))  # fmt: skip


def nin_former(
    _,
    *,
    image_size: int = 32,
    patch_size: int = 4,
    in_channels: int = 3,
    num_classes: int = 10,
    d_model: int = 256,
    d_ffn: int = 512,
    seq_len: int = 64,
    num_layers: int = 4,
    dropout: float = 0.5,
):
    tokens = (image_size // patch_size) ** 2
    accept("seq_len", seq_len, [tokens], f"{tokens}, the patches of an image of {image_size} pixels")
    model = ninformer.ninformer(
        "ninformer_cifar",
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=num_classes,
        d_model=d_model,
        d_ffn=d_ffn,
        num_layers=num_layers,
        proj_drop_rate=dropout,
    )
    return model, NINFORMER


# MAXIM, Tu et al. 2022: github.com/google-research/maxim, ResidualSplitHeadMultiAxisGmlpLayer in flax

MAXIM_MAB = Format(
    (
        (r"^norm1\.", "LayerNorm_in."),
        (r"^mixer\.", ""),
        (r"^(grid|block)\.", lambda m: f"{m[1].title()}GmlpLayer."),
        (r"\.norm\.", ".LayerNorm."),
        (r"fc1\.", "in_project."),
        (r"fc2\.", "out_project."),
        (r"^(Grid|Block)(.*)\.gate_norm\.", r"\1\2.\1GatingUnit.intermediate_layernorm."),
        (r"^(Grid|Block)(.*)\.spatial\.", r"\1\2.\1GatingUnit.Dense_0."),
        (r"(LayerNorm|LayerNorm_in|layernorm)\.weight", r"\1.scale"),
        (r"\.weight", ".kernel"),
        (r"\.", "/"),
    ),
    lambda key, tensor, model: tensor.T if tensor.ndim == 2 else tensor,  # a flax kernel is (in, out)
)


def maxim_mab(
    state: Mapping[str, Tensor],
    *,
    block_size: tuple[int, int],
    grid_size: tuple[int, int],
    block_gmlp_factor: int = 2,
    grid_gmlp_factor: int = 2,
    input_proj_factor: int = 2,
    use_bias: bool = True,
    dropout_rate: float = 0.0,
):
    accept("use_bias", use_bias, [True], "True")
    accept(
        "dropout_rate", dropout_rate, [0], "0, as in all published models: their gated MLPs have dropouts of their own"
    )
    if "LayerNorm_in/scale" not in state:
        raise ValueError(
            "The checkpoint lacks LayerNorm_in/scale, from which the width follows: give the layer's own tree."
        )
    dim = len(state["LayerNorm_in/scale"])
    mixer = Maxim(
        dim,
        size=block_size,
        block_size=block_size,
        grid_size=grid_size,
        input_proj_factor=input_proj_factor,
        block_gmlp_factor=block_gmlp_factor,
        grid_gmlp_factor=grid_gmlp_factor,
    )
    # Their layer, norm before and residual around, is our block without its second half.
    model = Block(
        dim,
        mixer,
        norm1=partial(LayerNorm2d, eps=1e-6),
        norm2=None,
        mlp_ratio=0,
        act_layer=None,
        tie_norms=False,
        layer_scale=0,
        proj_drop=0,
        drop_path=0,
    )
    return model, MAXIM_MAB


SOURCES = {
    "poolformer": poolformer,
    "timm_poolformer": timm_poolformer,
    "raftmlp": raft_mlp,
    "wavemix": wave_mix,
    "ninformer": nin_former,
    "maxim_mab": maxim_mab,
}

# Files that registered models load as they are published, told by a name that only they have.
PUBLISHED = {
    "patch_embed.proj.weight": POOLFORMER,
    "stem.conv.weight": TIMM_POOLFORMER,
    "layers.0.feedforward.0.weight": WAVEMIX_ONE_LEVEL,
    "layers.0.feedforward1.0.weight": WAVEMIX,
}
OURS = Format()


def format_of(state: Mapping[str, Tensor]) -> Format:
    """The published format that `state` is in, else our own."""
    return next((published for name, published in PUBLISHED.items() if name in state), OURS)


def load_official(source: str, state_dict: Mapping, **constructor) -> nn.Module:
    """The model that the authors' constructor builds of these arguments, with their weights; in evaluation mode.

    All take images or maps as (B, C, H, W), of any size.

    Args:
        source: whose code the checkpoint is of, see the examples.
        state_dict: tensors by the authors' names, also wrapped as `{"state_dict": ...}` or `{"model": ...}`. For
            maxim_mab a flax tree, nested or with its names joined by "/".
        constructor: arguments of the authors' constructor, by their names; what is left out has their default, or where
            that says nothing the value of their published models.

    Raises:
        ValueError: an argument that is unknown, missing or cannot be honoured; a tensor that is missing, unknown or of
            a shape that does not fit. The message names it, a tensor by its authors' name.

    The authors' own classes, the classifiers of PoolFormer, RaftMLP, WaveMix and NiNformer::

        load_official("poolformer", state, layers=[2, 2, 6, 2], embed_dims=[64, 128, 320, 512])
        load_official("raftmlp", state, shortcut=False, layers=[
            dict(depth=2, dim=64, patch_size=4, raft_size=2, embedding_kernels=[4, 8]), ...])
        load_official("wavemix", state, depth=16, final_dim=192, ff_channel=192, level=3, patch_size=4)
        load_official("ninformer", state, image_size=32, patch_size=4, d_model=256, d_ffn=512, seq_len=64, num_layers=4)

    RaftMLP with `shortcut=True`, which is its default, is a `LevelHeads` around the model.

    timm's poolformer_*, with its MetaFormer's arguments. The trunk is equal to timm's; the head normalises before the
    mean, as the authors do and timm does not, so logits differ::

        load_official("timm_poolformer", timm.create_model("poolformer_s12").state_dict())

    One multi-axis layer of MAXIM with its norm and its residual, its width taken from the arrays::

        load_official("maxim_mab", params, block_size=(16, 16), grid_size=(16, 16))
    """
    if source not in SOURCES:
        raise ValueError(f"Unknown source {source!r}{nearest(source, SOURCES)} Sources: {', '.join(SOURCES)}.")
    parameters = {p.name: p for p in inspect.signature(SOURCES[source]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for argument in constructor:
        if argument not in parameters:
            raise ValueError(
                f"{argument!r} is no argument of {source}{nearest(argument, parameters)} "
                f"Its arguments: {', '.join(parameters)}."
            )
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in constructor]
    if missing:
        raise ValueError(f"{source} needs {', '.join(missing)}: give what the checkpoint was trained with.")
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict is a {type(state_dict).__name__}; give tensors by name, what torch.load of the file returns."
        )
    state = flatten(unwrap(state_dict))
    model, layout = SOURCES[source](state, **constructor)
    given, unknown = layout.translate(state, model)
    check_state(given, model.state_dict(), unknown, f"the {source} of these arguments", layout.name)
    model.load_state_dict(given)
    return model.eval()


def accept(argument: str, given, accepted: Sequence, words: str) -> None:
    if given not in accepted:
        refuse(argument, given, words)


def refuse(argument: str, given, words: str) -> NoReturn:
    raise ValueError(f"{argument} is {given!r}, which our model cannot honour. Accepted: {words}.")


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """A tree of arrays or tensors as tensors by name, levels joined by "/"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return flat
