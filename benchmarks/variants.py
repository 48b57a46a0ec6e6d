"""Define the variants of the nano and tiny models that `benchmarks.measure.ablate` compares: one change each."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from benchmarks.measure.ceiling import dense_conv_net
from metamix.layers import GELU
from metamix.models.embed import DOWNSAMPLE, STEM, ConvEmbed, SequentialEmbed


class ConvStem(SequentialEmbed):
    """conv3x3, BatchNorm, GELU, conv3x3 of stride 2.

    (B, in_chans, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_chans: int, dim: int):
        super().__init__(
            ConvEmbed(in_chans, dim // 2, kernel_size=3, stride=1, padding=1),
            nn.BatchNorm2d(dim // 2),
            GELU(),
            ConvEmbed(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        )


MUON = dict(lr=1.0e-2, opt_args=dict(fallback_list=["head.*", "stem.0.*"], fallback_lr_scale=0.5))

# Names that variants give to stems and downsamplings.
EMBEDS: dict[str, Callable[..., nn.Module]] = {
    "conv-bn-act-conv stem": ConvStem,
    "conv": DOWNSAMPLE,
    "conv7x7 stem": partial(STEM, padding=3),
}


@dataclass(frozen=True)
class Variant:
    """One change to another variant.

    Attributes:
        about: the change, in words.
        parent: the variant that is changed; None for a variant that changes no other.
        model: arguments of `metaformer_<mixer>_<size>`; stem and downsampling are given as names in `EMBEDS`.
        recipe: options of the training engine.
        data: options of data, augmentation and loss.
        size: size of the model; a variant with a parent has the size of the parent.
    """

    about: str
    parent: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    size: str = "nano"


# In every variant, learned mixers keep the options of the model's size, nano or tiny.
VARIANTS = {
    "nano": Variant(
        "dims 64/128/192, depths 2/4/2, ratio 4; learned mixers are paid for by the MLPs; Muon's rate 1e-2",
        recipe=MUON,
    ),
    "nano-mlps": Variant(
        "the MLPs have ratio 4 with every mixer, so learned mixers cost more", "nano", model={"mlp_ratio": 4.0}
    ),
    "nano-depths": Variant("depths 2/3/3: a block on 16 tokens, not on 64", "nano", model={"depths": (2, 3, 3)}),
    "nano-narrow": Variant("48 channels in the first stage, not 64", "nano", model={"dims": (48, 128, 192)}),
    "nano-ratios": Variant("MLP ratios 2, 4 and 6 by stage, not 4", "nano", model={"mlp_ratio": (2.0, 4.0, 6.0)}),
    "nano-ratios-raft": Variant(  # in `nano`, MLPs of raft have ratio 2
        "MLP ratios 1, 2 and 3 by stage, not 2", "nano", model={"mlp_ratio": (1.0, 2.0, 3.0)}
    ),
    "nano-gn": Variant(
        "GroupNorm(1) for BatchNorm in the blocks and before the head",
        "nano",
        model=dict.fromkeys(("norm1", "norm2", "norm"), "groupnorm1"),
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
    "nano-cutout": Variant("cutout of 8 pixels", "nano", data=dict(cutout=8)),
    "nano-randaug": Variant("RandAugment, one operation of magnitude 5", "nano", data=dict(auto_augment="rand-m5-n1")),
    "nano-distill": Variant(
        "the dense-convolution net as teacher, half of the loss; its passes are not counted",
        "nano",
        data=dict(teacher=dense_conv_net.__name__),
    ),
    # Four-stage nets for Tiny-ImageNet. results/tiny.json has a run of `tiny` with --budget 3.333e13, and runs of
    # all four variants with --budget 8e12.
    "tiny": Variant(
        "the size tiny: dims 32/64/160/384, depths 1/2/3/2, images of 64 pixels",
        recipe=MUON,
        data=dict(img_size=64, memory="yes", padding=8),
        size="tiny",
    ),
    "tiny-stem": Variant(
        "one 7x7 convolution of stride 4 as stem, not two of 3x3",
        "tiny",
        model={"stem": "conv7x7 stem"},
        recipe=dict(opt_args=dict(fallback_list=["head.*", "stem.*"], fallback_lr_scale=0.5)),
    ),
    "tiny-depths": Variant("depths 2/2/2/2, not 1/2/3/2", "tiny", model={"depths": (2, 2, 2, 2)}),
    "tiny-widths": Variant("dims 40/80/144/320, not 32/64/160/384", "tiny", model={"dims": (40, 80, 144, 320)}),
} | {
    # These mixers replace the mixer in the run's name. Each has the options and the MLP ratio that it has in `nano`.
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
    """Merge a variant with its ancestors; its values override theirs."""
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
