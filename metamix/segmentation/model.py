"""Build a segmenter from options, and describe it for the summary and its weight file."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from metamix.models import count_macs
from metamix.models.registry import published_name
from metamix.tasks.network import check_trained_with, load_initial_network, weights_note
from metamix.training.task import TaskModel
from metamix.weights.files import load_metadata
from metamix.weights.find import find_weights

from .data import SegmentationData
from .inference import Predictor
from .load import SegmenterSpec, check_tile
from .metric import describe_scores
from .options import SegmentationOptions
from .published import published_segmenter
from .segmenters import Segmenter


class SegmentationModel(TaskModel):
    """Build and describe the segmenter."""

    def __init__(self, options: SegmentationOptions, data: SegmentationData, spec: SegmenterSpec | None = None):
        self.options, self.data = options, data
        self.notes: list[str] = []  # where the weights come from
        # Whether the batch norms of the backbone are frozen; `build` sets it.
        self.frozen_norms = spec.frozen_norms if spec else False

    def build(self, metadata: Mapping[str, Any] | None = None) -> Segmenter:
        options = self.options
        model = self._load(metadata)
        check_tile(model.fixed_size, options.model, options.tile)
        if options.aux_weight != SegmentationOptions.aux_weight and model.auxiliary is None:
            raise ValueError(
                f"aux_weight is {options.aux_weight}, but this {options.head} has no auxiliary head: omit --aux-weight"
                + ("" if options.head == "wavemix" else ", or give --head-args '{auxiliary: true}'")
            )
        return model

    def _load(self, metadata: Mapping[str, Any] | None) -> Segmenter:
        options = self.options
        start = metadata or (load_metadata(find_weights(options.checkpoint)) if options.checkpoint else {})
        if start.get("task") == "segmentation":
            source = options.checkpoint or "the checkpoint"
            spec = SegmenterSpec.from_dict(start, source)
            check_trained_with("head", spec.head, options.head, source)
            self.frozen_norms = spec.frozen_norms if metadata else self._freezes(loaded=True)
            self._normalize_as(spec.mean, spec.std)
            model = self.spec().build()
            if options.checkpoint and metadata is None:
                self.notes.append(load_initial_network(model, options.checkpoint, self.data.classes))
            return model
        self.frozen_norms = self._freezes(loaded=bool(options.pretrained or options.checkpoint))
        model = self.spec().build(pretrained=options.pretrained, checkpoint=options.checkpoint)
        self._normalize_as(model.mean, model.std)
        whole = published_segmenter(options.head, options.model) if options.pretrained else None
        if whole:
            same = whole.num_classes == len(self.data.classes)
            new = [] if same else [f"{layer}.{name}" for layer in model.classifier for name in ("weight", "bias")]
            self.notes.append(weights_note(f"published weights of backbone and head: {options.model}", new))
        elif options.pretrained:
            self.notes.append(f"published weights of the backbone: {published_name(model.backbone.body)}")
        elif options.checkpoint:
            self.notes.append(f"weights of the backbone from {options.checkpoint}")
        return model

    def _freezes(self, loaded: bool) -> bool:
        """Return whether to freeze batch norms: as the options say, or by default if weights are loaded."""
        frozen = self.options.head_args.get("frozen_norms")
        return loaded if frozen is None else frozen

    def _normalize_as(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Normalise images with the mean and std of the weights, unless the options set them."""
        if self.options.mean is None:
            self.data.mean, self.data.std = tuple(mean), tuple(std)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        options, data = self.options, self.data
        return self.spec().to_dict() | {
            "data": data.name,
            **{f"{prefix}measured": describe_scores(each) for prefix, each in make_predictors(options).items()},
            **data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(model, (3, *options.crop_size)),
        }

    def spec(self) -> SegmenterSpec:
        """Return the arguments that rebuild the segmenter."""
        data, names = self.data, [field.name for field in fields(SegmenterSpec)]
        values = {name: getattr(self.options, name) for name in names if hasattr(self.options, name)}
        values |= dict(classes=data.classes, palette=data.labels.palette, mean=data.mean, std=data.std)
        values |= dict(crop=self.options.crop_size, frozen_norms=self.frozen_norms)
        return SegmenterSpec(**values)


def make_predictors(options: SegmentationOptions) -> dict[str, Predictor]:
    """Return a predictor for each prefix of score names: "", and "augmented_" if the options set flips or scales."""
    single = Predictor(options.tile, options.overlap)
    augmented = replace(single, flip=options.test_flip, scales=options.test_scales)
    return {"": single, "augmented_": augmented} if augmented.averages else {"": single}
