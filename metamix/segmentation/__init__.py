"""Train and score semantic segmentation on any backbone."""

from .load import load_segmenter
from .segmenters import Segmenter, build_segmenter

__all__ = ["Segmenter", "build_segmenter", "load_segmenter"]
