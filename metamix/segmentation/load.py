"""Load segmenters from files: the metadata of weights hold everything that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from metamix.models.same_function import check_described_size
from metamix.models.weights import find_weights
from metamix.utils.rules import check_entries, one_of, rules_of, where
from metamix.weights.files import load_into, load_weights
from metamix.weights.metadata import (
    ModelMetadata,
    ModelName,
    SplitNames,
    arguments_without,
    check_task,
    to_lists,
    to_tuples,
    without_head,
)

from .labels import MAX_CLASSES, MIN_CLASSES
from .options import NOT_HEAD_ARGS, NOT_MODEL_ARGS, CropSide, MaskValue, Mean, Side, Std
from .segmenters import HEADS, Segmenter, build_segmenter

COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none


HeadArgs = Annotated[
    dict[str, Any],
    where(NOT_HEAD_ARGS.keys().isdisjoint, "a mapping of options to plain values, without those of metamix train"),
]
Classes = Annotated[tuple[str, ...], Field(min_length=MIN_CLASSES, max_length=MAX_CLASSES)]
Colours = Annotated[tuple[tuple[MaskValue, MaskValue, MaskValue], ...], Field(max_length=MAX_CLASSES + 1)]


@dataclass(frozen=True)
class SegmenterSpec:
    """The arguments that build a segmenter again, and how images and masks are read for it.

    Attributes:
        head, head_args: name and further arguments of the head, as in `build_segmenter`.
        model, model_args: name and further arguments of the backbone.
        classes: names of the classes.
        crop: height and width of the training crops, which spatial weights are made for.
        frozen_norms: whether the backbone's batch norms are frozen.
        mean, std: of the channels, for values from 0 to 1.
        min_size, max_size, ignore_index, reduce_zero_label: options of training.
        palette: colours of the classes, if the data set has some.
        train_on: splits that it was trained on.
    """

    head: Annotated[str, one_of(HEADS)]
    head_args: HeadArgs
    model: ModelName
    model_args: Annotated[dict[str, Any], arguments_without(NOT_MODEL_ARGS)]
    classes: Classes
    crop: tuple[CropSide, CropSide]
    frozen_norms: bool
    mean: Mean
    std: Std
    min_size: Side = 0
    max_size: Side = 0
    ignore_index: MaskValue | None = 255
    reduce_zero_label: bool = False
    palette: Colours | None = None
    train_on: SplitNames = ("train",)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: object) -> SegmenterSpec:
        """Check the metadata of a file, which is untrusted.

        Raises:
            ValueError: the file holds no segmenter, or an entry is missing, of the wrong type or out of range.
        """
        check_task(raw, source, "segmentation", "segmenter")
        ModelMetadata.from_dict({"model_args": raw.get("head_args")}, f"{source}, head_args")  # the same rules
        values = {field.name: raw[field.name] for field in fields(cls) if field.name in raw}
        check_entries(values, rules_of(cls), source)
        return cls(**{name: to_tuples(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of the metadata, as plain values."""
        return {"task": "segmentation"} | {key: to_lists(value) for key, value in asdict(self).items()}

    def build(self, **weights: Any) -> Segmenter:
        """Build the segmenter.

        Args:
            weights: `pretrained` or `checkpoint` of `build_segmenter`, to load weights of the backbone.
        """
        arguments: dict[str, Any] = self.head_args | {"frozen_norms": self.frozen_norms} | weights
        return build_segmenter(
            self.head,
            backbone=self.model,
            num_classes=len(self.classes),
            img_size=self.crop,
            backbone_args=self.model_args,
            **arguments,
        )


@dataclass(frozen=True)
class TrainedSegmenter:
    """A segmenter in evaluation mode, how images go into it, and the metadata of its weights."""

    model: Segmenter
    spec: SegmenterSpec
    metadata: dict[str, Any]


def load_segmenter(path: str | Path) -> TrainedSegmenter:
    """Load a segmenter that metamix trained.

    Args:
        path: a run folder, or a weight file or checkpoint in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    tensors, metadata = load_weights(find_weights(path))
    spec = SegmenterSpec.from_dict(metadata, path)
    check_described_size(ModelMetadata.from_dict(metadata, path), tensors, path)
    model = spec.build()
    load_into(model, tensors, str(path))
    return TrainedSegmenter(model.eval(), spec, metadata)


def check_tile(model: Segmenter, name: str, tile: int) -> None:
    """Check that a backbone that takes one size gets images in tiles.

    Args:
        model: the segmenter.
        name: of the backbone, for the message.
        tile: side of the tiles in pixels; 0 for whole images.

    Raises:
        ValueError: images are not cut into tiles, or these are larger than the backbone takes.
    """
    if model.fixed_size and not 0 < tile <= min(model.fixed_size):
        (height, width), side = model.fixed_size, min(model.fixed_size)
        raise ValueError(
            f"{name} takes images of {height} x {width} pixels at most: cut larger ones into tiles, --tile {side} "
            f"--overlap {side // 8}"
        )


def load_initial_weights(model: Segmenter, path: str | Path, classes: list[str]) -> list[str]:
    """Load the weights of a segmenter of the same build, to fine-tune it.

    Batch norms may be frozen only in the file or only in the model; their counters are not loaded then.

    Layers that depend on the classes keep their new weights where the file has other classes.

    Returns:
        The names of the weights that were not loaded.
    """
    tensors, metadata = load_weights(find_weights(path))
    tensors = without_head(tensors, metadata, classes, model.classifier)
    counters = {name: value for name, value in model.state_dict().items() if name.endswith(COUNTER)}
    tensors = counters | {
        name: value for name, value in tensors.items() if name in counters or not name.endswith(COUNTER)
    }
    return load_into(model, tensors, str(path), head=model.classifier)
