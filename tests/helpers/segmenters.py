"""Describe a segmenter that is built in milliseconds."""

from metamix.segmentation.load import SegmenterSpec

SPEC = SegmenterSpec(
    head="semantic_fpn", head_args=dict(neck_channels=32, head_channels=32), model="metaformer_pooling_nano",
    model_args=dict(depths=[1, 1, 1], dims=[8, 8, 16]), classes=("sky", "ground"), crop=(32, 32), frozen_norms=False,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
)  # fmt: skip
