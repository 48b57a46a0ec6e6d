"""Assemble the classification task: any timm model on any data set of labelled images."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from metamix.data.sources import IN_A_FOLDER
from metamix.models.registry import check_image_size, check_model
from metamix.tasks.find import task_of_model
from metamix.tasks.options import options_as_trained
from metamix.utils.checks import parse_size
from metamix.weights.metadata import ModelMetadata

from .data import ClassificationData
from .load import load_classifier
from .loss import ClassificationLoss
from .metric import ClassificationMetric, MultiLabelMetric
from .model import ClassificationModel
from .options import ClassificationEvalOptions, ClassificationOptions, ModelOptions, data_name
from .pictures import ClassificationPictures


class Classification:
    """Assemble data, model, loss, metric and pictures of classification; see `metamix.training.task.Task`.

    For evaluation, give the `metadata` of the weights, and an instance of `ModelOptions` as `options`.
    """

    Options, EvalOptions = ClassificationOptions, ClassificationEvalOptions
    same_image_shape = True

    def __init__(self, options: ModelOptions, seed: int = 0, metadata: ModelMetadata | None = None):
        self.options = options
        self.data = ClassificationData(options, seed, metadata)
        self.title = f"{self.data.name.replace('/', '-')}-{options.model}"
        self.model = ClassificationModel(options, self.data)
        self.metric: ClassificationMetric | MultiLabelMetric
        if self.data.threshold is None:
            self.metric = ClassificationMetric(self.data.classes, self.data.normalize)
        else:  # many more labels can be scored than classes, since there is no confusion matrix
            self.metric = MultiLabelMetric(self.data.classes, self.data.normalize, self.data.threshold)
        self.pictures = ClassificationPictures(self.metric)
        if isinstance(options, ClassificationOptions):
            assert self.data.splits.train is not None
            labels = self.data.splits.train.labels
            self.loss = ClassificationLoss(options, self.model, labels, len(self.data.classes))

    @property
    def notes(self) -> list[str]:
        return [*self.data.notes, *self.model.notes]

    @staticmethod
    def check_model(name: str, pretrained: bool) -> None:
        """Raise ValueError unless a classifier of this name exists, with published weights if `pretrained`."""
        if other := task_of_model(name):
            raise ValueError(f"{name} is a model for {other}, not a classifier: add --task {other}")
        check_model(name, pretrained)

    @classmethod
    def for_evaluation(cls, options: ClassificationEvalOptions) -> tuple["Classification", nn.Module, ModelMetadata]:
        """Load weights for evaluation, and return the task, the model and the metadata.

        Arguments of the model, statistics and image size are as in training unless `options` set them; for the other
        values see `values_of_training` and, if the training data are scored, `shares_of_training`.
        """
        classifier = load_classifier(**options.weights())
        metadata = classifier.metadata
        options = replace(options, data=options.data or data_to_score(metadata.data, options.data_dir))
        values = values_of_training(metadata, options) | {"checkpoint": options.checkpoint}
        values |= {"model": classifier.name, "model_args": metadata.model_args}
        shares = shares_of_training(metadata) if metadata.data == data_name(options) else {}
        task = None
        with suppress(ValueError):  # another folder of the same name may lack the splits of training
            task = cls(options_as_trained(ModelOptions, values | shares, options), metadata=metadata)
        if task and task.data.is_training_data(metadata):
            check_shares(shares, options)
        elif shares or not task:
            task = cls(options_as_trained(ModelOptions, values, options), metadata=metadata)
            if not task.data.splits.train and "test_share" in shares:
                differs = f"the files of {task.data.name} differ from the training data"
                task.data.notes.append(f"{differs}: all images are scored, and some may have been trained on")
        assert metadata.img_size is not None  # `load_classifier` fills it in
        size, advice = task.data.size, "Leave --img-size out: the model is not rebuilt for another size"
        if (size, size) != parse_size("img_size", metadata.img_size):
            check_image_size(classifier.model, classifier.name, task.data.in_chans, size, advice)
            task.title += f"-{size}px"  # results at a different size get their own folder
        if options.test_on:
            task.title += f"-{options.test_on}"
        if options.pretrained:
            task.model.notes.append(f"published weights {metadata.model}")
        if metadata.crop_mode != "center":
            mode = f"although the crop_mode of the weights is {metadata.crop_mode!r}"
            task.model.notes.append(f"images are cropped at the centre, {mode}")
        return task, classifier.model, metadata


def data_to_score(trained_on: str | None, data_dir: str | None) -> str:
    """Return the name of the data set to score if none is given.

    With `data_dir`, return the training data set if it is one of `IN_A_FOLDER`, otherwise "folder". Without `data_dir`,
    only "digits" can be scored.
    """
    if data_dir:
        return trained_on if trained_on in IN_A_FOLDER else "folder"
    if trained_on == "digits":
        return trained_on
    weights = f"; the weights were trained on {trained_on}" if trained_on else ""
    raise ValueError(f"no data set is given{weights}: give --data-dir FOLDER, or --data NAME with its --data-dir")


def values_of_training(metadata: ModelMetadata, options: ClassificationEvalOptions) -> dict[str, Any]:
    """Return the data options of training, without `shares_of_training`; raise ValueError if images are not square.

    The test share is 1, so that all images of a folder without a test split are scored.
    """
    values = {name: getattr(metadata, name) for name in ("interpolation", "crop_pct", "mean", "std", "memory")}
    height, width = parse_size("img_size", options.img_size or metadata.img_size)  # type: ignore[arg-type]
    if height != width:
        raise ValueError(f"the model takes images of {height}x{width} pixels; give the side of a square, --img-size")
    values |= {"img_size": height, "test_share": 1.0}
    return {name: value for name, value in values.items() if value is not None}


def shares_of_training(metadata: ModelMetadata) -> dict[str, Any]:
    """Return the holdout, test share and split to score that training used; they apply only to the training data."""
    share = metadata.extra.get("test_share")
    values = {"holdout": metadata.holdout, "test_share": share if isinstance(share, float) else None}
    values["test_on"] = metadata.extra.get("test_on")
    return {name: value for name, value in values.items() if value is not None}


def check_shares(shares: Mapping[str, Any], options: ClassificationEvalOptions) -> None:
    """Raise ValueError if the options set other shares than training did, so that training images would be scored."""
    for name in ("holdout", "test_share"):
        asked, value = getattr(options, name), shares.get(name)
        if value is not None and asked not in (None, 0, value):
            raise ValueError(
                f"{name} is {asked}, but {options.checkpoint} was trained with {name} {value}, so it has seen some "
                f"of these images: leave --{name.replace('_', '-')} out"
            )
