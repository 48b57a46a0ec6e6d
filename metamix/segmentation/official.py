"""Build segmentation networks from the arguments of their authors' code, for `metamix.models.load_official`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metamix.models.metaformer_family import EQUAL_COST, SIZES
from metamix.models.official import ModelAndLayout, check_value, official, refuse

from .published import POOLFORMER_SEMANTIC_FPN, wavemix_segmenter_layout
from .segmenters import build_segmenter


@official(
    "poolformer_semantic_fpn",
    same=("num_classes",),
    renamed=dict(out_channels="neck_channels", channels="head_channels", dropout_ratio="dropout"),
    defaults=dict(out_channels=256, channels=128, num_classes=150),
)
def poolformer_semantic_fpn(
    state: Mapping[str, Tensor], *, arch: str | Mapping[str, Any] = "s12", drop_path_rate: float = 0.0, **arguments: Any
) -> ModelAndLayout:
    """Build our model for the arguments of mmsegmentation's backbone (`arch`), neck (`out_channels`) and head."""
    sizes = [size for size in SIZES if size not in EQUAL_COST]
    backbone_args: dict[str, Any] = dict(drop_path_rate=drop_path_rate)
    wanted = {"layers", "embed_dims", "mlp_ratios", "layer_scale_init_value"}
    if isinstance(arch, Mapping):
        if arch.keys() != wanted:
            refuse("arch", dict(arch), f"a dict of {', '.join(sorted(wanted))}; or one of {', '.join(sizes)}")
        backbone_args |= dict(
            depths=tuple(arch["layers"]),
            dims=tuple(arch["embed_dims"]),
            mlp_ratio=tuple(arch["mlp_ratios"]),
            layer_scale=arch["layer_scale_init_value"],
        )
        arch = "s12"
    check_value("arch", arch, sizes, f"{', '.join(sizes)}, or a dict of {', '.join(sorted(wanted))}")
    model = build_segmenter("semantic_fpn", f"metaformer_pooling_{arch}", backbone_args=backbone_args, **arguments)
    return model, POOLFORMER_SEMANTIC_FPN


SAME = ("depth", "mult", "ff_channel")
RENAMED = dict(final_dim="dim", dropout="proj_drop_rate")


@official("wavemix_segmentation", same=SAME, renamed=RENAMED, defaults=dict(ff_channel=256, dropout=0.0))
def wavemix_segmentation(
    state: Mapping[str, Tensor], *, num_classes: int = 20, level: int = 4, stride: int = 2, **arguments: Any
) -> ModelAndLayout:
    """Build our model for the arguments of the authors' segmentation `WaveMix`."""
    check_value("stride", stride, [2], "2, so that the output has the size of the image")
    model = build_segmenter("wavemix", "wavemix_256_16_l4", num_classes, backbone_args=arguments | {"level": level})
    return model, wavemix_segmenter_layout("expand", level)


@official("wavemix_cityscapes", same=(*SAME, "patch_size"), renamed=RENAMED, defaults=dict(ff_channel=192))
def wavemix_cityscapes(
    state: Mapping[str, Tensor],
    *,
    num_classes: int = 20,
    level: int = 3,
    pool_channels: Sequence[int] = (128, 64),
    **arguments: Any,
) -> ModelAndLayout:
    """Build our model for the authors' Cityscapes weights; `pool_channels` lists the widths of `pool`'s layers."""
    options: dict[str, Any] = dict(head_channels=list(pool_channels), backbone_args=arguments | {"level": level})
    model = build_segmenter("wavemix", "wavemix_192_16_l3", num_classes, **options)
    return model, wavemix_segmenter_layout("pool", level)
