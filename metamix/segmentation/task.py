"""The segmentation task: a head on any backbone, trained on images with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from metamix.data.options import train_command
from metamix.models import count_macs
from metamix.models.metadata import check_trained_with
from metamix.models.published_segmenters import WEIGHTS, published_segmenter
from metamix.models.registry import check_model, published_name
from metamix.models.segmenters import Segmenter
from metamix.models.weights import find_weights
from metamix.utils.options import changed_flags
from metamix.utils.tensor_files import load_metadata

from .data import SegmentationData
from .inference import PLAIN, Predictor, make_views
from .load import SegmenterSpec, TrainedSegmenter, check_tile, load_initial_weights, load_segmenter
from .losses import SegmentationLoss, class_weights
from .metrics import SegmentationMetric, describe_scores
from .options import SegmentationDataOptions, SegmentationEvalOptions, SegmentationOptions
from .pictures import SegmentationPictures


class Segmentation:
    """Assemble data, model, loss, metric and pictures of segmentation; see `metamix.training.task.Task`.

    Args:
        options: of training, or of evaluation with those of training filled in.
        seed: of the run; the loaders take it from the engine.
        trained: of the weights to evaluate; no split to train on is opened then.

    Raises:
        ValueError: the options do not fit together, or the weights do not fit the data.
    """

    Options, EvalOptions = SegmentationOptions, SegmentationEvalOptions
    one_shape = False  # images to score may differ in size

    def __init__(self, options: SegmentationOptions, seed: int = 0, trained: SegmenterSpec | None = None):
        self.options = options
        self.data = SegmentationData(options, train=trained is None)
        self._check_class_weights()
        self.title = f"{self.data.name}-{options.head}-{options.model}"
        self.model = SegmentationModel(options, self.data, trained)
        self.metric = SegmentationMetric(self.data.classes, self.data.normalize, make_predictors(options))
        self.pictures = SegmentationPictures(self.metric, self.data.labels)
        self.loss = SegmentationLoss(options.loss, options.aux_weight, self.loss_weights)

    def _check_class_weights(self) -> None:
        given, classes = self.options.class_weights, len(self.data.classes)
        if not isinstance(given, str) and len(given) != classes:
            raise ValueError(
                f"class_weights has {len(given)} numbers, and there are {classes} classes: give one for each, in the "
                f"order of classes.txt"
            )

    def loss_weights(self) -> Tensor | None:
        """Return the weights of the classes in the loss, (classes,); median and log read all masks to train on."""
        given = self.options.class_weights
        if isinstance(given, str):
            return None if given == "none" else class_weights(given, self.data.pixel_counts())
        return torch.tensor(given)

    @property
    def notes(self) -> list[str]:
        """Return notes for the user: how data and model were made, and what the scores compare."""
        return [*self.data.notes, *self.model.notes, *map(describe_scores, self.metric.predictors.values())]

    @staticmethod
    def check_model(name: str, pretrained: bool) -> None:
        """Check a backbone's name before any model is trained.

        Raises:
            ValueError: there is no model or tag of that name, or no weights are published for it.
        """
        if not any(name in known for known in WEIGHTS.values()):  # tags of whole segmenters, which timm does not know
            check_model(name, pretrained)

    @classmethod
    def trained(cls, options: SegmentationEvalOptions) -> tuple[Segmentation, Segmenter, dict[str, Any]]:
        """Load the segmenter of a checkpoint, and make the task with the options that it was trained with.

        Raises:
            ValueError: there are no weights, the data have other classes, or the backbone needs tiles.
        """
        if not options.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint FILE, or a run folder")
        found = load_segmenter(options.checkpoint)
        check_tile(found.model, found.spec.model, options.tile)
        return cls.of(found, options), found.model, found.metadata

    @classmethod
    def of(cls, found: TrainedSegmenter, options: SegmentationEvalOptions) -> Segmentation:
        """Make the task of a segmenter with the options that it was trained with.

        Raises:
            ValueError: the data have other classes.
        """
        spec = found.spec
        names = {field.name for field in fields(SegmentationOptions)}
        values = {name: value for name, value in vars(spec).items() if name in names}
        values |= {field.name: getattr(options, field.name) for field in fields(SegmentationDataOptions)}
        if options.data != "folder":  # whose values are known, whatever the masks of training held
            values |= dict(ignore_index=255, reduce_zero_label=False)
        given = {name: getattr(options, name) for name in ("reduce_zero_label", "min_size", "max_size")}
        values |= {name: value for name, value in given.items() if value is not None}
        values |= {} if options.ignore_index == "trained" else {"ignore_index": options.ignore_index}
        task = cls(SegmentationOptions(**values), trained=spec)
        if task.data.test_split in spec.train_on:
            task.model.notes.append(f"the segmenter was trained on the split {task.data.test_split}")
        if options.test_on:
            task.title += f"-{options.test_on}"
        if task.data.classes != spec.classes:
            flags = ["--task", "segmentation", *changed_flags(options, "data", "data_dir", "mask_name")]
            flags += ["--model", spec.model, "--head", spec.head]
            raise ValueError(
                f"{options.checkpoint} has {len(spec.classes)} classes ({', '.join(spec.classes)}), and "
                f"{options.data_dir} has {len(task.data.classes)} ({', '.join(task.data.classes)}); give other "
                f"--data-dir, or fine-tune first: {train_command(options.checkpoint, *flags)}"
            )
        return task


class SegmentationModel:
    """Build and describe the segmenter.

    Attributes:
        frozen_norms: whether the backbone's batch norms are frozen: those of loaded weights are.
        notes: where the weights come from.
    """

    frozen_helpers: tuple[nn.Module, ...] = ()

    def __init__(self, options: SegmentationOptions, data: SegmentationData, trained: SegmenterSpec | None = None):
        self.options, self.data = options, data
        self.notes: list[str] = []
        self.frozen_norms = trained.frozen_norms if trained else False
        self.crop = trained.crop if trained else options.crop_size
        self.train_on = trained.train_on if trained else options.train_on

    def build(self, metadata: Mapping[str, Any] | None = None) -> Segmenter:
        """Build the segmenter, with the weights of a classifier in its backbone or those of a whole segmenter.

        Raises:
            ValueError: the options do not fit the segmenter.
        """
        options = self.options
        model = self._load(metadata)
        check_tile(model, options.model, options.tile)
        if options.aux_weight != SegmentationOptions.aux_weight and model.auxiliary is None:
            raise ValueError(
                f"aux_weight is {options.aux_weight}, but {options.head} has no auxiliary head here: leave it out"
                + ("" if options.head == "wavemix" else ", or give --head-args '{auxiliary: true}'")
            )
        return model

    def _load(self, metadata: Mapping[str, Any] | None) -> Segmenter:
        options = self.options
        checkpoint = find_weights(options.checkpoint) if options.checkpoint else None
        start = metadata or (load_metadata(checkpoint) if checkpoint else {})
        if start.get("task") == "segmentation":
            source = options.checkpoint or "the checkpoint"
            spec = SegmenterSpec.from_dict(start, source)
            check_trained_with("head", spec.head, options.head, source)
            self.frozen_norms = spec.frozen_norms if metadata else self._freezes(loaded=True)
            self._normalize_as(spec.mean, spec.std)
            model = self.spec().build()
            if checkpoint and metadata is None:
                new = load_initial_weights(model, checkpoint, list(self.data.classes))
                self.notes.append(f"weights from {options.checkpoint}{describe_new(new)}")
            return model
        self.frozen_norms = self._freezes(loaded=bool(options.pretrained or checkpoint))
        model = self.spec().build(pretrained=options.pretrained, checkpoint=checkpoint)
        self._normalize_as(model.mean, model.std)
        whole = published_segmenter(options.head, options.model) if options.pretrained else None
        if whole:
            same = whole.num_classes == len(self.data.classes)
            new = [] if same else [f"{layer}.{name}" for layer in model.classifier for name in ("weight", "bias")]
            self.notes.append(f"published weights of backbone and head: {options.model}{describe_new(new)}")
        elif options.pretrained:
            self.notes.append(f"published weights of the backbone: {published_name(model.backbone.body)}")
        elif checkpoint:
            self.notes.append(f"weights of the backbone from {options.checkpoint}")
        return model

    def _freezes(self, loaded: bool) -> bool:
        """Return whether batch norms are frozen: those of loaded weights are, unless the options say otherwise."""
        given = self.options.head_args.get("frozen_norms")
        return loaded if given is None else given

    def _normalize_as(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Normalise images as the weights were trained, unless the options say otherwise."""
        if self.options.mean is None:
            self.data.mean, self.data.std = tuple(mean), tuple(std)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Describe the segmenter for the summary and for the metadata of its weights."""
        options, data = self.options, self.data
        return self.spec().to_dict() | {
            "data": data.name,
            **{f"{prefix}measured": describe_scores(each) for prefix, each in make_predictors(options).items()},
            **data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(model, (3, *self.crop)),
        }

    def spec(self) -> SegmenterSpec:
        """Return what is needed to build the segmenter again."""
        options, data = self.options, self.data
        return SegmenterSpec(
            head=options.head,
            head_args=options.head_args,
            model=options.model,
            model_args=options.model_args,
            classes=data.classes,
            crop=self.crop,
            frozen_norms=self.frozen_norms,
            mean=data.mean,
            std=data.std,
            min_size=options.min_size,
            max_size=options.max_size,
            ignore_index=options.ignore_index,
            reduce_zero_label=options.reduce_zero_label,
            palette=data.labels.palette,
            train_on=self.train_on,
        )


def make_predictors(options: SegmentationOptions) -> dict[str, Predictor]:
    """Make the predictors by the prefix of their scores: "", and "augmented_" if flips or scales are asked for."""
    predictors = {"": Predictor(options.tile, options.overlap)}
    views = make_views(options.test_scales, options.test_flip)
    if views != PLAIN:
        predictors["augmented_"] = Predictor(options.tile, options.overlap, views)
    return predictors


def describe_new(names: Sequence[str]) -> str:
    """Name the weights that are not loaded, for the end of a note."""
    return f"; newly initialised: {', '.join(names)}" if names else ""
