"""Define the segmentation task: train any backbone with a segmentation head on images with masks."""

import torch
from torch import Tensor, nn

from metamix.models.registry import check_model
from metamix.tasks.network import check_data
from metamix.tasks.options import options_as_trained
from metamix.utils.options import changed_flags
from metamix.weights.metadata import ModelMetadata

from .data import SegmentationData
from .load import SegmenterSpec, TrainedSegmenter, check_tile, load_segmenter
from .loss import SegmentationLoss, class_weights
from .metric import SegmentationMetric, describe_scores
from .model import SegmentationModel, make_predictors
from .options import SegmentationEvalOptions, SegmentationOptions
from .pictures import SegmentationPictures
from .published import WEIGHTS


class Segmentation:
    """Assemble data, model, loss, metric and pictures of segmentation; see `metamix.training.task.Task`.

    To evaluate weights, give their `spec`. The training split is then not opened.
    """

    Options, EvalOptions = SegmentationOptions, SegmentationEvalOptions
    same_image_shape = False  # images to score may differ in size

    def __init__(self, options: SegmentationOptions, seed: int = 0, spec: SegmenterSpec | None = None):
        self.options = options
        self.data = SegmentationData(options, train=spec is None)
        weights, classes = options.class_weights, len(self.data.classes)
        if not isinstance(weights, str) and len(weights) != classes:
            raise ValueError(
                f"class_weights has {len(weights)} numbers, and there are {classes} classes: give one number for each "
                f"class, in the order of classes.txt"
            )
        self.title = f"{self.data.name}-{options.head}-{options.model}"
        self.model = SegmentationModel(options, self.data, spec)
        self.metric = SegmentationMetric(self.data.classes, self.data.normalize, make_predictors(options))
        self.pictures = SegmentationPictures(self.metric, self.data.labels)
        self.loss = SegmentationLoss(options.loss, options.aux_weight, self.loss_weights)

    def loss_weights(self) -> Tensor | None:
        """Return the class weights of the loss, (classes,), or None; for median and log, read all masks to train on."""
        weights = self.options.class_weights
        if weights == "none":
            return None
        if isinstance(weights, str):
            return class_weights(weights, self.data.train_images.label_counts()[: len(self.data.classes)])
        return torch.tensor(weights)

    @property
    def notes(self) -> list[str]:
        """Return notes for the user: on the data, on the weights, and on how the scores are measured."""
        return [*self.data.notes, *self.model.notes, *map(describe_scores, self.metric.predictors.values())]

    @staticmethod
    def check_model(name: str, pretrained: bool) -> None:
        """Raise ValueError unless a model of this name exists, with published weights if `pretrained`."""
        if name not in WEIGHTS:  # tags of whole segmenters, which timm does not know
            check_model(name, pretrained)

    @classmethod
    def for_evaluation(cls, options: SegmentationEvalOptions) -> tuple["Segmentation", nn.Module, ModelMetadata]:
        """Load the segmenter of a checkpoint and make its task; options that are not set are as in training."""
        if not options.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint FILE, or a run folder")
        segmenter = load_segmenter(options.checkpoint)
        check_tile(segmenter.fixed_size, segmenter.spec.model, options.tile)
        return cls.for_evaluation_of(segmenter, options), segmenter.model, segmenter.metadata

    @classmethod
    def for_evaluation_of(cls, segmenter: TrainedSegmenter, options: SegmentationEvalOptions) -> "Segmentation":
        """Make the task of a segmenter that is loaded already; raise ValueError if the data have other classes."""
        spec, values = segmenter.spec, vars(segmenter.spec)
        if options.data != "folder":  # the layout fixes the mask values, even if the training masks had other values
            values = values | dict(ignore_index=255, reduce_zero_label=False)
        task = cls(options_as_trained(SegmentationOptions, values, options), spec=spec)
        flags = changed_flags(options, "data", "data_dir", "mask_name")
        check_data(task, spec, options, *flags, "--model", spec.model, "--head", spec.head)
        return task
