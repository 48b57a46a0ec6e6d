"""List the published weights of whole segmenters (backbone and head) by the name and tag of the backbone."""

from dataclasses import dataclass, field
from typing import Any

from metamix.models.poolformer import POOLFORMER
from metamix.models.wavemix import CLASSIFIER_NAMES, wavemix_layout
from metamix.weights.layout import Layout

# PoolFormer with Semantic FPN: github.com/open-mmlab/mmsegmentation, configs/poolformer

POOLFORMER_SEMANTIC_FPN = Layout((
    (r"^backbone\.body\.model\.(.*)", lambda m: f"backbone.{POOLFORMER.name(m[1])}"),
    (r"^backbone\.pyramid\.norms\.(\d+)\.", lambda m: f"backbone.norm{2 * int(m[1])}."),
    (r"^backbone\.pyramid\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.pyramid\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^head\.branches\.(\d+)\.(\d+)\.0\.", lambda m: f"decode_head.scale_heads.{m[1]}.{2 * int(m[2])}.conv."),
    (r"^head\.branches\.(\d+)\.(\d+)\.1\.", lambda m: f"decode_head.scale_heads.{m[1]}.{2 * int(m[2])}.bn."),
    (r"^head\.classifier\.", "decode_head.conv_seg."),
))  # fmt: skip

# WaveMix for segmentation: wavemix/SemSegment.py of the authors, and the network that their Cityscapes weights fit


def wavemix_segmenter_layout(head: str, level: int) -> Layout:
    """Return the layout of a WaveMix segmenter with `level` wavelet levels; `head` is the authors' name of the head."""
    return wavemix_layout((r"^head\.", f"{head}."), (r"^backbone\.body\.model\.", ""), *CLASSIFIER_NAMES, level=level)


@dataclass(frozen=True)
class PublishedSegmenter:
    """Weights of a segmenter to download, its head and the head's options, and the names of the tensors in the file."""

    head: str
    url: str
    num_classes: int
    layout: Layout
    options: dict[str, Any] = field(default_factory=dict)


MMSEGMENTATION = "https://download.openmmlab.com/mmsegmentation/v0.5/poolformer/{0}/{0}_{1}.pth"
WEIGHTS = {  # by backbone and tag
    f"metaformer_pooling_{size}.ade20k": PublishedSegmenter(
        "semantic_fpn",
        MMSEGMENTATION.format(f"fpn_poolformer_{size}_8x4_512x512_40k_ade20k", stamp),
        num_classes=150,
        layout=POOLFORMER_SEMANTIC_FPN,
    )
    for size, stamp in {
        "s12": "20220501_115154-b5aa2f49",
        "s24": "20220503_222049-394a7cf7",
        "s36": "20220501_151122-b47e607d",
        "m36": "20220501_164230-3dc83921",
        "m48": "20220504_003923-64168d3b",
    }.items()
}
WEIGHTS["wavemix_192_16_l3.cityscapes"] = PublishedSegmenter(  # class 0 is "unlabelled", and 19 classes follow
    "wavemix",
    "https://huggingface.co/cloudwalker/wavemix/resolve/main/Saved_Models_Weights/cityscapes_83.04.pth",
    num_classes=20,
    layout=wavemix_segmenter_layout("pool", level=3),
    options=dict(head_channels=(128, 64)),
)


def published_segmenter(head: str, backbone: str) -> PublishedSegmenter | None:
    """Return the published segmenter for `backbone`, NAME.TAG, or None; raise ValueError if it has another head."""
    published = WEIGHTS.get(backbone)
    if published and published.head != head:
        raise ValueError(f"{backbone} has weights for the head {published.head}: give this head instead of {head}.")
    return published
