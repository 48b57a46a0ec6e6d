"""Load checkpoints of the authors' code into our models: `load_official(source, state_dict, **constructor)`.

Each source has a function here that takes the arguments of the authors' constructor, by their names, and returns our
model and the `Format` of its tensors. It refuses an argument that our model cannot honour.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.layers import LayerNorm2d
from timm.models.metaformer import Pooling as TimmPooling
from torch import Tensor, nn

from metamix.layers import GroupNorm1
from metamix.mixers import Maxim
from metamix.utils.checks import parse_size
from metamix.utils.text import did_you_mean
from metamix.weights.files import unwrap

from .arguments import check_known
from .embed import ConvEmbed
from .formats import (
    NINFORMER,
    POOLFORMER,
    SISR,
    SISR_ONE_LEVEL,
    TIMM_POOLFORMER,
    WAVEMIX,
    WAVEMIX_ONE_LEVEL,
    WAVEMIXSR,
    Format,
    raftmlp_format,
)
from .maxim import MaximUNet
from .maxim_format import flax_format, maxim_format, module_paths
from .metaformer import Block, MetaFormer
from .metaformer_family import metaformer
from .ninformer import ninformer
from .raftmlp import ShortcutClassifier, raftmlp
from .wavemix import wavemix
from .wavemix_restoration import WaveMixSisr, WaveMixSR
from .weights import check_state

ModelAndFormat = tuple[nn.Module, Format]

# PoolFormer, Yu et al. 2022: github.com/sail-sg/poolformer, and timm's port of it


def poolformer(
    state: Mapping[str, Tensor],
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
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' `PoolFormer`."""
    if len(mlp_ratios) < len(layers):
        refuse("mlp_ratios", mlp_ratios, f"one ratio for each of the {len(layers)} stages")
    if any(not down and a == b for down, (a, b) in zip(downsamples, pairwise(embed_dims))):
        refuse("downsamples", downsamples, "True for every stage but the last, or wherever the width changes")
    accept("fork_feat", fork_feat, [False], "False; `features_only` of timm.create_model gives the stages' maps")
    accept("init_cfg", init_cfg, [None], "None; give the weights as the state dict")
    accept("pretrained", pretrained, [None], "None; give the weights as the state dict")
    model = metaformer(
        "metaformer_pooling_s12",
        size="s12",
        mixer="pooling",
        mixer_args=dict(pool_size=pool_size),
        depths=tuple(layers),
        dims=tuple(embed_dims),
        mlp_ratio=tuple(mlp_ratios[: len(layers)]),
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
    state: Mapping[str, Tensor],
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
) -> ModelAndFormat:
    """Build our model for the arguments of timm's `MetaFormer` with pooling."""
    # The defaults are those of timm's poolformer_*: timm's MetaFormer class has other models too.
    accept("token_mixers", token_mixers, [TimmPooling], "timm's Pooling")
    accept("mlp_bias", mlp_bias, [True], "True")
    accept("res_scale_init_values", res_scale_init_values, [None], "None")
    accept("downsample_norm", downsample_norm, [None], "None")
    accept("norm_layers", norm_layers, [GroupNorm1, TimmGroupNorm1], "GroupNorm1")
    accept("output_norm", output_norm, [LayerNorm2d], "LayerNorm2d, whose weights our GroupNorm before the mean takes")
    accept("use_mlp_head", use_mlp_head, [False], "False")
    model = metaformer(
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


def raftmlp_classifier(
    state: Mapping[str, Tensor],
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
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' `RaftMLP`."""
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
    model: Any = raftmlp(
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
        model = ShortcutClassifier(model)
    return model, raftmlp_format(last_head=last if shortcut else 0, cross=cross)


# WaveMix, Jeevan et al. 2022: github.com/pranavphoenix/WaveMix, its classifier


def wavemix_classifier(
    state: Mapping[str, Tensor],
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
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' `WaveMix` classifier."""
    accept("initial_conv", initial_conv, ["pachify", "strided"], "'pachify' or 'strided'")
    model = wavemix(
        "wavemix_192_16",
        num_classes=num_classes,
        dim=final_dim,
        depth=depth,
        level=level,
        mult=mult,
        ff_channel=ff_channel,
        proj_drop_rate=dropout,
        patch_size=patch_size if initial_conv == "pachify" else 0,
        stride=0 if initial_conv == "pachify" else stride,
    )
    return model, WAVEMIX_ONE_LEVEL if level == 1 else WAVEMIX


# WaveMix for super-resolution: their wavemix/sisr.py, and WaveMixSR of github.com/pranavphoenix/WaveMixSR


def wavemix_superresolution(
    state: Mapping[str, Tensor],
    *,
    depth: int = 4,
    mult: int = 2,
    ff_channel: int = 144,
    final_dim: int = 144,
    dropout: float = 0.0,
    level: int = 1,
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' super-resolution `WaveMix`."""
    model = WaveMixSisr(dim=final_dim, depth=depth, level=level, mult=mult, ff_channel=ff_channel, proj_drop=dropout)
    return model, SISR_ONE_LEVEL if level == 1 else SISR


def wavemixsr(
    state: Mapping[str, Tensor],
    *,
    depth: int = 4,
    mult: int = 1,
    ff_channel: int = 144,
    final_dim: int = 144,
    dropout: float = 0.3,
    scale_factor: int = 2,
    mode: str = "bilinear",
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' `WaveMixSR`.

    `scale_factor` and `mode` are those of its nn.Upsample, which the authors' constructor does not take.
    """
    model = WaveMixSR(
        scale_factor, dim=final_dim, depth=depth, mult=mult, ff_channel=ff_channel, proj_drop=dropout, mode=mode
    )
    return model, WAVEMIXSR


# NiNformer, Abdullah 2024: github.com/Abdullah-88/NiNformer


def ninformer_classifier(
    state: Mapping[str, Tensor],
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
) -> ModelAndFormat:
    """Build our model for the arguments of the author's `NiNformer`."""
    tokens = (image_size // patch_size) ** 2
    accept("seq_len", seq_len, [tokens], f"{tokens}, the patches of an image of {image_size} pixels")
    model = ninformer(
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
) -> ModelAndFormat:
    """Build our model for the arguments of one `ResidualSplitHeadMultiAxisGmlpLayer`."""
    accept("use_bias", use_bias, [True], "True")
    accept(
        "dropout_rate", dropout_rate, [0], "0, as in all published models: its gated MLPs have dropouts of their own"
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
    # Their layer has a norm before and a residual around it: our block without the MLP half.
    model = Block(
        dim,
        mixer,
        norm1=partial(LayerNorm2d, eps=1e-6),
        mlp_ratio=0,
        layer_scale=0,
    )
    return model, flax_format(model, module_paths(model, ""))


# MAXIM, the whole network


def maxim(
    state: Mapping[str, Tensor],
    *,
    variant: str | None = None,
    features: int | None = None,
    depth: int | None = None,
    num_stages: int | None = None,
    num_groups: int | None = None,
    use_bias: bool = True,
    num_supervision_scales: int = 1,
    lrelu_slope: float = 0.2,
    use_global_mlp: bool = True,
    use_cross_gating: bool = True,
    high_res_stages: int = 2,
    block_size_hr: tuple[int, int] = (16, 16),
    block_size_lr: tuple[int, int] = (8, 8),
    grid_size_hr: tuple[int, int] = (16, 16),
    grid_size_lr: tuple[int, int] = (8, 8),
    num_bottleneck_blocks: int | None = None,
    block_gmlp_factor: int = 2,
    grid_gmlp_factor: int = 2,
    input_proj_factor: int = 2,
    channels_reduction: int = 4,
    num_outputs: int = 3,
    dropout_rate: float = 0.0,
) -> ModelAndFormat:
    """Build our model for the arguments of the authors' `MAXIM`, or of one of their variants."""
    accept("variant", variant, [None, *MAXIM_VARIANTS], ", ".join(MAXIM_VARIANTS))
    accept("use_bias", use_bias, [True], "True")
    accept("dropout_rate", dropout_rate, [0], "0, as in all published models")
    accept("use_global_mlp", use_global_mlp, [True], "True, as in all published models")
    accept("use_cross_gating", use_cross_gating, [True], "True, as in all published models")
    accept("num_outputs", num_outputs, [3], "3, as in all published models, whose output is the image plus a residual")
    accept("lrelu_slope", lrelu_slope, [0.2], "0.2. The authors' code ignores this argument and always uses 0.2")
    block, grid = parse_size("block_size_lr", block_size_lr), parse_size("grid_size_lr", grid_size_lr)
    accept("grid_size_lr", grid, [block], f"{block}, as block_size_lr. The authors' code ignores grid_size_lr")
    given = dict(
        features=features,
        depth=depth,
        num_stages=num_stages,
        num_groups=num_groups,
        num_bottleneck_blocks=num_bottleneck_blocks,
    )
    # Arguments that are not given have the variant's values, or without a variant those of the authors' class.
    default = MAXIM_VARIANTS[variant] if variant else MAXIM_CLASS
    model = MaximUNet(
        **{name: default[name] if value is None else value for name, value in given.items()},
        num_supervision_scales=num_supervision_scales,
        high_res_stages=high_res_stages,
        block_size_hr=block_size_hr,
        grid_size_hr=grid_size_hr,
        block_size_lr=block_size_lr,
        block_gmlp_factor=block_gmlp_factor,
        grid_gmlp_factor=grid_gmlp_factor,
        input_proj_factor=input_proj_factor,
        channels_reduction=channels_reduction,
    )
    return model, maxim_format(model, state)


MAXIM_CLASS = dict(features=64, depth=3, num_stages=2, num_groups=1, num_bottleneck_blocks=1)
MAXIM_VARIANTS = {
    f"{size}-{stages}": dict(features=features, depth=3, num_stages=stages, num_groups=2, num_bottleneck_blocks=2)
    for size, features in (("S", 32), ("M", 64))
    for stages in (1, 2, 3)
}

SOURCES: dict[str, Callable[..., ModelAndFormat]] = {
    "poolformer": poolformer,
    "timm_poolformer": timm_poolformer,
    "raftmlp": raftmlp_classifier,
    "wavemix": wavemix_classifier,
    "ninformer": ninformer_classifier,
    "maxim_mab": maxim_mab,
    "maxim": maxim,
    "wavemix_superresolution": wavemix_superresolution,
    "wavemixsr": wavemixsr,
}

MODULES: list[str] = []  # modules that add further sources to `SOURCES`, imported when a name is unknown


def load_official(source: str, state_dict: Mapping, **constructor: Any) -> nn.Module:
    """Build our model for the arguments of the authors' constructor, with their weights, in eval mode.

    Every model takes images or maps (B, C, H, W) of any size.

    Args:
        source: name of the code that wrote the checkpoint, see the examples.
        state_dict: tensors by the authors' names, also wrapped as `{"state_dict": ...}` or `{"model": ...}`. For
            maxim_mab a flax tree, nested or with names joined by "/".
        constructor: arguments of the authors' constructor, by their names. The defaults are the authors', or else the
            values of their published models.

    Returns:
        The model. The `pretrained_cfg` of a classifier names no weights, and its image size, mean and std are those of
        the family's registered model.

    Raises:
        ValueError: an argument is unknown, missing or cannot be honoured; a tensor is missing, unknown or of a wrong
            shape. The message uses the authors' names.

    The classifiers of PoolFormer, RaftMLP, WaveMix and NiNformer:

        load_official("poolformer", state, layers=[2, 2, 6, 2], embed_dims=[64, 128, 320, 512])
        load_official("raftmlp", state, shortcut=False, layers=[
            dict(depth=2, dim=64, patch_size=4, raft_size=2, embedding_kernels=[4, 8]), ...])
        load_official("wavemix", state, depth=16, final_dim=192, ff_channel=192, level=3, patch_size=4)
        load_official("ninformer", state, image_size=32, patch_size=4, d_model=256, d_ffn=512, seq_len=64, num_layers=4)

    A RaftMLP with `shortcut=True`, the authors' default, is a `ShortcutClassifier`.

    timm's poolformer_*, with the arguments of timm's MetaFormer. The maps equal timm's. The logits differ, since the
    head norms before the mean, as the authors' does and timm's does not:

        load_official("timm_poolformer", timm.create_model("poolformer_s12").state_dict())

    One multi-axis layer of MAXIM with its norm and its residual. Its width follows from the arrays:

        load_official("maxim_mab", params, block_size=(16, 16), grid_size=(16, 16))

    Networks for segmentation: mmsegmentation's PoolFormer with Semantic FPN, the authors' WaveMix of `SemSegment`, and
    the one of their Cityscapes weights:

        load_official("poolformer_semantic_fpn", state, arch="s12", num_classes=150)
        load_official("wavemix_segmentation", state, depth=16, final_dim=256, ff_channel=256, level=4)
        load_official("wavemix_cityscapes", state)

    Networks that return images: MAXIM from its flax tree or its .npz file, and WaveMix for super-resolution:

        load_official("maxim", np.load("checkpoint.npz"), variant="S-3", num_supervision_scales=3)
        load_official("wavemix_superresolution", state, depth=4, final_dim=144, ff_channel=144)
        load_official("wavemixsr", state, scale_factor=2)
    """
    if source not in SOURCES:  # those of the tasks' networks are registered when their modules are imported
        for module in MODULES:
            import_module(module)
    if source not in SOURCES:
        raise ValueError(f"Unknown source {source!r}{did_you_mean(source, SOURCES)} Sources: {', '.join(SOURCES)}.")
    build = SOURCES[source]
    parameters = {p.name: p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY}
    check_known(constructor, parameters, source)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in constructor]
    if missing:
        raise ValueError(f"{source} needs {', '.join(missing)}: give the values that the checkpoint was trained with.")
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict is a {type(state_dict).__name__}; give tensors by name, what torch.load of the file returns."
        )
    state = flatten(flax_parameters(unwrap(state_dict)))
    model, layout = build(state, **constructor)
    given, unknown = layout.translate(state, model)
    check_state(given, model.state_dict(), unknown, f"the {source} of these arguments", layout.name)
    model.load_state_dict(given)
    if isinstance(model, MetaFormer):  # the configuration is that of a registered model, whose weights are others
        for key in ("tag", "url", "hf_hub_id", "file"):
            model.pretrained_cfg.pop(key, None)
        model.pretrained_cfg["num_classes"] = model.num_classes
    return model.eval()


def accept(argument: str, given: Any, accepted: Sequence, words: str) -> None:
    """Refuse an argument that is not one of `accepted`; `words` names those in the message."""
    if given not in accepted:
        refuse(argument, given, words)


def refuse(argument: str, given: Any, words: str) -> NoReturn:
    raise ValueError(f"{argument} is {given!r}, which our model cannot honour. Accepted: {words}.")


def flax_parameters(state: Mapping) -> Mapping:
    """Return the parameters of a flax checkpoint, without the optimizer's state; other mappings as they are.

    MAXIM's files have names such as "opt/target/stage_0_input_conv_0/kernel"; a nested tree has opt, then target.
    """
    prefix = "opt/target/"
    names = [key for key in state if key.startswith(prefix)]
    if names:
        return {key.removeprefix(prefix): state[key] for key in names}  # an .npz file reads only these arrays
    opt = state.get("opt")
    return opt["target"] if isinstance(opt, Mapping) and "target" in opt else state


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """Return the leaves of a tree of arrays or tensors by name, levels joined by "/".

    Raises:
        ValueError: a leaf is not an array of numbers.
    """
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            try:
                flat[f"{prefix}{key}"] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            except TypeError:
                raise ValueError(
                    f"{prefix}{key} is not a tensor, but of type {type(value).__name__}: give only the tensors, by "
                    f"name."
                ) from None
    return flat
