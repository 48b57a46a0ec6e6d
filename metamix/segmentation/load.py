"""Load segmenters from weight files, whose metadata hold everything that is needed to build the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from metamix.data import normalize
from metamix.data.files import check_several, read_pixels
from metamix.layers.image_inference import PadAndCrop, Size, check_tiles, tiles
from metamix.tasks.network import NetworkSpec, SplitNames, arguments_without
from metamix.utils.rules import one_of
from metamix.utils.text import plural
from metamix.weights.metadata import ModelMetadata, ModelName, Side

from .data import resize_image
from .inference import Predictor, predict
from .labels import MAX_CLASSES, MIN_CLASSES
from .options import NOT_HEAD_ARGS, NOT_MODEL_ARGS, MaskValue, Mean, ResizedSide, Std
from .segmenters import HEADS, Segmenter, build_segmenter

Classes = Annotated[tuple[str, ...], Field(min_length=MIN_CLASSES, max_length=MAX_CLASSES)]
Colours = Annotated[tuple[tuple[MaskValue, MaskValue, MaskValue], ...], Field(max_length=MAX_CLASSES + 1)]


@dataclass(frozen=True)
class SegmenterSpec(NetworkSpec):
    """The arguments to build a segmenter and to prepare images. Fields without a comment are options of training."""

    task, network = "segmentation", "segmenter"

    head: Annotated[str, one_of(HEADS)]
    head_args: Annotated[dict[str, Any], arguments_without(NOT_HEAD_ARGS)]
    model: ModelName
    model_args: Annotated[dict[str, Any], arguments_without(NOT_MODEL_ARGS)]
    classes: Classes  # names of the classes
    # Height and width of the training crops, which determine the size of spatial weights.
    crop: tuple[Side, Side]
    frozen_norms: bool  # whether the backbone's batch norms are frozen
    # Mean and standard deviation of each channel, for pixel values from 0 to 1.
    mean: Mean
    std: Std
    min_size: ResizedSide = 0
    max_size: ResizedSide = 0
    ignore_index: MaskValue | None = 255
    reduce_zero_label: bool = False
    palette: Colours | None = None  # colours of the classes; None if the data set has none
    train_on: SplitNames = ("train",)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: object) -> "SegmenterSpec":
        """Read a spec from the metadata of a file; see `NetworkSpec.from_dict`. Check the options of the head too."""
        spec = super().from_dict(raw, source)
        # The options of a head follow the rules of model_args.
        ModelMetadata.from_dict({"model_args": spec.head_args}, f"{source}, head_args")
        return spec

    def build(self, **weights: Any) -> Segmenter:
        arguments: dict[str, Any] = self.head_args | {"frozen_norms": self.frozen_norms} | weights
        arguments |= {"img_size": self.crop, "backbone_args": self.model_args}
        return build_segmenter(self.head, self.model, len(self.classes), **arguments)


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained or exported segmenter, and how to prepare images for it."""

    # The model in evaluation mode. It takes (n, 3, H, W) float32 and returns logits (n, classes, H, W).
    model: nn.Module
    spec: SegmenterSpec
    metadata: ModelMetadata
    graph_size: Size | None = None  # (height, width) that an exported graph is fixed to; None for every other model

    def __repr__(self) -> str:
        return f"TrainedSegmenter({self.spec.head}, {self.spec.model}, {plural(len(self.classes), 'class')})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the labels 0, 1, ..."""
        return self.spec.classes

    @property
    def fixed_size(self) -> Size | None:
        """Return the largest (height, width) that the backbone takes; None if it takes any size or is exported."""
        return getattr(self.model, "fixed_size", None)

    def predictor(self, tile: int, overlap: int, flip: bool = False) -> Predictor:
        """Return a `Predictor` with the arguments of `predict`; raise ValueError if the tiles do not fit the model."""
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
            tile: side of the overlapping tiles that larger images are cut into, in pixels; 0 for whole images. An
                exported model ignores it: tiles fit the size of its graph, and a dynamic graph takes whole images.
            overlap: smallest overlap of tiles in pixels, which an exported model ignores too.
            flip: whether to average the predictions for each image and its mirror image.

        Returns:
            Labels (H, W) uint8 of each image, on the CPU: 0, 1, ... in the order of `spec.classes`.

        Raises:
            CorruptImage: an image cannot be read.
            TypeError: `images` is a single image, or an item is neither a path nor a PIL image.
            ValueError: the tiles do not fit the model, or it returns NaN or infinity.
        """
        check_several(images)
        predictor = self.predictor(tile, overlap, flip)
        return [self.label(read_pixels(image), predictor) for image in images]

    def label(self, image: Tensor, predictor: Predictor) -> Tensor:
        """Label the pixels of an image (3, H, W) uint8: (H, W) uint8, on the CPU."""
        spec, size = self.spec, (image.shape[-2], image.shape[-1])
        resized = resize_image(image, spec.min_size, spec.max_size)[None]
        normalized = normalize(resized.to(next(self.model.parameters()).device), spec.mean, spec.std)
        return predict(self.model, normalized, size, len(spec.classes), predictor)


def load_segmenter(checkpoint: str | Path) -> TrainedSegmenter:
    """Load a segmenter that metamix trained; raise the errors that `metamix.load` lists.

    Args:
        checkpoint: a run folder, a weight file or checkpoint that metamix wrote, or hf-hub:USER/NAME.
    """
    return TrainedSegmenter(*SegmenterSpec.load(checkpoint))


def check_tile(fixed_size: Size | None, name: str, tile: int) -> None:
    """Raise ValueError if tiles are larger than the backbone's `fixed_size`; tile 0 means whole images of any size."""
    if fixed_size and not 0 < tile <= min(fixed_size):
        (height, width), side = fixed_size, min(fixed_size)
        raise ValueError(f"{name} takes {height} x {width} pixels at most: give --tile {side} --overlap {side // 8}")
