"""Options of detection for train.py and eval.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metamix.utils.options import option

# Arguments of build_backbone and of models that have an option of their own, or that come from the data.
NOT_MODEL_ARGS = {"name", "pretrained", "checkpoint", "frozen_norms", "num_classes", "in_chans"} | {
    "out_channels",
    "out_indices",
    "extra",
}
# Arguments of build_detector that have an option of their own.
NOT_DETECTOR_ARGS = {"name", "backbone", "backbone_args", "num_classes", "resize_in_training", "min_size", "max_size"}


@dataclass
class DataOptions:
    """Data set, as eval.py takes it."""

    data: Literal["coco"] = option("coco", "format of the data set", group="data")
    data_dir: str = option(
        "",
        "folder of the data set, with annotations/instances_train.json and images/",
        group="data",
        on_resume="free",
    )
    test_on: str = option("", "split to score at the end; empty: test, or val if there is no test", group="data")
    workers: int = option(
        2, "worker processes that read images; 0: read them in the training process", group="data", on_resume="free"
    )
    corrupt_limit: float = option(
        0.01, "stop if more than this share of the images cannot be read", group="data", on_resume="free"
    )


@dataclass
class DetectionEvalOptions(DataOptions):
    """Options of eval.py: the checkpoint holds everything else."""

    checkpoint: str = option("", "weights of a detector: a run folder, or a file in it", group="model")


@dataclass
class DetectionOptions(DataOptions):
    """Options of detection for train.py."""

    train_on: tuple[str, ...] = option(
        ("train",), "splits to train on; val is held out unless it is one of them", group="data"
    )
    min_size: int = option(800, "shorter side of the images, in pixels", group="data")
    max_size: int = option(1333, "largest longer side of the images, in pixels", group="data")

    model: str = option(
        "metaformer_pooling_s12", "backbone: a model of metamix or timm; train.py takes several: a,b,c", group="model"
    )
    model_args: dict = option({}, "further arguments of the backbone, as YAML: '{drop_path_rate: 0.1}'", group="model")
    pretrained: bool = option(False, "start from the published weights of the backbone", group="model")
    checkpoint: str | None = option(
        None, "start from the weights in this file, of a classifier or a detector", group="model"
    )
    detector: Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn"] = option(
        "retinanet", "detector on top of the backbone", group="model"
    )
    detector_args: dict = option(
        {}, "further arguments of torchvision's detector, as YAML: '{score_thresh: 0.1}'", group="model"
    )
    out_channels: int = option(256, "channels of the pyramid and the head", group="model")
    out_indices: tuple[int, ...] = option(
        (), "pyramid levels, 0 to 3 for strides 4 to 32; empty: those of the published detector", group="model"
    )
    extra: Literal["auto", "none", "pool", "p6p7"] = option(
        "auto", "coarser levels on top; auto: those of the published detector", group="model"
    )

    flip: float = option(0.5, "probability of a horizontal flip", group="augmentation")
    flip_vertical: float = option(0.0, "probability of a vertical flip", group="augmentation")
    scales: tuple[float, ...] = option(
        (1.0, 1.0), "smallest and largest factor on the size, drawn for each image", group="augmentation"
    )
    photometric: float = option(
        0.0, "probability of a random change of brightness, contrast and colours", group="augmentation"
    )
    iou_crop: float = option(0.0, "probability of SSD's random crop, which keeps some object", group="augmentation")

    def __post_init__(self) -> None:
        if self.pretrained and self.checkpoint:
            raise ValueError(f"pretrained and checkpoint ({self.checkpoint}) both say where to begin; give one of them")
        for name in ("flip", "flip_vertical", "photometric", "iou_crop", "corrupt_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be between 0 and 1")
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales is {self.scales}, but two factors are needed, the smaller first: 0.8,1.25")
        if taken := NOT_DETECTOR_ARGS & self.detector_args.keys():
            raise ValueError(
                f"detector_args has {', '.join(sorted(taken))}: --min-size and --max-size are the size of the images, "
                f"--model and --model-args the backbone, and --detector is the detector"
            )
        if taken := NOT_MODEL_ARGS & self.model_args.keys():
            raise ValueError(
                f"model_args has {', '.join(sorted(taken))}: --pretrained and --checkpoint are where to begin, "
                f"--out-channels, --out-indices and --extra are the pyramid; images are read in colour, and the data "
                f"set has the classes"
            )
        if not self.train_on:
            raise ValueError("train_on is empty; name the splits to train on, such as train or train,val")
        if not 0 < self.min_size <= self.max_size:
            raise ValueError(
                f"min_size is {self.min_size} and max_size {self.max_size}; both must be above 0, and "
                f"min_size the smaller"
            )
