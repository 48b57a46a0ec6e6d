"""Segmentation networks of the papers' authors, as sources of `metamix.models.load_official`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metamix.models.metaformer_family import PAID, SIZES
from metamix.models.official import ModelAndLayout, accept, official, refuse

from .published import POOLFORMER_SEMANTIC_FPN, wavemix_segmenter_layout
from .segmenters import build_segmenter


@official("poolformer_semantic_fpn")
def poolformer_semantic_fpn(
    state: Mapping[str, Tensor],
    *,
    arch: str | Mapping[str, Any] = "s12",
    out_channels: int = 256,
    channels: int = 128,
    num_classes: int = 150,
    dropout_ratio: float = 0.1,
    drop_path_rate: float = 0.0,
) -> ModelAndLayout:
    """Build our model for the arguments of mmsegmentation's backbone (`arch`), neck (`out_channels`) and head."""
    sizes = [size for size in SIZES if size not in PAID]
    backbone_args: dict[str, Any] = dict(drop_path_rate=drop_path_rate)
    if isinstance(arch, Mapping):
        wanted = {"layers", "embed_dims", "mlp_ratios", "layer_scale_init_value"}
        if arch.keys() != wanted:
            refuse("arch", dict(arch), f"a dict of {', '.join(sorted(wanted))}; or one of {', '.join(sizes)}")
        backbone_args |= dict(
            depths=tuple(arch["layers"]),
            dims=tuple(arch["embed_dims"]),
            mlp_ratio=tuple(arch["mlp_ratios"]),
            layer_scale=arch["layer_scale_init_value"],
        )
        arch = "s12"
    accept("arch", arch, sizes, f"{', '.join(sizes)}, or a dict of their numbers")
    model = build_segmenter(
        "semantic_fpn",
        f"metaformer_pooling_{arch}",
        num_classes,
        neck_channels=out_channels,
        head_channels=channels,
        dropout=dropout_ratio,
        backbone_args=backbone_args,
    )
    return model, POOLFORMER_SEMANTIC_FPN


@official("wavemix_segmentation")
def wavemix_segmentation(
    state: Mapping[str, Tensor],
    *,
    num_classes: int = 20,
    depth: int = 16,
    mult: int = 2,
    ff_channel: int = 256,
    final_dim: int = 256,
    dropout: float = 0.0,
    level: int = 4,
    stride: int = 2,
) -> ModelAndLayout:
    """Build our model for the arguments of the authors' segmentation `WaveMix`."""
    accept("stride", stride, [2], "2, so that the output has the size of the image")
    arguments = dict(dim=final_dim, depth=depth, level=level, mult=mult, ff_channel=ff_channel, proj_drop_rate=dropout)
    model = build_segmenter("wavemix", "wavemix_256_16_l4", num_classes, backbone_args=arguments)
    return model, wavemix_segmenter_layout("expand", level)


@official("wavemix_cityscapes")
def wavemix_cityscapes(
    state: Mapping[str, Tensor],
    *,
    num_classes: int = 20,
    depth: int = 16,
    mult: int = 2,
    ff_channel: int = 192,
    final_dim: int = 192,
    dropout: float = 0.5,
    level: int = 3,
    patch_size: int = 4,
    pool_channels: Sequence[int] = (128, 64),
) -> ModelAndLayout:
    """Build our model for the authors' classifier with transposed convolutions as its `pool`.

    It takes the classifier's arguments. `pool_channels` are the widths of the transposed convolutions.
    """
    arguments = dict(
        dim=final_dim, depth=depth, level=level, mult=mult, ff_channel=ff_channel, proj_drop_rate=dropout,
        patch_size=patch_size,
    )  # fmt: skip
    model = build_segmenter(
        "wavemix", "wavemix_192_16_l3", num_classes, head_channels=list(pool_channels), backbone_args=arguments
    )
    return model, wavemix_segmenter_layout("pool", level)
