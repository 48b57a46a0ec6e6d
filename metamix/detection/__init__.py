"""Any backbone under any of torchvision's detectors; COCO-format data, scores and pictures."""

from metamix.models.backbone import Backbone, build_backbone

from .detectors import build_detector

__all__ = ["Backbone", "build_backbone", "build_detector"]
