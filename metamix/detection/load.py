"""Load detectors from files: the metadata of weights hold everything that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from metamix.models.backbone import EXTRA
from metamix.models.checkpoint import check_described_size
from metamix.utils.rules import REMEDY, check_entries, one_of, refuse_entry, rules_of, where
from metamix.weights.files import load_weights
from metamix.weights.find import find_weights
from metamix.weights.fit import load_into
from metamix.weights.metadata import (
    MAX_CLASSES,
    ModelMetadata,
    ModelName,
    SplitNames,
    arguments_without,
    check_task,
    to_lists,
    to_tuples,
    without_head,
)

from .detectors import DETECTORS, Detector, accepted_options, build_detector
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
        check_task(raw, source, "detection", "detector")
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
    """A detector in evaluation mode, the arguments that build it, and the metadata of its weights."""

    model: Detector
    spec: DetectorSpec
    metadata: dict[str, Any]


def load_detector(path: str | Path) -> TrainedDetector:
    """Load a detector that metamix trained. Its `spec.classes` are the names of the labels 1, 2, ...

    Args:
        path: a run folder, or a weight file or checkpoint in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    tensors, metadata = load_weights(find_weights(path))
    spec = DetectorSpec.from_dict(metadata, path)
    known = ModelMetadata.from_dict(metadata, path)
    check_described_size(replace(known, img_size=None), tensors, path)  # img_size is that of the detector
    model = spec.build()
    load_into(model, tensors, str(path))
    set_statistics(model, known, path)
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
