"""Load segmenters from files: the metadata of weights hold everything that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from metamix.data import normalize
from metamix.layers.padding import PadAndCrop, tiles
from metamix.layers.tiles import check_tiles
from metamix.models.checkpoint import check_described_size
from metamix.tasks.metadata import SplitNames, arguments_without, check_trained_for, to_lists, without_head
from metamix.utils.rules import check_entries, one_of, rules_of, where
from metamix.weights.files import load_weights
from metamix.weights.find import find_weights
from metamix.weights.fit import load_into
from metamix.weights.metadata import ModelMetadata, ModelName, to_tuples

from .data import read_image
from .inference import Predictor, predict
from .labels import MAX_CLASSES, MIN_CLASSES
from .options import NOT_HEAD_ARGS, NOT_MODEL_ARGS, CropSide, MaskValue, Mean, Side, Std
from .segmenters import HEADS, Segmenter, build_segmenter
from .transforms import Size, resize_image

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
    head_args: Annotated[dict[str, Any], arguments_without(NOT_HEAD_ARGS)]
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
        check_trained_for(raw, source, "segmentation", "a segmenter")
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
        arguments |= {"img_size": self.crop, "backbone_args": self.model_args}
        return build_segmenter(self.head, self.model, len(self.classes), **arguments)


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained segmenter.

    Attributes:
        model: in evaluation mode; takes (n, 3, H, W) float32 and returns logits (n, classes, H, W).
        spec: how images go into it, and its classes.
        metadata: entries of its weight file.
        graph_size: (height, width) of the graph of an exported model; None for any size.
    """

    model: nn.Module
    spec: SegmenterSpec
    metadata: dict[str, Any]
    graph_size: Size | None = None

    @property
    def fixed_size(self) -> Size | None:
        """Return (height, width) of the largest images that the backbone takes; None for any size."""
        return getattr(self.model, "fixed_size", None)

    def predictor(self, tile: int, overlap: int, flip: bool = False) -> Predictor:
        """Return how the model is applied to images; arguments as in `predict`.

        Raises:
            ValueError: the overlap is not smaller than the tile, or the backbone takes only smaller tiles.
        """
        if isinstance(self.model, PadAndCrop):
            tile, overlap = tiles(self.graph_size)
        check_tiles(tile, overlap)
        check_tile(self.fixed_size, self.spec.model, tile)
        return Predictor(tile, overlap, flip, whole=self.graph_size)

    def predict(
        self, images: Sequence[str | Path | Image.Image], *, tile: int = 1024, overlap: int = 128, flip: bool = False
    ) -> list[Tensor]:
        """Label the pixels of images of any size.

        Args:
            images: files or PIL images.
            tile: side of the overlapping tiles that larger images are cut into, in pixels; 0 for whole images. The
                tiles of an exported model follow from its graph.
            overlap: least overlap of tiles in pixels.
            flip: average over each image and its mirror image.

        Returns:
            Labels (H, W) uint8 of each image, on the CPU: 0, 1, ... in the order of `spec.classes`.

        Raises:
            CorruptImage: an image cannot be read.
            ValueError: the tiles do not fit.
        """
        predictor = self.predictor(tile, overlap, flip)
        return [self.label(read_image(image), predictor) for image in images]

    def label(self, image: Tensor, predictor: Predictor) -> Tensor:
        """Label the pixels of an image (3, H, W) uint8: (H, W) uint8, on the CPU."""
        spec, size = self.spec, (image.shape[-2], image.shape[-1])
        resized = resize_image(image, spec.min_size, spec.max_size)[None]
        normalized = normalize(resized.to(next(self.model.parameters()).device), spec.mean, spec.std)
        return predict(self.model, normalized, size, len(spec.classes), predictor)


def load_segmenter(checkpoint: str | Path) -> TrainedSegmenter:
    """Load a segmenter that metamix trained.

    Args:
        checkpoint: a run folder, or a weight file or checkpoint in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    tensors, metadata = load_weights(find_weights(checkpoint))
    spec = SegmenterSpec.from_dict(metadata, checkpoint)
    check_described_size(ModelMetadata.from_dict(metadata, checkpoint), tensors, checkpoint)
    model = spec.build()
    load_into(model, tensors, str(checkpoint))
    return TrainedSegmenter(model.eval(), spec, metadata)


def check_tile(fixed_size: Size | None, name: str, tile: int) -> None:
    """Raise ValueError if a backbone gets larger images than `fixed_size`; tile 0 means whole images of any size."""
    if fixed_size and not 0 < tile <= min(fixed_size):
        (height, width), side = fixed_size, min(fixed_size)
        raise ValueError(
            f"{name} takes images of {height} x {width} pixels at most: cut larger ones into tiles, --tile {side} "
            f"--overlap {side // 8}"
        )


def load_initial_weights(model: Segmenter, path: str | Path, classes: list[str]) -> list[str]:
    """Load the weights of a segmenter of the same build, to fine-tune it.

    Batch norms may be frozen only in the file or only in the model; their counters are not loaded then. Layers that
    depend on the classes keep their new weights if the file has other classes.

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
