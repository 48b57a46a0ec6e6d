"""Export segmenters: one output, the logits of each pixel, (n, classes, H, W).

A graph of a fixed size sees images that fit it at once, and larger ones in square tiles of its shorter side; images and
tiles are padded to its size by reflection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metamix.deploy.report import Difference, missed_limits
from metamix.deploy.runtime import ExportedModel
from metamix.layers.image_inference import pad_for_graph, tiles
from metamix.tasks.calibration import CalibratedExport
from metamix.tasks.exportable import EXTRA, RANDOM_IMAGES, Comparison, ExportOptions, Model, readable_images
from metamix.training.task import Batch
from metamix.utils.rules import rule
from metamix.weights.files import ARTIFACT
from metamix.weights.metadata import ModelMetadata

from .inference import Predictor, best_labels
from .load import SegmenterSpec, TrainedSegmenter, load_segmenter
from .metric import class_scores, confusion_matrix
from .options import SegmentationEvalOptions
from .task import Segmentation


class ExportableSegmenter(CalibratedExport):
    """A segmenter, and the task on the data set that it is compared on; without a task, on random images."""

    outputs: tuple[str, ...] = ("logits",)

    def __init__(self, trained: TrainedSegmenter, options: ExportOptions, task: Segmentation | None):
        self.model, self.task, self.images = trained.model, task, options.images
        height, width = options.img_size or trained.spec.crop
        self.size = height, width
        metadata = ModelMetadata.from_dict(trained.metadata, options.source)
        self.metadata = replace(metadata, img_size=self.size, in_chans=3)
        self.fixed = None if options.dynamic else self.size
        self.extra: dict[str, Any] = {"scale": 1, "multiple": [1, 1]}
        self.predictor = Predictor(*tiles(self.fixed), whole=self.fixed)
        self.notes = list(task.notes) if task else []

    def examples(self, count: int, larger: int = 0) -> Tensor:
        """Return normally distributed images of the graph's size, with `larger` pixels added to each side."""
        shape = count, 3, *(side + larger for side in self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def compare(self, exported: Model, precision: str) -> Comparison:
        difference = Difference(ranked=True)
        if self.task is None:
            tries = [*self.examples(RANDOM_IMAGES).split(1), *([] if self.fixed else [self.examples(1, larger=32)])]
            for images in tries:
                difference.update(by_pixel(self.model(images)), by_pixel(exported(images)))
            figures: dict[str, Any] = {"on": "random images"} | difference.result(len(tries))
            return Comparison(figures, problems=missed_limits(figures, precision))
        metric = self.task.metric
        models: dict[str, Model] = {"eager": self.model, "exported": exported}
        states = {name: metric.start() for name in models}
        done = 0
        for batch in readable_images(self.task.data.eval_loaders(1, 0, 1)["test"], self.images):
            outputs = {name: self.apply(model, batch) for name, model in models.items()}
            difference.update(*map(by_pixel, outputs.values()))
            for name, logits in outputs.items():
                metric.update(states[name], [{"": best_labels(logits, batch["target"][0].shape)}], batch)
            done += 1
        figures = {"on": f"{self.task.data.name}, test"} | difference.result(done)
        scores = {name: metric.result([state]) for name, state in states.items()}
        return Comparison(figures, scores, missed_limits(figures, precision))

    def apply(self, model: Model, batch: Batch) -> Tensor:
        """Return the logits (1, classes, H, W) of the image of a batch."""
        assert self.task
        images = self.task.metric.normalize(batch["image"][0][None])
        return self.predictor.logits(pad_for_graph(model, self.extra, self.fixed), images)

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the mean IoU of the classes that the image has, in percent."""
        truth = batch["target"][0]
        predicted = best_labels(self.apply(model, batch), truth.shape)
        confusion = confusion_matrix(truth, predicted, len(self.metadata.classes or ()))
        return 100 * float(class_scores(confusion)[0][confusion.sum(1) > 0].mean())


def by_pixel(logits: Tensor) -> Tensor:
    """Turn logits (n, classes, H, W) into those of each pixel, (n H W, classes)."""
    return logits.movedim(1, -1).flatten(0, 2)


def open_segmenter(options: ExportOptions) -> ExportableSegmenter:
    """Load a segmenter that metamix trained, with its data set if a folder is given."""
    if options.data and not options.data_dir:
        raise ValueError(f"data is {options.data}: give its folder, --data-dir DIR, to compare {options.source} on it")
    trained, task = load_segmenter(options.source), None
    if options.dynamic and trained.fixed_size:
        height, width = trained.fixed_size
        raise ValueError(
            f"{trained.spec.model} takes images of {height} x {width} pixels at most: leave --dynamic out, and larger "
            f"images are cut into tiles"
        )
    height, width = options.img_size or trained.spec.crop
    if height % 2 or width % 2:  # padding by reflection makes sides even
        raise ValueError(f"img_size is {height} x {width}: give even numbers of pixels")
    if options.data_dir:
        data: Any = options.data or "folder"
        tile, overlap = tiles(None if options.dynamic else (height, width))  # for the note on how scores are made
        eval_options = SegmentationEvalOptions(
            data=data, data_dir=options.data_dir, workers=0, checkpoint=options.source, tile=tile, overlap=overlap
        )
        task = Segmentation.for_trained(trained, eval_options)
    return ExportableSegmenter(trained, options, task)


def exported_segmenter(exported: ExportedModel) -> TrainedSegmenter:
    """Use an exported model as a segmenter; raise ValueError if export.json lacks an entry or does not fit."""
    artifact = exported.artifact
    metadata = artifact.model.to_dict()
    artifact.check(extra=EXTRA, model={"img_size": rule(Any)})  # whose value is checked already
    spec = SegmenterSpec.from_dict(metadata, ARTIFACT)
    exported.check_classes(len(spec.classes))
    return TrainedSegmenter(pad_for_graph(exported, artifact.extra, artifact.size), spec, metadata, artifact.size)
