"""Define the options of detection."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from metamix.data.options import Factors, ReadingOptions, Splits
from metamix.tasks.options import SET_BY_TASK, BackboneOptions
from metamix.utils.options import option
from metamix.utils.rules import Share, where
from metamix.weights.metadata import Side

from .anchors import MAX_ANCHOR_SCALE

_data = partial(option, group="data")
_model = partial(option, group="model")
_augment = partial(option, group="augmentation")

# Arguments of build_backbone and of models that users may not set in model_args, and what sets them instead.
NOT_MODEL_ARGS = SET_BY_TASK | {
    "name": "--model",
    "batch_norms": "the task, which freezes or replaces batch norms",
    "out_channels": "--out-channels",
    "out_indices": "--out-indices",
    "extra": "--extra",
}
# Arguments of build_detector that users may not set in detector_args: other options or the task set them.
NOT_DETECTOR_ARGS = {"name", "backbone", "backbone_args", "num_classes", "resize_in_training", "min_size", "max_size"}

MAX_SETTING = 65_536  # largest number in detector_args
Channels = Annotated[int, Field(ge=1, le=4096)]
AnchorScale = Annotated[float, Field(gt=0, le=MAX_ANCHOR_SCALE)]


def is_setting(value: object) -> bool:
    """Return whether a value is true, false, null, a number up to `MAX_SETTING`, or a list of up to 64 of these."""
    values = value if isinstance(value, (list, tuple)) else [value]
    accepted = (each is None or (isinstance(each, (bool, int, float)) and abs(each) <= MAX_SETTING) for each in values)
    return len(values) <= 64 and all(accepted)


DetectorArgs = Annotated[
    dict[str, Any],
    where(
        lambda args: not NOT_DETECTOR_ARGS & args.keys() and all(map(is_setting, args.values())),
        f"a mapping of options to true, false, null, numbers up to {MAX_SETTING:,} or lists of these, without "
        f"{', '.join(sorted(NOT_DETECTOR_ARGS))}, which other options or the task set",
    ),
]


@dataclass
class DetectionDataOptions(ReadingOptions):
    """Options of the data set, which training and evaluation share."""

    data: Literal["coco"] = _data("coco", "format of the data set")
    data_dir: str = _data("", "folder with annotations/instances_train.json and images/", on_resume="ignore")
    test_on: str = _data("", "split to score; default: test, or val if there is no test")


@dataclass
class DetectionEvalOptions(DetectionDataOptions):
    """Options of `metamix eval` for detection. All other options are read from the checkpoint."""

    checkpoint: str | None = _model(None, "weights of a detector: a run folder, a weight file or hf-hub:USER/NAME")


@dataclass
class DetectionOptions(BackboneOptions, DetectionDataOptions):
    """Options of `metamix train` for detection."""

    model: str = _model(
        "metaformer_pooling_s12",
        "backbone: a model of metamix or timm; several models, as in a,b,c, are trained one by one and compared",
    )
    train_on: Splits = _data(("train",), "splits to train on; val is held out unless it is trained on or scored")
    min_size: Side = _data(800, "shorter side of the resized images, in pixels")
    max_size: Side = _data(1333, "limit of the longer side of the resized images, in pixels")

    detector: Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn"] = _model(
        "retinanet",
        "detector on top of the backbone; mask_rcnn also learns masks, from the segmentations in the annotations",
    )
    detector_args: DetectorArgs = _model({}, "more arguments of torchvision's detector, as YAML: '{score_thresh: 0.1}'")
    anchor_scale: AnchorScale | Literal["auto"] = _model(
        "auto",
        "size of RetinaNet's smallest anchors in strides; auto: the value of the RetinaNet that training starts from; "
        "for a new RetinaNet, 4 or the nearest value that fits the boxes",
    )
    out_channels: Channels = _model(256, "channels of the pyramid and the head")
    out_indices: tuple[int, ...] = _model((), "backbone levels, 0 to 3 for strides 4 to 32; default: as in the paper")
    extra: Literal["auto", "none", "pool", "p6p7"] = _model("auto", "coarser levels to add; auto: as in the paper")

    flip: Share = _augment(0.5, "probability of a horizontal flip")
    flip_vertical: Share = _augment(0.0, "probability of a vertical flip")
    scales: Factors = _augment((1.0, 1.0), "range from which a factor on min_size and max_size is drawn for each image")
    photometric: Share = _augment(0.0, "probability of each change: brightness, contrast, saturation, hue, RGB order")
    iou_crop: Share = _augment(0.0, "probability of SSD's random crop, which keeps at least one object")

    def __post_init__(self) -> None:
        super().__post_init__()
        old = self.detector_args.get("anchor_scale")  # older recipes set anchor_scale there
        if old is not None:
            if self.anchor_scale not in ("auto", old):
                raise ValueError(f"anchor_scale is {self.anchor_scale}, but {old} in detector_args; set it only once")
            self.anchor_scale = old
            super().__post_init__()  # checks the value
        self.check_backbone(NOT_MODEL_ARGS)
        if self.anchor_scale != "auto" and self.detector != "retinanet":
            raise ValueError(f"anchor_scale is {self.anchor_scale}, but only retinanet takes it, not {self.detector}")
        if self.min_size > self.max_size:
            raise ValueError(f"min_size is {self.min_size}, above max_size, which is {self.max_size}; lower min_size")
