"""Export classifiers. The graph has one output: the logits, or probabilities if an image may have several labels."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from metamix.data import Source, eval_loader
from metamix.deploy.runtime import ExportedModel
from metamix.models.registry import check_model
from metamix.tasks.exportable import CalibratedExport, ExportOptions, Model, Pair, readable_batches
from metamix.tasks.simple import BATCH_SIZE, SimpleExport
from metamix.training.task import Batch
from metamix.weights.metadata import ModelMetadata

from .load import Classifier, load_classifier
from .options import ClassificationEvalOptions
from .task import Classification

PROBABILITY_GAP = 1e-7  # probabilities that are closer than this to 0 or 1 are clamped, so that their logits are finite


class ExportableClassifier(SimpleExport, CalibratedExport):
    """A classifier to export, and the data set for its comparison and calibration."""

    max_drop = 0.3

    def __init__(
        self, model: nn.Module, metadata: ModelMetadata, options: ExportOptions, task: Classification | None = None
    ):
        several = metadata.threshold is not None
        model = nn.Sequential(model, nn.Sigmoid()) if several else model
        super().__init__(model, metadata, options.dynamic, ranked=not several, task=task, images=options.images)
        self.outputs = ("probabilities",) if several else ("logits",)

    def test_outputs(self, exported: Model) -> Iterator[tuple[Batch, Pair, Pair]]:
        for images, batch in self.batches(self.task.data.splits.test.subset(slice(self.images)), BATCH_SIZE):
            outputs = self.pair(images, exported(images))
            yield batch, outputs, outputs if self.ranked else [output.logit(PROBABILITY_GAP) for output in outputs]

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        for images, _ in self.batches(self.training_images.subset(self.order[:count]), 50):
            yield images.numpy()

    @torch.inference_mode()
    def held_out_scores(self, model: Model, count: int) -> np.ndarray:
        held_out = self.training_images.subset(self.order[count : count + self.held_out])
        right = [self.image_scores(model(images), batch["label"]) for images, batch in self.batches(held_out, 64)]
        if not right:
            raise ValueError(f"none of the {len(held_out)} training images that int8 is checked on can be read")
        return 100.0 * torch.cat(right).numpy()

    def image_scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Score each image, (n,): 1 for the right class and 0 for a wrong one, or F1 if images have several labels."""
        if self.metadata.threshold is None:
            return outputs.argmax(1) == labels
        predicted = outputs >= torch.tensor(self.metadata.threshold)
        total = predicted.sum(1) + labels.sum(1)
        return (2 * (predicted * labels).sum(1) / total).where(total > 0, 1.0)

    def batches(self, source: Source, batch_size: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield normalised images (n, C, H, W), without images that cannot be read, and the batch of these images."""
        for batch in readable_batches(eval_loader(source, self.task.options, batch_size=batch_size)):
            yield self.task.data.normalize(batch["image"]), batch


def open_classifier(options: ExportOptions) -> ExportableClassifier:
    """Load a classifier of metamix or timm, and open the data set if one is given."""
    file = options.file
    name = None if file else options.source
    size: Any = options.img_size
    if size and size[0] == size[1]:
        size = size[0]
    elif size and (options.data or options.data_dir):
        raise ValueError(f"img_size is {size}, but scoring needs square images: give one side, or leave the data out")
    if name and "." not in name and ":" not in name:
        check_model(name)
        tags = timm.list_models(f"{name}.*", pretrained=True)
        raise ValueError(
            f"{name} names a model but no weights: "
            + (f"give a name with a tag, {', '.join(tags)}" if tags else "train it, and export the run folder")
            + ". To time it with random weights, use metamix benchmark"
        )
    weights: Any = {"checkpoint": file, "model": name or options.model, "pretrained": file is None}
    if not (options.data or options.data_dir):
        trained = load_classifier(**weights)
        metadata = replace(trained.metadata, img_size=size) if size else trained.metadata
        return ExportableClassifier(trained.model, metadata, options)
    task, model, metadata = Classification.for_evaluation(
        ClassificationEvalOptions(**weights, data=options.data, data_dir=options.data_dir, img_size=size)
    )
    return ExportableClassifier(model, replace(metadata, img_size=task.data.size), options, task)


def exported_classifier(exported: ExportedModel) -> Classifier:
    """Use an exported model as a classifier; raise ValueError if export.json is incomplete or contradicts the graph."""
    metadata = exported.artifact.model
    needs = ["num_classes", "in_chans", "img_size", "mean", "std", "interpolation", "crop_pct"]
    exported.artifact.check({}, needs)
    exported.check_classes(metadata.num_classes or 0)
    return Classifier(metadata.model or "", exported, metadata, has_sigmoid=metadata.threshold is not None)
