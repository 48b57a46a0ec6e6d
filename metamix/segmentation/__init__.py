"""Train and score semantic segmentation on any backbone."""

from metamix.models.segmenters import Segmenter, build_segmenter

from .load import load_segmenter

__all__ = ["Segmenter", "build_segmenter", "load_segmenter"]
