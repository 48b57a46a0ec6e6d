"""Export segmenters. The graph has one output: the logits of each pixel, (n, classes, H, W)."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from metamix.deploy.runtime import ExportedModel
from metamix.layers.image_inference import PadAndCrop, tiles
from metamix.tasks.exportable import EXTRA, ExportOptions, MapExport, Model
from metamix.training.task import Batch
from metamix.weights.files import ARTIFACT

from .inference import Predictor, best_labels
from .load import SegmenterSpec, TrainedSegmenter, load_segmenter
from .metric import class_scores, confusion_matrix
from .options import SegmentationEvalOptions
from .task import Segmentation


class ExportableSegmenter(MapExport):
    """A segmenter to export. Without a `task`, it is compared with its export on random images."""

    outputs: tuple[str, ...] = ("logits",)
    ranked, larger = True, 32

    def __init__(self, trained: TrainedSegmenter, options: ExportOptions, task: Segmentation | None):
        height, width = options.img_size or trained.spec.crop
        metadata = replace(trained.metadata, in_chans=3)
        extra = {"scale": 1, "multiple": [1, 1]}
        super().__init__(trained.model, metadata, (height, width), options, task, extra)
        self.predictor = Predictor(*tiles(self.fixed), whole=self.fixed)

    def scored(self, output: Tensor, batch: Batch) -> Any:
        return [{"": best_labels(output, batch["target"][0].shape)}]

    def apply(self, model: Model, batch: Batch) -> Tensor:
        """Return the logits (1, classes, H, W) of the only image in a batch."""
        images = self.task.metric.normalize(batch["image"][0][None])
        return self.predictor.logits(PadAndCrop(model, self.fixed or self.extra["multiple"]), images)

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the mean IoU in percent over the classes that occur in the image's mask."""
        truth = batch["target"][0]
        predicted = best_labels(self.apply(model, batch), truth.shape)
        confusion = confusion_matrix(truth, predicted, len(self.metadata.classes or ()))
        return 100 * float(class_scores(confusion)[0][confusion.sum(1) > 0].mean())


def open_segmenter(options: ExportOptions) -> ExportableSegmenter:
    """Load a segmenter that metamix trained, and open a data set if `data_dir` is given."""
    if options.data and not options.data_dir:
        raise ValueError(f"data is {options.data}, but no folder is given: give --data-dir DIR")
    trained, task = load_segmenter(options.source), None
    if options.dynamic and trained.fixed_size:
        height, width = trained.fixed_size
        raise ValueError(
            f"{trained.spec.model} takes images of {height} x {width} pixels at most: leave --dynamic out, and larger "
            f"images are cut into tiles"
        )
    height, width = options.img_size or trained.spec.crop
    if options.data_dir:
        data: Any = options.data or "folder"
        tile, overlap = tiles(None if options.dynamic else (height, width))  # for the description of the scores
        eval_options = SegmentationEvalOptions(
            data=data, data_dir=options.data_dir, workers=0, checkpoint=options.source, tile=tile, overlap=overlap
        )
        task = Segmentation.for_evaluation_of(trained, eval_options)
    return ExportableSegmenter(trained, options, task)


def exported_segmenter(exported: ExportedModel) -> TrainedSegmenter:
    """Use an exported model as a segmenter; raise ValueError if export.json is incomplete or does not fit the graph."""
    artifact = exported.artifact
    artifact.check(EXTRA, needs=["img_size"])
    spec = SegmenterSpec.from_dict(artifact.model.to_dict(), ARTIFACT)
    exported.check_classes(len(spec.classes))
    model = PadAndCrop(exported, artifact.size or artifact.extra["multiple"])
    return TrainedSegmenter(model, spec, artifact.model, artifact.size)
