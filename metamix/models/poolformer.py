"""Load checkpoints of PoolFormer, "MetaFormer Is Actually What You Need for Vision" (arXiv 2111.11418).

The models are `metaformer_pooling_s12` to `..._m48` in `metaformer_family.py`. This file describes how checkpoints of
the authors (github.com/sail-sg/poolformer) and of timm name their tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.layers import LayerNorm2d
from timm.models.metaformer import Pooling as TimmPooling
from torch import Tensor, nn

from metamix.layers import GroupNorm1
from metamix.weights.layout import PUBLISHED, Layout

from .embed import ConvEmbed
from .metaformer_family import metaformer
from .official import ModelAndLayout, check_value, official, refuse

POOLFORMER = Layout((
    (r"^stem\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
    (r"^stages\.(\d+)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
    (r"layer_scale(\d)\.gamma", r"layer_scale_\1"),
))  # fmt: skip

TIMM_POOLFORMER = Layout((
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
    (r"^stem\.", "stem.conv."),
    (r"\.downsample\.", ".downsample.conv."),
    (r"(layer_scale\d)\.gamma", r"\1.scale"),
))  # fmt: skip

PUBLISHED |= {"patch_embed.proj.weight": POOLFORMER, "stem.conv.weight": TIMM_POOLFORMER}


@official(
    "poolformer",
    same=("act_layer", "num_classes", "drop_path_rate"),
    renamed=dict(drop_rate="proj_drop_rate"),  # dropout in the MLPs
    only=dict(init_cfg=None, pretrained=None),
)
def poolformer(
    state: Mapping[str, Tensor],
    *,
    layers: Sequence[int],
    embed_dims: Sequence[int],
    mlp_ratios: Sequence[float] = (4, 4, 4, 4),
    downsamples: Sequence[bool] = (True, True, True, True),
    pool_size: int = 3,
    norm_layer: Callable[[int], nn.Module] = GroupNorm1,
    in_patch_size: int = 7,
    in_stride: int = 4,
    in_pad: int = 2,
    down_patch_size: int = 3,
    down_stride: int = 2,
    down_pad: int = 1,
    use_layer_scale: bool = True,
    layer_scale_init_value: float = 1e-5,
    fork_feat: bool = False,
    **arguments: Any,
) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `PoolFormer`."""
    if any(not down and a == b for down, (a, b) in zip(downsamples, pairwise(embed_dims))):
        refuse("downsamples", downsamples, "True for every stage that is followed by a stage of the same width")
    check_value("fork_feat", fork_feat, [False], "False; `features_only` of timm.create_model gives the stages' maps")
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
        stem=partial(ConvEmbed, kernel_size=in_patch_size, stride=in_stride, padding=in_pad),
        downsample=partial(ConvEmbed, kernel_size=down_patch_size, stride=down_stride, padding=down_pad),
        layer_scale=layer_scale_init_value if use_layer_scale else 0,
        **arguments,
    )
    return model, POOLFORMER


@official(
    "timm_poolformer",
    same=("depths", "dims", "in_chans", "num_classes", "global_pool", "drop_rate", "proj_drop_rate", "drop_path_rate"),
    renamed=dict(mlp_act="act_layer", layer_scale_init_values="layer_scale"),
    only=dict(mlp_bias=True, res_scale_init_values=None, downsample_norm=None, use_mlp_head=False),
)
def timm_poolformer(
    state: Mapping[str, Tensor],
    *,
    token_mixers: type[nn.Module] = TimmPooling,
    norm_layers: type[nn.Module] = GroupNorm1,
    output_norm: type[nn.Module] = LayerNorm2d,
    **arguments: Any,
) -> ModelAndLayout:
    """Build our model for the arguments of timm's `MetaFormer` with pooling."""
    # The defaults here are the values of timm's poolformer_* models. The defaults of timm's class build another model.
    check_value("token_mixers", token_mixers, [TimmPooling], "timm's Pooling")
    check_value("norm_layers", norm_layers, [GroupNorm1, TimmGroupNorm1], "GroupNorm1")
    check_value("output_norm", output_norm, [LayerNorm2d], "LayerNorm2d, whose weights fit our GroupNorm")
    return metaformer("metaformer_pooling_s12", size="s12", mixer="pooling", **arguments), TIMM_POOLFORMER
