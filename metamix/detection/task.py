"""Assemble the detection task: torchvision's detectors on any backbone, data sets in COCO's format, COCO's scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metamix.data.options import train_command
from metamix.models.backbone import EXTRA
from metamix.models.metadata import ModelMetadata, check_trained_with
from metamix.models.registry import check_model, published_name
from metamix.models.weights import find_weights
from metamix.training.task import Batch
from metamix.utils.options import changed_flags
from metamix.utils.tensor_files import load_metadata

from .anchors import choose_anchor_scale, describe_sizes
from .data import DetectionData
from .detectors import LEVELS, Detector, anchor_range, count_dense_macs
from .load import DetectorSpec, load_detector, load_initial_weights, set_statistics
from .metrics import DetectionMetric
from .options import DetectionEvalOptions, DetectionOptions
from .pictures import DetectionPictures


class Detection:
    """Assemble data, model, loss, metric and pictures of detection; see `metamix.training.task.Task`.

    Args:
        options: of training.
        seed: of the run; not used here, since the engine passes it to the loaders.
        trained: the spec of the weights to evaluate; if it is given, no training split is opened.
    """

    Options, EvalOptions = DetectionOptions, DetectionEvalOptions
    one_shape = False

    def __init__(self, options: DetectionOptions, seed: int = 0, trained: DetectorSpec | None = None):
        self.options = options
        self.data = DetectionData(options, train=trained is None)
        if options.anchor_scale == "auto" and options.detector == "retinanet":  # kept in the recipe as a number
            options.anchor_scale = choose_anchor_scale(self.data.box_sizes(), pyramid_strides(options))
        self.title = f"{self.data.name}-{options.detector}-{options.model}"
        self.model = DetectionModel(options, self.data, trained)
        self.loss = detection_loss
        self.metric = DetectionMetric(options, self.data)
        self.pictures = DetectionPictures(self.metric, self.data)

    @property
    def notes(self) -> list[str]:
        """Return what the user should know about how data and model were made."""
        return [*self.data.notes, *self.model.notes]

    @staticmethod
    def check_model(name: str, pretrained: bool) -> None:
        """Check a backbone's name before any model is trained.

        Raises:
            ValueError: there is no model or tag of that name, or no weights are published for it.
        """
        check_model(name, pretrained)

    @classmethod
    def trained(cls, options: DetectionEvalOptions) -> tuple[Detection, Detector, dict[str, Any]]:
        """Load the detector of a checkpoint, and make the task with the options that it was trained with."""
        if not options.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint FILE, or a run folder")
        found = load_detector(options.checkpoint)
        spec = found.spec
        values = {name: value for name, value in vars(spec).items() if name not in ("classes", "frozen_norms")}
        values |= {"anchor_scale": spec.anchor_scale or "auto", "train_on": spec.train_on or ("train",)}
        values |= {name: value for name, value in vars(options).items() if name != "checkpoint"}
        task = cls(DetectionOptions(**values), trained=spec)
        if task.data.test_split in spec.train_on:
            task.model.notes.append(f"the detector was trained on the split {task.data.test_split}")
        if options.test_on:
            task.title += f"-{options.test_on}"
        if task.data.classes != spec.classes:
            flags = ["--task", "detection", *changed_flags(options, "data_dir")]
            flags += ["--model", spec.model, "--detector", spec.detector, "--out-channels", str(spec.out_channels)]
            raise ValueError(
                f"{options.checkpoint} has the classes {', '.join(spec.classes)}, and "
                f"{options.data_dir} has {', '.join(task.data.classes)}; give other --data-dir, or fine-tune "
                f"first: {train_command(options.checkpoint, *flags)}"
            )
        return task, found.model, found.metadata


class DetectionModel:
    """Build and describe the detector.

    Attributes:
        frozen_norms: whether the backbone's batch norms are frozen; known once the model is built.
        notes: where the weights come from.
    """

    frozen_helpers: tuple[nn.Module, ...] = ()

    def __init__(self, options: DetectionOptions, data: DetectionData, trained: DetectorSpec | None = None):
        self.options, self.data = options, data
        self.notes: list[str] = []
        self.frozen_norms = trained.frozen_norms if trained else False
        self.train_on = trained.train_on if trained else options.train_on

    def build(self, metadata: Mapping[str, Any] | None = None) -> Detector:
        """Build the detector, with the weights of a classifier in its backbone or those of a whole detector."""
        options = self.options
        start = metadata or (load_metadata(find_weights(options.checkpoint)) if options.checkpoint else {})
        of_detector = start.get("task") == "detection"
        if metadata is not None and "anchor_scale" not in metadata:  # a run of metamix 0.1, which had no auto
            options.anchor_scale = DetectorSpec.from_dict(metadata, "the checkpoint").anchor_scale or "auto"
        if of_detector:
            source = options.checkpoint or "the checkpoint"
            spec = DetectorSpec.from_dict(start, source)
            check_trained_with("detector", spec.detector, options.detector, source)
            self.frozen_norms = spec.frozen_norms
            model = self.spec().build()
            set_statistics(model, ModelMetadata.from_dict(start, source), source)
            for key in ("image_mean", "image_std"):
                setattr(model.transform, key, options.detector_args.get(key, getattr(model.transform, key)))
        else:
            self.frozen_norms = bool(options.pretrained or options.checkpoint)
            model = self.spec().build(pretrained=options.pretrained, checkpoint=options.checkpoint)
        if options.pretrained and metadata is None:
            self.notes.append(f"published weights of the backbone: {published_name(model.backbone.body)}")
        if options.checkpoint and metadata is None:
            if of_detector:
                new = load_initial_weights(model, options.checkpoint, list(self.data.classes))
                note = f"weights from {options.checkpoint}" + (f"; new: {', '.join(new)}" if new else "")
            else:
                note = f"weights of the backbone from {options.checkpoint}"
            self.notes.append(note)
        if len(sizes := self.data.box_sizes()):
            self.notes.append(describe_sizes(sizes, anchor_range(model)))
        return model

    def describe(self, model: Detector) -> dict[str, Any]:
        """Return what builds the detector again, and its size and cost, for the metadata of a weight file."""
        size = self.options.min_size
        return self.spec().to_dict() | {
            "mean": list(model.transform.image_mean),
            "std": list(model.transform.image_std),
            "img_size": size,
            "data": self.data.name,
            "test_split": self.data.test_split,
            **self.data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_dense_macs(model, (size, size)),
        }

    def spec(self) -> DetectorSpec:
        """Return what is needed to build the detector again."""
        options = self.options
        out_indices, extra = pyramid_levels(options)
        return DetectorSpec(
            detector=options.detector,
            detector_args=options.detector_args,
            model=options.model,
            model_args=options.model_args,
            classes=self.data.classes,
            out_indices=out_indices,
            extra=extra,
            out_channels=options.out_channels,
            frozen_norms=self.frozen_norms,
            min_size=options.min_size,
            max_size=options.max_size,
            anchor_scale=None if options.anchor_scale == "auto" else options.anchor_scale,
            train_on=self.train_on,
        )


def pyramid_levels(options: DetectionOptions) -> tuple[tuple[int, ...], str]:
    """Return out_indices and extra; those of the published detector if the options do not give them."""
    published = LEVELS[options.detector]
    extra = published["extra"] if options.extra == "auto" else options.extra
    return tuple(options.out_indices or published["out_indices"]), extra


def pyramid_strides(options: DetectionOptions) -> list[float]:
    """Return the nominal strides of all levels; a few backbones differ, such as 3.5 instead of 4."""
    out_indices, extra = pyramid_levels(options)
    levels = [*out_indices, *(out_indices[-1] + 1 + i for i in range(EXTRA[extra][0]))]
    return [4.0 * 2**level for level in levels]


def detection_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the losses of the detector. Their names end in `_loss`, so that they are drawn together."""
    losses = model(batch["image"], batch["target"])
    return sum(losses.values()), {f"{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}
