"""Run an exported detector: prepare images, and suppress boxes that overlap a better one.

`ExportedDetector` is called like the detector itself. `metamix.detection.export` describes the graph and its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from metamix.deploy.runtime import ExportedModel
from metamix.layers import round_up
from metamix.tasks.exportable import Model
from metamix.utils.rules import Share, rule, rules_of
from metamix.utils.text import plural
from metamix.weights.files import ARTIFACT
from metamix.weights.metadata import MAX_SIDE, ModelMetadata

from .load import DetectorSpec, TrainedDetector
from .objects import Objects

Size = tuple[int, int]
Pixels = Annotated[int, Field(ge=1, le=MAX_SIDE)]
SETTINGS = {  # what `ExportedDetector` reads from `extra` in export.json, which is untrusted
    "score_thresh": rule(Share),
    "nms_thresh": rule(Share),
    **dict.fromkeys(("detections_per_img", "min_size", "max_size", "multiple", "least"), rule(Pixels)),
}
NEEDED = ("classes", "num_classes", "mean", "std")  # boxes do not show how many classes the graph knows
METADATA = {name: rule for name, rule in rules_of(ModelMetadata).items() if name in NEEDED}


def exported_detector(exported: ExportedModel) -> TrainedDetector:
    """Use an exported model as a detector; raise ValueError if export.json lacks an entry or does not fit."""
    artifact = exported.artifact
    artifact.check(SETTINGS, METADATA)
    model = ExportedDetector(exported, artifact.model, artifact.size, artifact.extra).eval()
    metadata = artifact.model.to_dict()
    spec, outputs = DetectorSpec.from_dict(metadata, ARTIFACT), exported.probe()
    if len(outputs) != 3 or int(outputs[2].max()) != model.classes:
        raise ValueError(
            f"{ARTIFACT} has {plural(model.classes, 'class')}, and the graph has more or fewer: they do not belong "
            f"together, export the model again"
        )
    return TrainedDetector(model, spec, metadata)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, size: Size, settings: dict[str, Any]) -> Objects:
    """Keep the objects of one image: scores above the threshold, no box that overlaps a better one of its class.

    Args:
        boxes, scores, labels: (K, 4), (K,) and (K,), outputs of the graph for the image.
        size: (height, width) of the image without padding; boxes are clipped to it.
        settings: score_thresh, nms_thresh and detections_per_img, as in torchvision.

    Returns:
        "boxes", "scores" and "labels", the highest score first.
    """
    sure = scores > settings["score_thresh"]
    boxes, scores, labels = clip_boxes_to_image(boxes[sure], size), scores[sure], labels[sure]
    keep = batched_nms(boxes, scores, labels, settings["nms_thresh"])[: settings["detections_per_img"]]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


class ExportedDetector(nn.Module):
    """Run a graph as a detector: images (C, h, w) of any size with values from 0 to 1 -> their objects.

    Args:
        model: the graph.
        metadata: holds mean, std and classes.
        size: (H, W) of the graph; None for a dynamic one.
        settings: `Artifact.extra`.

    Attributes:
        score_thresh: objects need a higher score; at first the value in the settings.
    """

    def __init__(self, model: Model, metadata: ModelMetadata, size: Size | None, settings: dict[str, Any]):
        super().__init__()
        self.run, self.size, self.settings = model, size, settings
        self.score_thresh = settings["score_thresh"]
        self.classes = len(metadata.classes or ())
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (metadata.mean, metadata.std))

    def forward(self, images: Sequence[Tensor]) -> list[Objects]:
        return [self.find(image) for image in images]

    def find(self, image: Tensor) -> Objects:
        """Find the objects of an image, in its own pixels."""
        prepared, size = self.prepare(image)
        return self.objects(self.run(prepared[None]), size, image)

    def objects(self, outputs: Sequence[Tensor], size: Size, image: Tensor) -> Objects:
        """Return the objects of an image in its own pixels, from outputs of the graph and the size in `prepare`."""
        settings = self.settings | {"score_thresh": self.score_thresh}
        boxes, scores, labels = (output[0] for output in outputs)
        if labels.max() > self.classes:
            raise ValueError(
                f"the graph finds class {int(labels.max())}, but {ARTIFACT} has {plural(self.classes, 'class')}: "
                f"export the model again"
            )
        objects = suppress(boxes, scores, labels, size, settings)
        height, width = image.shape[-2:]
        return objects | {"boxes": objects["boxes"] * torch.tensor([width / size[1], height / size[0]] * 2)}

    def prepare(self, image: Tensor) -> tuple[Tensor, Size]:
        """Normalise, resize and pad an image as in evaluation, but not beyond H x W; return its size too."""
        height, width = image.shape[-2:]
        shorter = self.settings["min_size"] / min(height, width)
        scale = min(shorter, self.settings["max_size"] / max(height, width))
        if self.size:
            scale = min(scale, self.size[0] / height, self.size[1] / width)
        new = max(1, int(height * scale)), max(1, int(width * scale))
        normal = (image - self.mean) / self.std
        resized = F.interpolate(normal[None], new, mode="bilinear", antialias=True)[0]
        least = self.settings["least"]
        full = self.size or round_up([max(side, least) for side in new], (self.settings["multiple"],) * 2)
        return F.pad(resized, (0, full[1] - new[1], 0, full[0] - new[0])), new
