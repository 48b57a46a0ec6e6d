"""Load detectors from files: the metadata of weights hold everything that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from metamix.data.files import decode, decode_file
from metamix.models.backbone import EXTRA
from metamix.models.checkpoint import check_described_size
from metamix.tasks.metadata import SplitNames, arguments_without, check_trained_for, to_lists, without_head
from metamix.utils.rules import REMEDY, check_entries, one_of, refuse_entry, rules_of, where
from metamix.weights.files import load_weights
from metamix.weights.find import find_weights
from metamix.weights.fit import load_into
from metamix.weights.metadata import MAX_CLASSES, ModelMetadata, ModelName, to_tuples

from .detectors import DETECTORS, Detector, Objects, accepted_options, build_detector
from .options import NOT_DETECTOR_ARGS, NOT_MODEL_ARGS, AnchorScale, Channels, Side, is_setting

DetectorArgs = Annotated[
    dict[str, Any],
    where(
        lambda args: not NOT_DETECTOR_ARGS & args.keys() and all(map(is_setting, args.values())),
        "a mapping of options to numbers, without the options of metamix train",
    ),
]
Classes = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
Levels = Annotated[
    tuple[int, ...],
    where(lambda levels: levels and [*levels] == sorted({*levels} & {0, 1, 2, 3}), "an ascending list of 0 to 3"),
]


@dataclass(frozen=True)
class DetectorSpec:
    """The arguments that build a detector again, as the metadata of its weights hold them.

    Attributes:
        detector: name of the detector, as in `build_detector`.
        detector_args: further arguments of torchvision's detector.
        model: name of the backbone.
        model_args: further arguments of the backbone.
        classes: names of the classes, without the background.
        out_indices, extra, out_channels: arguments of `build_backbone`.
        frozen_norms: whether the backbone's batch norms are frozen; else they are replaced.
        min_size, max_size: in pixels, arguments of `build_detector`.
        anchor_scale: smallest anchor of RetinaNet in strides; None for the other detectors.
        train_on: splits that it was trained on.
    """

    detector: Annotated[str, one_of(DETECTORS)]
    detector_args: DetectorArgs
    model: ModelName
    model_args: Annotated[dict[str, Any], arguments_without(NOT_MODEL_ARGS)]
    classes: Classes
    out_indices: Levels
    extra: Annotated[str, one_of(EXTRA)]
    out_channels: Channels
    frozen_norms: bool
    min_size: Side
    max_size: Side
    anchor_scale: AnchorScale | None = None
    train_on: SplitNames = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str | Path) -> DetectorSpec:
        """Check the metadata of a file, which is untrusted.

        Raises:
            ValueError: the file holds no detector, or an entry is missing, of the wrong type or out of range.
        """
        check_trained_for(raw, source, "detection", "a detector")
        values: dict[str, Any] = {"train_on": (), "anchor_scale": None} | {
            field.name: raw[field.name] for field in fields(cls) if field.name in raw
        }
        check_entries(values, rules_of(cls), source)
        values = {name: to_tuples(value) for name, value in values.items()}
        unknown = values["detector_args"].keys() - accepted_options(values["detector"])
        if unknown:
            raise ValueError(
                f"{source}: detector_args in the metadata has {', '.join(sorted(unknown))}, no option of "
                f"{values['detector']}. {REMEDY}"
            )
        if values["detector"] != "retinanet":
            values["anchor_scale"] = None
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of the metadata, as plain values."""
        return {"task": "detection"} | {key: to_lists(value) for key, value in asdict(self).items()}

    def build(self, **weights: Any) -> Detector:
        """Build the detector, for training images that have their final size.

        Args:
            weights: `pretrained` or `checkpoint` of `build_backbone`, to load weights of the backbone.
        """
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
    """A trained detector.

    Attributes:
        model: in evaluation mode, called like a detector of torchvision.
        spec: the arguments that build it.
        metadata: entries of its weight file.
    """

    model: nn.Module
    spec: DetectorSpec
    metadata: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the labels 1, 2, ..."""
        return self.spec.classes

    def predict(self, images: Sequence[str | Path | Image.Image], threshold: float = 0.5) -> list[Objects]:
        """Find the objects in each image, the highest score first.

        Args:
            images: files or PIL images.
            threshold: least score of an object. It may be lower than the `score_thresh` of the detector.

        Returns:
            For each image "boxes" (n, 4), "labels" (n,), "scores" (n,) and, with Mask R-CNN, "masks" (n, 1, H, W), on
            the CPU. Boxes are x1, y1, x2, y2 in pixels of the upright image.

        Raises:
            CorruptImage: an image cannot be read.
        """
        return [self.find(read_pixels(image), threshold) for image in images]

    @torch.no_grad()
    def find(self, pixels: Tensor, threshold: float) -> Objects:
        """Find the objects of one image, (3, H, W) uint8, as `predict` does."""
        head: Any = getattr(self.model, "roi_heads", self.model)  # which the R-CNNs have
        trained_threshold = head.score_thresh
        head.score_thresh = min(trained_threshold, threshold)
        try:
            (objects,) = self.model([pixels.to(next(self.model.parameters()).device) / 255])
        finally:
            head.score_thresh = trained_threshold
        sure = (objects["scores"] >= threshold) & (objects["labels"] > 0)
        return {key: value[sure].cpu() for key, value in objects.items()}


def read_pixels(image: str | Path | Image.Image) -> Tensor:
    """Read an image file or convert a PIL image, upright and in colour: (3, H, W) uint8."""
    upright = decode(lambda: image, "image") if isinstance(image, Image.Image) else decode_file(image)
    return pil_to_tensor(upright)


def load_detector(checkpoint: str | Path) -> TrainedDetector:
    """Load a detector that metamix trained.

        detector = metamix.load_detector("runs/bccd-retinanet-metaformer_raft_nano-seed0")
        (cells,) = detector.predict(["cells.jpg"])

    Args:
        checkpoint: a run folder, or a weight file or checkpoint in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    tensors, metadata = load_weights(find_weights(checkpoint))
    spec = DetectorSpec.from_dict(metadata, checkpoint)
    described = ModelMetadata.from_dict(metadata, checkpoint)
    check_described_size(replace(described, img_size=None), tensors, checkpoint)  # img_size is of the detector
    model = spec.build()
    load_into(model, tensors, str(checkpoint))
    set_statistics(model, described, checkpoint)
    return TrainedDetector(model.eval(), spec, metadata)


def set_statistics(model: Detector, metadata: ModelMetadata, source: str | Path) -> None:
    """Normalise images with the mean and std that the weights were trained with."""
    channels, mean, std = len(model.transform.image_mean), metadata.mean or (), metadata.std or ()
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            refuse_entry(name, list(values), f"a list of {channels} numbers, one per channel", source)
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    model.transform.image_mean, model.transform.image_std = list(mean), list(std)


def load_initial_weights(model: Detector, path: str | Path, classes: list[str]) -> list[str]:
    """Load the weights of a detector of the same build, to fine-tune it.

    Layers that depend on the classes keep their new weights where the file has other classes.

    Returns:
        The names of the weights that were not loaded.
    """
    tensors, metadata = load_weights(find_weights(path))
    tensors = without_head(tensors, metadata, classes, model.classifier)
    return load_into(model, tensors, str(path), head=model.classifier)
