"""Build a detector from options, and describe it for the summary and its weight file."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from metamix.models import count_macs
from metamix.models.backbone import EXTRA
from metamix.models.registry import published_name
from metamix.tasks.network import check_trained_with, load_initial_network
from metamix.training.task import TaskModel
from metamix.weights.files import load_metadata
from metamix.weights.find import find_weights
from metamix.weights.metadata import ModelMetadata

from .anchors import ANCHOR_SCALE, choose_anchor_scale, describe_sizes
from .data import DetectionData
from .detectors import LEVELS, BackboneAndHead, Detector, anchor_range
from .load import DetectorSpec, set_statistics
from .options import DetectionOptions


class DetectionModel(TaskModel):
    """Build and describe the detector."""

    def __init__(self, options: DetectionOptions, data: DetectionData, spec: DetectorSpec | None):
        self.options, self.data = options, data
        self.box_sizes = data.box_sizes()
        self.auto_anchors = options.anchor_scale == "auto" and options.detector == "retinanet"
        if self.auto_anchors:  # set in the options, so that the recipe shows the number
            chosen = choose_anchor_scale(self.box_sizes, pyramid_strides(options))
            options.anchor_scale = trained_anchor_scale(options) or chosen
        self.notes: list[str] = []  # where the weights come from, and how large the boxes are
        # Whether the batch norms of the backbone are frozen; `build` sets it.
        self.frozen_norms = spec.frozen_norms if spec else False
        self.train_on = spec.train_on if spec else options.train_on

    def build(self, metadata: Mapping[str, Any] | None = None) -> Detector:
        """Build the detector. Unless `metadata` is given, load any initial weights of the detector or its backbone."""
        options = self.options
        start = metadata or (load_metadata(find_weights(options.checkpoint)) if options.checkpoint else {})
        if start.get("task") == "detection":
            source = options.checkpoint or "the checkpoint"
            spec = DetectorSpec.from_dict(start, source)
            check_trained_with("detector", spec.detector, options.detector, source)
            self.frozen_norms = spec.frozen_norms
            # A resumed run keeps its anchors, even if the file of its initial weights is gone.
            if self.auto_anchors and metadata and options.checkpoint:
                options.anchor_scale = spec.anchor_scale or options.anchor_scale
            model = self.spec().build()
            set_statistics(model, ModelMetadata.from_dict(start, source), source)
            for key in {"image_mean", "image_std"} & options.detector_args.keys():
                setattr(model.transform, key, options.detector_args[key])
            if options.checkpoint and metadata is None:
                self.notes.append(load_initial_network(model, options.checkpoint, self.data.classes))
        else:
            self.frozen_norms = bool(options.pretrained or options.checkpoint)
            model = self.spec().build(pretrained=options.pretrained, checkpoint=options.checkpoint)
            if options.pretrained:
                self.notes.append(f"published weights of the backbone: {published_name(model.backbone.body)}")
            elif options.checkpoint:
                self.notes.append(f"weights of the backbone from {options.checkpoint}")
        if len(self.box_sizes):
            self.notes.append(describe_sizes(self.box_sizes, anchor_range(model)))
        return model

    def describe(self, model: Any) -> dict[str, Any]:
        """Return the metadata of a weight file: the detector's arguments, its data set, its size and its cost."""
        size = self.options.min_size
        return self.spec().to_dict() | {
            "mean": list(model.transform.image_mean),
            "std": list(model.transform.image_std),
            "img_size": size,
            "data": self.data.name,
            "test_split": self.data.test_split,
            **self.data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(BackboneAndHead(model), (len(model.transform.image_mean), size, size)),
        }

    def spec(self) -> DetectorSpec:
        """Return the arguments that rebuild the detector."""
        options, names = self.options, [field.name for field in fields(DetectorSpec)]
        values = {name: getattr(options, name) for name in names if hasattr(options, name)}
        values |= dict(zip(("out_indices", "extra"), pyramid_levels(options)))
        values |= dict(classes=self.data.classes, frozen_norms=self.frozen_norms, train_on=self.train_on)
        if options.anchor_scale == "auto":
            values["anchor_scale"] = None
        return DetectorSpec(**values)


def pyramid_levels(options: DetectionOptions) -> tuple[tuple[int, ...], str]:
    """Return out_indices and extra, by default as in the published detector."""
    published = LEVELS[options.detector]
    extra = published["extra"] if options.extra == "auto" else options.extra
    return tuple(options.out_indices or published["out_indices"]), extra


def pyramid_strides(options: DetectionOptions) -> list[float]:
    """Return the nominal strides of all levels; a few backbones have other strides, such as 3.5 instead of 4."""
    out_indices, extra = pyramid_levels(options)
    levels = [*out_indices, *(out_indices[-1] + 1 + i for i in range(EXTRA[extra][0]))]
    return [4.0 * 2**level for level in levels]


def trained_anchor_scale(options: DetectionOptions) -> float | None:
    """Return the anchor scale of the detector to start from; None if the run does not start from a detector.

    A RetinaNet needs its old anchors, since its outputs are relative to them.
    """
    with suppress(OSError, ValueError):  # the checkpoint may be a classifier, and a resumed run may lack it
        if options.checkpoint:
            start = DetectorSpec.from_dict(load_metadata(find_weights(options.checkpoint)), options.checkpoint)
            return start.anchor_scale or start.detector_args.get("anchor_scale", ANCHOR_SCALE)
    return None
