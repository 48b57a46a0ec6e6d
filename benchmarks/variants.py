"""The variants of the nano models that `benchmarks.measure.ablate` compares, one change each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.ceiling import dense_conv_net
from metamix.data import Augment
from metamix.data.augment import FLIP, LEFT, TOP
from metamix.data.counter_rng import SAMPLE, hash64, randint, uniform
from metamix.data.loader import Batch
from metamix.layers import GELU, GroupNorm1
from metamix.models.embed import DOWNSAMPLE, CeilEmbed, ConvEmbed
from metamix.models.metaformer_family import ConvNormAct, ConvNormActStem


class ConvPool(CeilEmbed, nn.Sequential):
    """conv3x3, max-pooling 2x2, norm, activation: (B, in_chans, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2)).

    Args:
        in_chans, dim: channels of the input and of the output.
        norm, act: constructors, `norm(dim)` and `act()`.
    """

    reduction = 2

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        norm: Callable[[int], nn.Module] = GroupNorm1,
        act: Callable[[], nn.Module] = GELU,
    ):
        super().__init__(
            ConvEmbed(in_chans, dim, kernel_size=3, stride=1, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
            norm(dim),
            act(),
        )


class ConvPoolStem(CeilEmbed, nn.Sequential):
    """conv3x3, norm, activation, `ConvPool`: (B, in_chans, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2)).

    Args:
        in_chans, dim: channels of the image and of the output.
        width: channels at full resolution.
        norm, act: as for `ConvPool`.
    """

    reduction = 2

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        width: int = 32,
        norm: Callable[[int], nn.Module] = GroupNorm1,
        act: Callable[[], nn.Module] = GELU,
    ):
        super().__init__(
            ConvEmbed(in_chans, width, kernel_size=3, stride=1, padding=1),
            norm(width),
            act(),
            ConvPool(width, dim, norm=norm, act=act),
        )


class ConvStem(CeilEmbed, nn.Sequential):
    """The stem of version 0.1: conv3x3, norm, GELU, conv3x3 of stride 2.

    (B, in_chans, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2)).
    """

    reduction = 2

    def __init__(self, in_chans: int, dim: int, *, norm: Callable[[int], nn.Module] = GroupNorm1):
        super().__init__(
            ConvEmbed(in_chans, dim // 2, kernel_size=3, stride=1, padding=1),
            norm(dim // 2),
            GELU(),
            ConvEmbed(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        )


class AlternatingFlip(Augment):
    """Flip each image in every second epoch (Keller Jordan, arXiv 2404.00498)."""

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        image = batch["image"]
        flipped = (uniform(hash64(self.seed, FLIP, batch["index"])) < 0.5) ^ bool(epoch % 2)
        image = torch.where(flipped[:, None, None, None], image.flip(-1), image)
        return super().__call__({**batch, "image": image}, epoch, step)


class ReflectCrop(Augment):
    """Crop images whose border is filled by reflection, not with black."""

    margin = 4

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        image = batch["image"].permute(0, 2, 3, 1)  # (n, H, W, C)
        key = hash64(self.seed, SAMPLE, epoch, batch["index"])
        y, x = (
            self.reflect(randint(hash64(key, purpose), 2 * self.margin + 1), side)
            for purpose, side in zip((TOP, LEFT), image.shape[1:3])
        )
        image = image[torch.arange(len(image))[:, None, None], y[:, :, None], x[:, None, :]]
        return super().__call__({**batch, "image": image.permute(0, 3, 1, 2)}, epoch, step)

    def reflect(self, start: Tensor, side: int) -> Tensor:
        """Return the pixels of crops that start at `start` (n,) of the padded image, (n, side)."""
        pixel = start[:, None] - self.margin + torch.arange(side)
        return side - 1 - (side - 1 - pixel.abs()).abs()


MUON = dict(lr=1.0e-2, opt_args=dict(fallback_list=["head.*", "stem.0.*"], fallback_lr_scale=0.5))

# Names that variants give to stems and downsamplings.
EMBEDS: dict[str, Callable[..., nn.Module]] = {
    "conv-norm-act-conv stem": ConvStem,
    "conv-bn-act-conv stem": partial(ConvStem, norm=nn.BatchNorm2d),
    "conv": DOWNSAMPLE,
    "conv-bn-act stem": ConvNormActStem,
    "conv-bn-act": ConvNormAct,
    "conv-pool-bn-act stem": partial(ConvPoolStem, norm=nn.BatchNorm2d),
    "conv-pool-bn-act": partial(ConvPool, norm=nn.BatchNorm2d),
    "conv-pool-norm-act stem": ConvPoolStem,
    "conv-pool-norm-act": ConvPool,
}


@dataclass(frozen=True)
class Variant:
    """One change to another variant.

    Attributes:
        about: the change, in words.
        parent: the variant that is changed, if any.
        model: arguments of `metaformer_<mixer>_<size>`; stem and downsampling are names in `EMBEDS`.
        recipe: options of the training engine.
        data: options of data, augmentation and loss.
        augment: constructor of the augmentation.
        share: the run's budget as a multiple of `BUDGET`.
        size: size of the model; a variant with a parent has the parent's.
    """

    about: str
    parent: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    augment: type[Augment] = Augment
    share: float = 1.0
    size: str = "nano"


def norms(name: str) -> dict[str, str]:
    """Return the arguments that make every norm of a model the one of this name."""
    return dict.fromkeys(("norm1", "norm2", "norm"), name)


# Learned mixers have their options of `nano` in every variant. Those above `nano` were only run with pooling.
VARIANTS = {
    "v0.1": Variant(
        "the nano of version 0.1: dims 48/96/160, depths 2/3/3, ratio 4",
        model={
            "dims": (48, 96, 160),
            "depths": (2, 3, 3),
            "mlp_ratio": 4.0,
            "stem": "conv-norm-act-conv stem",
            "downsample": "conv",
            **norms("groupnorm1"),
        },
    ),
    "wide": Variant(
        "dims 64/128/192, depths 2/4/2, ratio 3; BatchNorm; norm and activation after stem and downsampling",
        "v0.1",
        model={
            "dims": (64, 128, 192),
            "depths": (2, 4, 2),
            "mlp_ratio": 3.0,
            "stem": "conv-bn-act stem",
            "downsample": "conv-bn-act",
            **norms("batchnorm2d"),
        },
    ),
    "pool": Variant(
        "3x3 convolutions of stride 1 and max-pooling for strided ones, paid for by ratio 2",
        "wide",
        model=dict(stem="conv-pool-bn-act stem", downsample="conv-pool-bn-act", mlp_ratio=2.0),
    ),
    "pool-images": Variant(
        "`pool` on as many images as `wide`: 1.41 times the multiply-adds",
        "wide",
        share=1.409,
        model={"stem": "conv-pool-bn-act stem", "downsample": "conv-pool-bn-act", "mlp_ratio": 2.0},
    ),
    "pool-gn": Variant(
        "GroupNorm(1) for BatchNorm, everywhere",
        "pool",
        model={
            "stem": "conv-pool-norm-act stem",
            "downsample": "conv-pool-norm-act",
            **norms("groupnorm1"),
        },
    ),
    "pool-ls": Variant("no LayerScale", "pool", model={"layer_scale": 0.0}),
    "pool-ls2": Variant("LayerScale from 0.02, not 0.1", "pool", model={"layer_scale": 0.02}),
    "muon": Variant(
        "head and first convolution to AdamW, Muon's rate 1e-2, AdamW's 5e-3",
        "pool",
        recipe=MUON,
    ),
    "nano": Variant(
        "`wide` with ratio 4, mixers with budgets of their own paid for by the MLPs; Muon as in `muon`",
        recipe=MUON,
    ),
    "nano-mlps": Variant(
        "the MLPs have ratio 4 with every mixer, so learned mixers cost more", "nano", model={"mlp_ratio": 4.0}
    ),
    "nano-depths": Variant("depths 2/3/3: a block on 16 tokens, not on 64", "nano", model={"depths": (2, 3, 3)}),
    "nano-narrow": Variant("48 channels in the first stage, not 64", "nano", model={"dims": (48, 128, 192)}),
    "nano-ratios": Variant("MLP ratios 2, 4 and 6 by stage, not 4", "nano", model={"mlp_ratio": (2.0, 4.0, 6.0)}),
    "nano-ratios-raft": Variant(  # whose MLPs have ratio 2
        "MLP ratios 1, 2 and 3 by stage, not 2", "nano", model={"mlp_ratio": (1.0, 2.0, 3.0)}
    ),
    "nano-gn": Variant(
        "GroupNorm(1) for BatchNorm in the blocks and before the head", "nano", model=norms("groupnorm1")
    ),
    "nano-conv": Variant(
        "no norm and activation after stem and downsampling",
        "nano",
        model={"stem": "conv-bn-act-conv stem", "downsample": "conv"},
    ),
    "nano-ls": Variant("no LayerScale", "nano", model={"layer_scale": 0.0}),
    "nano-relu": Variant("ReLU in the MLPs", "nano", model={"act_layer": "relu"}),
    "nano-mix": Variant(
        "cutmix 1 and mixup 0.2 for half of the batches", "nano", data=dict(cutmix=1.0, mixup=0.2, mix_prob=0.5)
    ),
    "nano-mix-first": Variant("no mixing after the second epoch", "nano-mix", data=dict(mix_off_epoch=2)),
    "nano-flip": Variant("a flip that alternates between epochs", "nano", data=dict(flip=0.0), augment=AlternatingFlip),
    "nano-reflect": Variant(
        "crops with a reflected border, not a black one", "nano", data=dict(padding=0), augment=ReflectCrop
    ),
    "nano-cutout": Variant("cutout of 8 pixels", "nano", data=dict(cutout=8)),
    "nano-randaug": Variant("RandAugment, one operation of magnitude 5", "nano", data=dict(auto_augment="rand-m5-n1")),
    "nano-distill": Variant(
        "the dense-convolution net as teacher, half of the loss; its passes are not counted",
        "nano",
        data=dict(teacher=dense_conv_net.__name__),
    ),
} | {
    # The mixer of the run's name is replaced; each stage has the options and the MLPs that it has in `nano`.
    f"nano-{'-'.join(mixers)}": Variant("one mixer for each stage", "nano", model={"mixer": mixers})
    for mixers in (
        ("pooling", "pooling", "raft"),
        ("pooling", "raft", "raft"),
        ("pooling", "raft", "minattn"),
        ("raft", "raft", "minattn"),
        ("wavemix", "raft", "minattn"),
    )
}


def resolve(name: str, variants: Mapping[str, Variant] = VARIANTS) -> Variant:
    """Merge a variant with its ancestors, whose values it overrides."""
    variant = variants[name]
    if variant.parent is None:
        return variant
    base = resolve(variant.parent, variants)
    return dataclasses.replace(
        variant,
        model={**base.model, **variant.model},
        recipe={**base.recipe, **variant.recipe},
        data={**base.data, **variant.data},
        size=base.size,
    )


def with_embeds(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of stem and downsampling by their constructors."""
    return {key: EMBEDS[value] if key in ("stem", "downsample") else value for key, value in arguments.items()}
