"""Build the comparison family `metaformer_<mixer>_<size>`: one skeleton, seven mixers, the sizes of `SIZES`.

The sizes s12 to m48 are PoolFormer's (arXiv 2111.11418, table 1): `metaformer_pooling_s12` is PoolFormer-S12, and
within a size only the mixer differs. The size nano is for images of 32 pixels. It has an overlapping stem of two
convolutions and three stages of strides 2, 4 and 8. The size tiny is for images of 128 pixels, and has four stages of
strides 4 to 32. In nano and tiny, a costlier mixer gets narrower MLPs, so that all models of a size cost the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from metamix.layers import GELU
from metamix.mixers import list_mixers
from metamix.utils.checks import check_choice

from .arguments import check_stages, mixers_per_stage
from .embed import ConvEmbed, SequentialEmbed
from .registry import CIFAR10, IMAGENET, build, register


def conv_norm_act(in_chans: int, dim: int, stride: int = 2) -> SequentialEmbed:
    """Build conv3x3, BatchNorm, GELU: (B, in_chans, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
    conv = ConvEmbed(in_chans, dim, kernel_size=3, stride=stride, padding=1)
    return SequentialEmbed(conv, nn.BatchNorm2d(dim), GELU())


def twofold_stem(in_chans: int, dim: int) -> SequentialEmbed:
    """Build two `conv_norm_act`, the first of stride 1: (B, in_chans, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2))."""
    return SequentialEmbed(*conv_norm_act(in_chans, dim // 2, stride=1), conv_norm_act(dim // 2, dim))


def fourfold_stem(in_chans: int, dim: int) -> SequentialEmbed:
    """Build two `conv_norm_act`: (B, in_chans, H, W) -> (B, dim, ceil(H / 4), ceil(W / 4))."""
    return SequentialEmbed(conv_norm_act(in_chans, dim // 2), conv_norm_act(dim // 2, dim))


SMALL = dict(layer_scale=0.1, downsample=conv_norm_act, norm1=nn.BatchNorm2d, norm2=nn.BatchNorm2d, norm=nn.BatchNorm2d)

SIZES: dict[str, dict[str, Any]] = {
    "nano": dict(depths=(2, 4, 2), dims=(64, 128, 192), stem=twofold_stem, **SMALL),
    "tiny": dict(depths=(1, 2, 3, 2), dims=(32, 64, 160, 384), stem=fourfold_stem, **SMALL),
    "s12": dict(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512), layer_scale=1e-5),
    "s24": dict(depths=(4, 4, 12, 4), dims=(64, 128, 320, 512), layer_scale=1e-5),
    "s36": dict(depths=(6, 6, 18, 6), dims=(64, 128, 320, 512), layer_scale=1e-6),
    "m36": dict(depths=(6, 6, 18, 6), dims=(96, 192, 384, 768), layer_scale=1e-6),
    "m48": dict(depths=(8, 8, 24, 8), dims=(96, 192, 384, 768), layer_scale=1e-6),
}


@dataclass(frozen=True)
class SmallOptions:
    """Options of a mixer in `nano` or `tiny`, and the width of the MLPs."""

    mlp_ratio: float  # hidden width of the MLPs as a multiple of the channels
    stages: Sequence[dict[str, Any]] = ({},)  # options of the mixer in each stage; further stages use the last dict


# All models cost 73.6 million multiply-adds for an image of 32 pixels, within 3 %.
NANO = {
    "identity": SmallOptions(4.0),
    "pooling": SmallOptions(4.0),
    "raft": SmallOptions(2.0, [dict(raft_size=2), dict(raft_size=8), dict(raft_size=16)]),
    "maxim": SmallOptions(2.0, [dict(input_proj_factor=1, block_size=n, grid_size=n) for n in (8, 4, 4)]),
    "wavemix": SmallOptions(3.25, [dict(mult=2, ff_channel=n) for n in (8, 16, 24)]),
    "nin": SmallOptions(
        1.5, [dict(grid=g, token_dim=t, channel_dim=c) for g, t, c in ((16, 64, 64), (8, 128, 128), (8, 128, 192))]
    ),
    "minattn": SmallOptions(2.0, [dict(qk="shared", num_heads=h, context=8, positions=True) for h in (4, 8, 12)]),
}

# All models cost 128.3 million multiply-adds for an image of 128 pixels, within 3 %. The maps have sides of 32, 16, 8
# and 4 tokens. Raft's windows, of at most 8 tokens a side, and nin's grids fit the maps of images of 64 pixels, so the
# same weights serve images of 64 pixels and of all larger sizes. Small windows with large rafts cost as much as large
# windows with small rafts.
TINY = {
    "identity": SmallOptions(4.0),
    "pooling": SmallOptions(4.0),
    "raft": SmallOptions(
        2.0,
        [
            dict(raft_size=r, expansion=e, grid=g, resample="windows")
            for r, e, g in ((4, 1, 8), (4, 2, 8), (20, 2, 4), (96, 2, 2))
        ],
    ),
    "maxim": SmallOptions(2.0, [dict(input_proj_factor=1, block_size=n, grid_size=n) for n in (8, 8, 4, 4)]),
    "wavemix": SmallOptions(2.5, [dict(mult=m, ff_channel=n) for m, n in ((4, 64), (4, 64), (3, 32), (1, 8))]),
    "nin": SmallOptions(
        3.0, [dict(grid=g, token_dim=128, channel_dim=c) for g, c in ((16, 32), (8, 32), (4, 80), (2, 192))]
    ),
    "minattn": SmallOptions(2.0, [dict(qk="shared", num_heads=h, context=8, positions=True) for h in (2, 4, 10, 24)]),
}

EQUAL_COST = {"nano": NANO, "tiny": TINY}  # sizes in which narrower MLPs make all mixers cost the same


def default_mixer_args(stage: int, dim: int, *, size: str) -> dict[str, dict]:
    """Return the options of each mixer in a stage of `dim` channels.

    Windows, grids and contexts fit the maps of an image of the default size: 16, 8 and 4 tokens a side for 32
    pixels, 32 to 4 for 128, 56 to 7 for 224. They keep their size on larger maps, so that time is linear in the number
    of tokens, as for pooling. Only raft is different: except in tiny, its time per token grows with `img_size`.
    """
    if size in EQUAL_COST:
        options = {mixer: each.stages[min(stage, len(each.stages) - 1)] for mixer, each in EQUAL_COST[size].items()}
        heads = largest_divisor(dim, options["minattn"]["num_heads"])
        return options | {"minattn": options["minattn"] | {"num_heads": heads}}
    # The mixers of a model have at most half as many parameters as its MLPs.
    return {
        "maxim": dict(input_proj_factor=1, block_size=(7, 7), grid_size=(7, 7)),
        "wavemix": dict(mult=1, ff_channel=dim // 8),
        "nin": dict(token_dim=256, channel_dim=dim // 2, grid=(14, 14)),
        "minattn": dict(qk="shared", num_heads=largest_divisor(dim, dim // 32), context=(14, 14)),
    }


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`, or 1 if `most` is less than 1."""
    return next((n for n in range(most, 1, -1) if number % n == 0), 1)


def metaformer(name: str, pretrained: bool = False, *, size: str, **kwargs: Any) -> nn.Module:
    """Build a model of the comparison family.

    Args:
        size: a key of `SIZES`.
        kwargs: arguments of `MetaFormer`; `mixer_args` override individual options of `default_mixer_args`.
    """
    check_choice("size", size, SIZES)
    arguments = SIZES[size] | kwargs
    check_stages(arguments["depths"], arguments["dims"])
    if size in EQUAL_COST:
        mixers, _ = mixers_per_stage(arguments["mixer"], None, len(arguments["depths"]))
        ratios = tuple(EQUAL_COST[size][mixer].mlp_ratio if mixer in EQUAL_COST[size] else 4.0 for mixer in mixers)
        arguments = {"mlp_ratio": ratios} | arguments
    mixer_args = [default_mixer_args(stage, dim, size=size) for stage, dim in enumerate(arguments["dims"])]
    return build(name, pretrained, default_mixer_args=mixer_args, **arguments)


CONFIGS = {
    "nano": CIFAR10 | dict(first_conv="stem.0", pool_size=(4, 4)),
    "tiny": IMAGENET
    | dict(input_size=(3, 128, 128), pool_size=(4, 4), num_classes=200, crop_pct=1.0, first_conv="stem.0.0"),
}

for size in SIZES:
    published = dict(hf_hub_id=f"timm/poolformer_{size}.sail_in1k", crop_pct=0.95 if size[0] == "m" else 0.9)
    for mixer in list_mixers():
        register(
            f"metaformer_{mixer}_{size}",
            metaformer,
            cfg=CONFIGS.get(size, IMAGENET),
            tags={"sail_in1k": published} if mixer == "pooling" and size not in EQUAL_COST else None,
            size=size,
            mixer=mixer,
        )
