"""Define the options of segmentation."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from metamix.data.options import Factor, Factors, Memory, ReadingOptions, Splits, Template, check_both
from metamix.layers.image_inference import check_tiles
from metamix.tasks.options import SET_BY_TASK, BackboneOptions, as_trained
from metamix.utils.options import changed_flags, option
from metamix.utils.rules import NotNegative, PositiveShare, Share
from metamix.weights.metadata import MAX_IMG_SIZE, Sides

from .loss import WEIGHTED, parse_loss

_data = partial(option, group="data")
_model = partial(option, group="model")
_augment = partial(option, group="augmentation")
_loss = partial(option, group="loss", on_resume="report")
_score = partial(option, group="scoring", on_resume="report")

MaskValue = Annotated[int, Field(ge=0, le=255)]
ResizedSide = Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)]
Mean = Annotated[tuple[Share, ...], Field(min_length=3, max_length=3)]
Std = Annotated[tuple[Annotated[float, Field(ge=1e-6, le=1)], ...], Field(min_length=3, max_length=3)]

MASK_OPTIONS = ("mask_name", "ignore_index", "reduce_zero_label")  # only for the layout "folder"
# Arguments of the backbone that users may not set in model_args, and the options that set them.
NOT_MODEL_ARGS = {"img_size": "--crop"} | SET_BY_TASK
# Arguments of build_segmenter that users may not set in head_args, and the options that set them.
NOT_HEAD_ARGS = {"head": "--head", "backbone": "--model", "backbone_args": "--model-args"} | NOT_MODEL_ARGS


@dataclass
class SegmentationDataOptions(ReadingOptions):
    """Options that `metamix train` and `metamix eval` share: where the data are, and how predictions are scored."""

    data: Literal["folder", "ade20k", "cityscapes", "voc", "oxford_pets"] = _data(
        "folder", "layout of data_dir; folder: SPLIT/images, SPLIT/masks and classes.txt"
    )
    data_dir: str = _data("", "folder of the data set", on_resume="ignore")
    test_on: str = _data("", "split to score; default: test, or val if there is no test")
    mask_name: Template = _data("{name}", "folder: name of the mask of the image {name}, such as '{name}_mask'")
    download: bool = _data(False, "voc and oxford_pets: download missing files", on_resume="ignore")

    tile: int = _score(0, "score in tiles of this side, in pixels of the resized image; 0 scores whole images")
    overlap: int = _score(0, "smallest overlap of neighbouring tiles in pixels", needs="tile")
    test_flip: bool = _score(False, "also score predictions averaged over the image and its mirror image")
    test_scales: Annotated[tuple[Factor, ...], Field(min_length=1)] = _score(
        (1.0,), "also score predictions averaged over these scales, such as 0.75,1,1.25"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tiles(self.tile, self.overlap)


@dataclass
class SegmentationOptions(BackboneOptions, SegmentationDataOptions):
    """Options of `metamix train` for segmentation."""

    ignore_index: MaskValue | None = _data(255, "folder: value of ignored pixels in masks; none if all pixels count")
    reduce_zero_label: bool = _data(False, "folder: the masks number the classes from 1, and their value 0 is ignored")
    min_size: ResizedSide = _data(0, "shorter side that images are resized to, in pixels; 0 keeps their size")
    max_size: ResizedSide = _data(0, "limit of the longer side, in pixels; 0: 8 times min_size for enlarged images")

    train_on: Splits = _data(("train",), "splits to train on; val is held out unless it is trained on or scored")
    memory: Memory = _data(
        "auto", "keep decoded training images and masks in memory; auto: if they take at most 1 GiB", on_resume="ignore"
    )
    mean: Mean | None = _data(
        None, "mean of each channel, for pixel values from 0 to 1; default: from the weights or the model"
    )
    std: Std | None = _data(None, "standard deviation of each channel; default: from the weights or the model")

    head: Literal["semantic_fpn", "upernet", "wavemix"] = _model("semantic_fpn", "head on top of the backbone")
    head_args: dict[str, Any] = _model({}, "more arguments of the segmenter, such as '{neck_channels: 64}'")

    scales: Factors = _augment((0.5, 2.0), "smallest and largest factor of the random resizing of each image")
    crop: Sides = _augment((512,), "height and width of the crops to train on in pixels; one number gives a square")
    crop_share: PositiveShare = _augment(
        0.75, "largest share of one class in a crop: up to ten crops are tried; 1 accepts any crop"
    )
    pad: bool = _augment(True, "pad images that are smaller than the crop; the added pixels are ignored")
    flip: Share = _augment(0.5, "probability of a horizontal flip")
    photometric: Share = _augment(0.5, "probability of a random change of brightness, contrast and colours")

    loss: str = _loss("ce", "ce, ohem, focal, dice, lovasz, or a sum of them such as ce+0.5*dice")
    class_weights: tuple[NotNegative, ...] | Literal["none", "median", "log"] = _loss(
        "none",
        "weights of the classes in ce and ohem: a number for each class; median: median frequency / frequency; "
        "log: 1 / log(1.02 + frequency); both are scaled to a mean of 1 over the pixels",
    )
    aux_weight: NotNegative = _loss(0.4, "weight of the loss of the auxiliary head")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_backbone(NOT_MODEL_ARGS)
        if self.max_size and self.max_size < self.min_size:
            raise ValueError(f"max_size is {self.max_size}, less than min_size, which is {self.min_size}")
        if self.data != "folder" and (flags := changed_flags(self, *MASK_OPTIONS)):
            raise ValueError(f"{self.data} has known mask names and values: leave {flags[0]} out")
        for name in self.head_args:
            if name in NOT_HEAD_ARGS:
                raise ValueError(f"head_args has {name}, which comes from {NOT_HEAD_ARGS[name]}; leave it out")
        check_both(self.mean, self.std)
        if not parse_loss(self.loss).keys() & set(WEIGHTED) and self.class_weights != "none":
            raise ValueError(f"class_weights needs {' or '.join(WEIGHTED)} in the loss, such as ce+{self.loss}")
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError(f"class_weights is {self.class_weights}, but at least one weight must be above 0")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Return height and width of the crops in pixels."""
        return self.crop[0], self.crop[-1]


@dataclass
class SegmentationEvalOptions(SegmentationDataOptions):
    """Options of `metamix eval` for segmentation."""

    checkpoint: str | None = _model(None, "weights of a segmenter: a run folder, a weight file or hf-hub:USER/NAME")
    ignore_index: MaskValue | Literal["trained"] | None = _data(
        "trained", "value of ignored pixels in the mask files; none if all pixels count; trained: as in training"
    )
    reduce_zero_label: bool | None = as_trained("the masks number the classes from 1, and their value 0 is ignored")
    min_size: ResizedSide | None = as_trained("shorter side that images are resized to, in pixels")
    max_size: ResizedSide | None = as_trained("limit of the longer side, in pixels")


def verify_command(options: SegmentationOptions) -> str:
    """Return the command that lists what is wrong with a data set."""
    data = [options.data_dir] if options.data == "folder" else [options.data, "--data-dir", options.data_dir]
    flags = changed_flags(options, *MASK_OPTIONS, "max_pixels")
    return shlex.join(["metamix", "verify", "--task", "segmentation", *data, *flags])
