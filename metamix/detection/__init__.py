"""Train and score torchvision's detectors on any backbone, with data in COCO's format."""

from metamix.models.backbone import Backbone, build_backbone

from .detectors import build_detector
from .load import load_detector

__all__ = ["Backbone", "build_backbone", "build_detector", "load_detector"]
