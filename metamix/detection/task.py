"""Assemble the detection task: torchvision's detectors on any backbone, data sets in COCO's format, COCO's scores."""

from torch import nn

from metamix.models.registry import check_model
from metamix.tasks.network import check_data
from metamix.tasks.options import options_as_trained
from metamix.utils.options import changed_flags
from metamix.weights.metadata import ModelMetadata

from .data import DetectionData
from .load import DetectorSpec, load_detector
from .loss import detection_loss
from .metric import DetectionMetric
from .model import DetectionModel
from .options import DetectionEvalOptions, DetectionOptions
from .pictures import DetectionPictures


class Detection:
    """Assemble data, model, loss, metric and pictures of detection; see `metamix.training.task.Task`.

    To evaluate weights, give their `spec`; then no split is opened for training.
    """

    Options, EvalOptions = DetectionOptions, DetectionEvalOptions
    same_image_shape = False
    check_model = staticmethod(check_model)

    def __init__(self, options: DetectionOptions, seed: int = 0, spec: DetectorSpec | None = None):
        self.options = options
        self.data = DetectionData(options, spec.classes if spec else ())
        self.title = f"{self.data.name}-{options.detector}-{options.model}"
        self.model = DetectionModel(options, self.data, spec)
        self.loss = detection_loss
        self.metric = DetectionMetric(self.data)
        self.pictures = DetectionPictures(self.metric)

    @property
    def notes(self) -> list[str]:
        return [*self.data.notes, *self.model.notes]

    @classmethod
    def for_evaluation(cls, options: DetectionEvalOptions) -> tuple["Detection", nn.Module, ModelMetadata]:
        """Load the detector of a checkpoint and make its task; options that are not set are as in training."""
        if not options.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint with a weight file or a run folder")
        detector = load_detector(options.checkpoint)
        spec = detector.spec
        defaults = {"anchor_scale": spec.anchor_scale or "auto", "train_on": spec.train_on or ("train",)}
        task = cls(options_as_trained(DetectionOptions, vars(spec) | defaults, options), spec=spec)
        flags = changed_flags(options, "data_dir")
        flags += ["--model", spec.model, "--detector", spec.detector, "--out-channels", str(spec.out_channels)]
        check_data(task, spec, options, *flags)
        return task, detector.model, detector.metadata
