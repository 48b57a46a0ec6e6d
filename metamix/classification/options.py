"""Define the options of classification."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from metamix.data.options import CropShare, DataOptions, Interpolation, LocationOptions, Memory, SourceOptions
from metamix.tasks.options import BackboneOptions, WeightOptions, as_trained
from metamix.utils.options import changed, option
from metamix.utils.rules import Positive, PositiveShare, Share, ShareBelowOne
from metamix.weights.metadata import Side

_model = partial(option, group="model")
_data = partial(option, group="data")
_loss = partial(option, group="loss", on_resume="report")


def data_name(options: LocationOptions) -> str:
    """Return the name of the data set for titles and metadata; for a folder of images, the folder's name."""
    return Path(options.data_dir or "").resolve().name if options.data == "folder" else options.data


@dataclass
class ModelOptions(BackboneOptions, SourceOptions):
    """Options of the model and the data that training and evaluation share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_backbone({})


@dataclass
class ClassificationEvalOptions(WeightOptions, LocationOptions):
    """Options of `metamix eval` for classification."""

    data: str | None = _data(  # type: ignore[assignment]
        None,
        "data set to score, as in metamix train; default with --data-dir: the training data set if it is "
        "tiny_imagenet or a torchvision data set, else folder; default without --data-dir: digits, if the model was "
        "trained on it",
    )
    test_on: str = _data(
        "", "split to score; default: as in training or, for other data, the first of val, valid, validation and test"
    )
    test_share: PositiveShare | None = _data(
        None, "share of images to score if there is no test split; default: as in training, or 1 for other data"
    )
    holdout: ShareBelowOne | None = _data(
        None, "share of train to hold out; default: as in training, or 0 for other data"
    )
    memory: Memory | None = as_trained("decode all images at the start")
    img_size: Side | None = as_trained("side of the images in pixels")
    interpolation: Interpolation | None = as_trained("how images are resized")
    mean: tuple[float, ...] | None = as_trained("mean of each channel, for pixel values from 0 to 1")
    std: tuple[float, ...] | None = as_trained("standard deviation of each channel")
    crop_pct: CropShare | None = as_trained("streamed images: share of the shorter side that the centre crop keeps")

    def __post_init__(self) -> None:
        super().__post_init__()
        ModelOptions(**changed(self))  # checks that the options fit together


@dataclass
class ClassificationOptions(ModelOptions, DataOptions):
    """Options of `metamix train` for classification."""

    linear_probe: bool = _model(False, "train only the head, on frozen features")
    drop_rate: ShareBelowOne = _model(0.0, "dropout rate before the head")
    drop_path: ShareBelowOne = _model(0.0, "stochastic depth rate of the last block, rising from 0 at the first block")

    loss: Literal["ce", "bce", "asymmetric"] = _loss(
        "ce", "cross-entropy, or binary cross-entropy of each class; for images with several labels, bce or asymmetric"
    )
    class_weights: Literal["none", "balanced"] = _loss(
        "none", "weights of the classes in the loss; balanced: a class with few images weighs more"
    )
    smoothing: ShareBelowOne = _loss(0.0, "label smoothing")
    teacher: str | None = _loss(None, "distil from this model of metamix or timm", on_resume="refuse")
    teacher_checkpoint: str | None = _loss(None, "teacher's weights; default: published weights", on_resume="refuse")
    distill: Share = _loss(0.5, "share of the loss that comes from distillation, 0 to 1", needs="teacher")
    temperature: Positive = _loss(
        1.0, "temperature that softens the outputs of teacher and student before they are compared", needs="teacher"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_checkpoint and not self.teacher:
            raise ValueError(f"teacher_checkpoint is {self.teacher_checkpoint}, but no model is given: add --teacher")
        if self.sampling == self.class_weights == "balanced":
            raise ValueError(
                "sampling and class_weights are both balanced, which favours rare classes twice: add --class-weights "
                "none or, for a new run, --sampling shuffled"
            )
        if self.linear_probe and not (self.pretrained or self.checkpoint):
            raise ValueError("linear_probe needs trained weights to freeze: give --pretrained, or --checkpoint FILE")
        set_elsewhere = {"num_classes": "the data", "in_chans": "the data"}
        set_elsewhere |= {"img_size": "--img-size", "pretrained": "--pretrained"}
        set_elsewhere |= {"drop_rate": "--drop-rate"} if self.drop_rate else {}
        set_elsewhere |= {"drop_path_rate": "--drop-path"} if self.drop_path else {}
        self.check_backbone(set_elsewhere)
