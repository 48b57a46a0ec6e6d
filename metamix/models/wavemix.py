"""Build WaveMix and WaveMix-Lite (arXiv 2203.03689 and 2205.14375): isotropic stacks of wavelet mixers with residuals.

`wavemix_<dim>_<depth>` has a wavelet transform of one level; `..._l2`, `..._l3` and `..._l4` have two to four levels.
The small models `wavemixlite_<dim>_<depth>` are the papers' evidence for their claim of parameter efficiency.

Departure: two of the small models upsample bilinearly, the others by a transposed convolution. According to the
authors' text, four models do without the transposed convolution, but only these two have the published parameter counts
without it. "Bilinear" is our guess: the authors' published code upsamples only by the transposed convolution.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from metamix.layers import GELU
from metamix.utils.checks import check_counts
from metamix.weights.layout import PUBLISHED, Layout

from .embed import ConvEmbed, SequentialEmbed
from .official import ModelAndLayout, check_value, official
from .registry import CIFAR10, IMAGENET, MNIST, build, register


def strided_stem(in_chans: int, dim: int, *, stride: int) -> SequentialEmbed:
    """Build two 3x3 convolutions of stride s in a row: (B, in, H, W) -> (B, dim, ceil(H / s^2), ceil(W / s^2))."""
    conv = partial(ConvEmbed, kernel_size=3, stride=stride, padding=1)
    return SequentialEmbed(conv(in_chans, dim // 2), conv(dim // 2, dim))


def patch_stem(in_chans: int, dim: int, *, patch_size: int) -> SequentialEmbed:
    """Build two 3x3 convolutions, a patch convolution, GELU, BatchNorm: (B, in, H, W) -> (B, dim, H // p, W // p)."""
    conv = partial(ConvEmbed, kernel_size=3, stride=1, padding=1)
    return SequentialEmbed(
        conv(in_chans, dim // 4),
        conv(dim // 4, dim // 2),
        ConvEmbed(dim // 2, dim, kernel_size=patch_size, stride=patch_size),
        GELU(),
        nn.BatchNorm2d(dim),
    )


def wavemix(
    name: str,
    pretrained: bool = False,
    *,
    dim: int,
    depth: int,
    level: int = 1,
    mult: int = 2,
    ff_channel: int = 0,
    upsample: str = "transposed",
    stride: int = 0,
    patch_size: int = 0,
    proj_drop_rate: float = 0.5,
    **kwargs: Any,
) -> nn.Module:
    """Build a WaveMix model; `kwargs` are arguments of `MetaFormer`.

    Args:
        dim: number of channels.
        depth: number of blocks.
        level, mult, ff_channel, upsample: options of the mixer; see `metamix.mixers.WaveMix`.
        stride: stride of each convolution in a strided stem; 0 for a patch stem.
        patch_size: side of the patches in a patch stem; 0 for a strided stem.
        proj_drop_rate: dropout rate in the mixers.
    """
    check_counts(0, stride=stride, patch_size=patch_size)
    if bool(stride) == bool(patch_size):
        raise ValueError(f"stride is {stride} and patch_size is {patch_size}: each chooses a stem, so set exactly one.")
    stem = partial(strided_stem, stride=stride) if stride else partial(patch_stem, patch_size=patch_size)
    preset: dict[str, Any] = dict(
        mixer="wavemix",
        default_mixer_args={"wavemix": dict(level=level, mult=mult, ff_channel=ff_channel, upsample=upsample)},
        stem=stem,
        norm1="none",
        norm="none",
        mlp_ratio=0,
        layer_scale=0,
        proj_drop_rate=proj_drop_rate,
    )
    return build(name, pretrained, depths=(depth,), dims=(dim,), **(preset | kwargs))


CONV = dict(first_conv="stem.0")
CIFAR = CIFAR10 | CONV | dict(pool_size=(32, 32))
CIFAR100 = CIFAR | dict(num_classes=100)
TINY_IMAGENET = IMAGENET | CONV | dict(input_size=(3, 64, 64), pool_size=(64, 64), num_classes=200)
FULL = IMAGENET | CONV | dict(pool_size=(56, 56))
DIGITS = MNIST | CONV | dict(pool_size=(28, 28))

# The authors' weights by name and tag. The files are state dicts, which timm reads with weights_only.
WEIGHTS = "https://huggingface.co/cloudwalker/wavemix/resolve/main/Saved_Models_Weights/"
GALAXY10 = dict(input_size=(3, 256, 256), num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
TINY = dict(num_classes=200, mean=(0.4803, 0.4481, 0.3975), std=(0.2764, 0.2689, 0.2816), crop_pct=1.0)
TAGS: dict[str, dict[str, dict[str, Any]]] = {
    "wavemix_192_16": {
        "in1k": dict(url="ImageNet/wavemixlite_71.18.pth", crop_pct=1.0),
        "galaxy10": dict(url="galaxy10/galaxy_90.23.pth", **GALAXY10),
    },
    "wavemix_192_16_l3": {
        "in1k": dict(url="ImageNet/wavemix_192_16_75.06.pth", crop_pct=1.0),
        "tiny_imagenet": dict(url="tinyimagenet/tiny_78.76.pth", input_size=(3, 128, 128), **TINY),
        "galaxy10": dict(url="galaxy10/galaxy_95.42.pth", **GALAXY10),
    },
    "wavemix_256_16_l3": {"in1k": dict(url="ImageNet/ImageNet73.03.pth", crop_pct=1.0)},
    "wavemix_256_16_l4": {"in1k": dict(url="ImageNet/imagenet4level_70.42.pth", crop_pct=1.0)},
    "wavemix_256_12_l2": {"places365": dict(url="Places365/places365_54.94.pth")},
    "wavemix_144_7": {"cifar10": dict(url="cifar10/cifar10_94.58.pth")},
    "wavemix_320_8": {"cifar10": dict(url="cifar10/cifar10_95.37.pth")},
    "wavemix_256_8": {"cifar100": dict(url="cifar100/cifar100_77.82.pth")},
    "wavemix_256_10": {"cifar100": dict(url="cifar100/cifar100_78.81.pth")},
    "wavemix_256_12": {"tiny_imagenet": dict(url="tinyimagenet/tinyimagenet_62.51.pth", **TINY)},
}

for name, cfg, preset in (
    ("wavemix_192_16", FULL, dict(patch_size=4)),
    ("wavemix_192_16_l3", FULL, dict(patch_size=4, level=3)),
    ("wavemix_256_16_l3", FULL, dict(patch_size=4, level=3)),
    ("wavemix_256_12_l2", FULL | dict(pool_size=(28, 28), num_classes=365), dict(patch_size=8, level=2)),
    ("wavemix_256_16_l4", FULL | dict(input_size=(3, 256, 256), pool_size=(64, 64)), dict(stride=2, level=4)),
    ("wavemix_144_7", CIFAR, dict(stride=1)),
    ("wavemix_320_8", CIFAR, dict(stride=1)),
    ("wavemix_256_8", CIFAR100, dict(stride=1)),
    ("wavemix_256_10", CIFAR100, dict(stride=1)),
    ("wavemix_256_12", TINY_IMAGENET, dict(stride=1)),
    ("wavemixlite_8_10", DIGITS, dict(stride=1, upsample="bilinear")),
    ("wavemixlite_8_5", DIGITS, dict(stride=1)),
    ("wavemixlite_32_7", CIFAR, dict(stride=1, upsample="bilinear")),
    ("wavemixlite_32_4", CIFAR, dict(stride=1, ff_channel=16, mult=1, proj_drop_rate=0.25)),
    ("wavemixlite_64_6", CIFAR, dict(stride=1)),
):
    dim, depth = name.split("_")[1:3]
    tags = {
        tag: entries | dict(url=WEIGHTS + entries["url"], license="mit") for tag, entries in TAGS.get(name, {}).items()
    }
    register(name, wavemix, cfg=cfg, tags=tags, dim=int(dim), depth=int(depth), **preset)


# Checkpoints of github.com/pranavphoenix/WaveMix

MIXER_NAMES = (
    (r"\.reduce\.", ".reduction."),
    (r"\.levels\.(\d+)\.", lambda m: f".feedforward{int(m[1]) + 1}."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".3."),
    (r"\.up\.", ".4."),
    (r"\.norm\.", ".5."),
)
CLASSIFIER_NAMES = (
    (r"^head\.", "pool.2."),
    (r"^stem\.", "conv."),
    (r"^stages\.0\.blocks\.(\d+)\.mixer\.", r"layers.\1."),
)


def wavemix_layout(*names: tuple[str, str], level: int) -> Layout:
    """Return the authors' layout of a model with `level` wavelet levels.

    `names` are (pattern, replacement) pairs for the tensors outside the mixers.
    """
    only_level = [(r"\.levels\.0\.", ".feedforward.")] if level == 1 else []  # the authors do not number a single level
    return Layout((*names, *only_level, *MIXER_NAMES), arrange_wavemix)


def arrange_wavemix(key: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """Reorder the detail channels that the first convolution of each MLP reads."""
    if not key.endswith(".fc1.weight"):
        return tensor
    mixer: Any = model.get_submodule(key.partition(".levels.")[0])
    c = mixer.reduce.out_channels
    low, high, deeper = tensor.split([c, 3 * c, tensor.shape[1] - 4 * c], dim=1)
    # The authors' order: the three bands of a channel, then the three bands of the next channel.
    high = rearrange(high, "o (c band) h w -> o (band c) h w", band=3)
    return torch.cat([low, high, deeper], dim=1)


PUBLISHED |= {
    "layers.0.feedforward.0.weight": wavemix_layout(*CLASSIFIER_NAMES, level=1),
    "layers.0.feedforward1.0.weight": wavemix_layout(*CLASSIFIER_NAMES, level=2),
}


@official(
    "wavemix",
    same=("num_classes", "mult", "depth", "ff_channel"),
    renamed=dict(final_dim="dim", dropout="proj_drop_rate"),
    defaults=dict(depth=16, ff_channel=192, final_dim=192),
)
def official_wavemix(
    state: Mapping[str, Tensor],
    *,
    level: int = 3,
    initial_conv: str = "pachify",
    patch_size: int = 4,
    stride: int = 2,
    **arguments: Any,
) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `WaveMix` classifier."""
    check_value("initial_conv", initial_conv, ["pachify", "strided"], "'pachify' or 'strided'")
    stem: dict[str, Any] = dict(patch_size=patch_size) if initial_conv == "pachify" else dict(stride=stride)
    model = wavemix("wavemix_192_16", level=level, **stem, **arguments)
    return model, wavemix_layout(*CLASSIFIER_NAMES, level=level)
