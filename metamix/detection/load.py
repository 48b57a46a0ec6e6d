"""Load detectors from weight files, whose metadata hold everything that is needed to build the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from metamix.data.files import check_several, read_pixels
from metamix.models.backbone import EXTRA
from metamix.tasks.network import NetworkSpec, SplitNames, arguments_without
from metamix.utils.checks import check_rates
from metamix.utils.rules import one_of, refuse_entry, where
from metamix.utils.text import plural
from metamix.weights.metadata import MAX_CLASSES, ModelMetadata, ModelName, Side

from .detectors import DETECTORS, Detector, build_detector, detect
from .objects import Objects, decode, select
from .options import NOT_MODEL_ARGS, AnchorScale, Channels, DetectorArgs

Classes = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
Levels = Annotated[
    tuple[int, ...],
    where(lambda levels: levels and [*levels] == sorted({*levels} & {0, 1, 2, 3}), "ascending numbers from 0 to 3"),
]

# `find` changes settings of a model during a call, so threads that share the model take turns.
TURNS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class DetectorSpec(NetworkSpec):
    """The arguments that rebuild a detector. Fields without a comment are options of training."""

    task, network = "detection", "detector"
    added_later: ClassVar[Mapping[str, Any]] = {"train_on": (), "anchor_scale": None}

    detector: Annotated[str, one_of(DETECTORS)]
    detector_args: DetectorArgs
    model: ModelName
    model_args: Annotated[dict[str, Any], arguments_without(NOT_MODEL_ARGS)]
    classes: Classes  # names of the classes, without the background
    out_indices: Levels
    extra: Annotated[str, one_of(EXTRA)]
    out_channels: Channels
    frozen_norms: bool  # whether the backbone's batch norms are frozen; otherwise they are replaced
    min_size: Side
    max_size: Side
    # Size of RetinaNet's smallest anchors in strides; None for the other detectors and in older files.
    anchor_scale: AnchorScale | None = None
    train_on: SplitNames = ()

    def build(self, **weights: Any) -> Detector:
        """Build the detector; it does not resize training images, which must have their final size."""
        return build_detector(
            self.detector,
            backbone=self.model,
            num_classes=len(self.classes),
            backbone_args={
                "out_indices": self.out_indices,
                "extra": self.extra,
                "out_channels": self.out_channels,
                "batch_norms": "freeze" if self.frozen_norms else "replace",
            }
            | self.model_args
            | weights,
            min_size=self.min_size,
            max_size=self.max_size,
            resize_in_training=False,
            **self.detector_args | ({} if self.anchor_scale is None else {"anchor_scale": self.anchor_scale}),
        )


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector. `model` is in evaluation mode, and is called like torchvision's detectors."""

    model: nn.Module
    spec: DetectorSpec
    metadata: ModelMetadata

    def __repr__(self) -> str:
        return f"TrainedDetector({self.spec.detector}, {self.spec.model}, {plural(len(self.classes), 'class')})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the labels 1, 2, ..."""
        return self.spec.classes

    def predict(self, images: Sequence[str | Path | Image.Image], threshold: float = 0.5) -> list[Objects]:
        """Find the objects in each image, the highest score first.

        Args:
            images: files or PIL images.
            threshold: lowest score of an object. It may be lower than the `score_thresh` of the detector.

        Returns:
            A dict for each image, with "boxes" (n, 4), "labels" (n,), "scores" (n,) and, for Mask R-CNN, "masks"
            (n, 1, H, W) bool, on the CPU. Boxes are x1, y1, x2, y2 in pixels of the upright image.

        Raises:
            CorruptImage: an image cannot be read.
            TypeError: `images` is a single image, or an item is neither a path nor a PIL image.
            ValueError: `threshold` is not from 0 to 1, or the model returns NaN or infinity.
        """
        check_several(images)
        check_rates(threshold=threshold)
        results = []
        for image in images:
            pixels = read_pixels(image)
            objects = self.find(pixels, threshold)
            if (runs := objects.pop("runs", None)) is not None:
                objects["masks"] = torch.zeros(len(runs), 1, *pixels.shape[-2:], dtype=torch.bool)
                for mask, each in zip(objects["masks"], runs):
                    mask[0] = torch.from_numpy(decode(each))
            results.append(objects)
        return results

    @torch.no_grad()
    def find(self, pixels: Tensor, threshold: float) -> Objects:
        """Find the objects of one image, (3, H, W) uint8, as `predict` does, but with "runs" in place of "masks"."""
        head: Any = getattr(self.model, "roi_heads", self.model)  # R-CNNs hold the threshold in `roi_heads`
        with TURNS.setdefault(self.model, RLock()):
            trained_threshold = head.score_thresh
            head.score_thresh = min(trained_threshold, threshold)
            try:
                objects = detect(self.model, pixels.to(next(self.model.parameters()).device) / 255)
            finally:
                head.score_thresh = trained_threshold
        objects = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in objects.items()}
        return select(objects, (objects["scores"] >= threshold) & (objects["labels"] > 0))


def load_detector(checkpoint: str | Path) -> TrainedDetector:
    """Load a detector that metamix trained; raise the same errors as `metamix.load`.

        detector = metamix.load_detector("runs/bccd-retinanet-metaformer_raft_nano-seed0")
        (cells,) = detector.predict(["cells.jpg"])

    Args:
        checkpoint: a run folder, a weight file or checkpoint that metamix wrote, or hf-hub:USER/NAME.
    """
    model, spec, metadata = DetectorSpec.load(checkpoint)
    set_statistics(model, metadata, checkpoint)
    return TrainedDetector(model, spec, metadata)


def set_statistics(model: Detector, metadata: ModelMetadata, source: str | Path) -> None:
    """Make a detector normalise images with the mean and std that its weights were trained with."""
    channels = len(model.transform.image_mean)
    for name in ("mean", "std"):
        values = list(getattr(metadata, name) or ())
        if len(values) not in (1, channels):
            refuse_entry(name, values, f"a list of {channels} numbers, one per channel", source)
        setattr(model.transform, f"image_{name}", values * channels if len(values) == 1 else values)
