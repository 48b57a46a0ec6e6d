"""Build a classifier from options, and describe it for the summary and its weight file."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from metamix.data.memory import Statistics
from metamix.models import count_macs
from metamix.models.checkpoint import layer_names
from metamix.models.registry import check_image_size, create_model, published_name, timm_config
from metamix.tasks.network import load_initial_weights, weights_note
from metamix.training.task import TaskModel
from metamix.utils.text import plural
from metamix.weights.find import read_weights
from metamix.weights.metadata import ModelMetadata

from .data import ClassificationData
from .load import load_classifier
from .options import ClassificationOptions, ModelOptions

# A note is printed if a mean or std differs by more than this from what the initial weights were trained with.
STATISTICS = 0.02


class ClassificationModel(TaskModel):
    """Build the classifier and, for distillation, its teacher."""

    def __init__(self, options: ModelOptions, data: ClassificationData):
        self.options, self.data = options, data
        self.notes: list[str] = []

    def build(self, metadata: Mapping[str, Any] | None = None) -> nn.Module:
        options, data = self.options, self.data
        assert isinstance(options, ClassificationOptions)
        if metadata is not None and (options.pretrained or options.checkpoint):
            data.prepare_as(ModelMetadata.from_dict(metadata))
        rates = {"drop_rate": options.drop_rate, "drop_path_rate": options.drop_path}
        pretrained = options.pretrained and metadata is None
        model = create_model(
            options.model,
            pretrained=pretrained,
            num_classes=len(data.classes),
            in_chans=data.in_chans,
            img_size=data.size,
            **options.model_args,
            **{name: rate for name, rate in rates.items() if rate},
        )
        check_image_size(model, options.model, data.in_chans, data.size, "Give another --img-size")
        if pretrained:  # timm makes a new head if the classes differ, and adapts the first layers to other channels
            cfg = timm_config(model)
            channels, layers = cfg["input_size"][0], ", ".join(layer_names(cfg, "first_conv"))
            new = [] if cfg["num_classes"] == len(data.classes) else layer_names(cfg, "classifier")
            adapted = [] if channels == data.in_chans else [f"{layers} from {channels} to {data.in_chans} channels"]
            self.notes.append(weights_note(f"published weights {published_name(model)}", new, adapted))
            self._compare_statistics(cfg["mean"], cfg["std"])
        if options.checkpoint and metadata is None:
            tensors, start = read_weights(options.checkpoint)
            start.check_task("classification", "a classifier", options.checkpoint)
            self.notes.append(load_initial_weights(model, options.checkpoint, tensors, start, data.classes))
            self._compare_statistics(start.mean, start.std)
        if data.as_weights and metadata is None:
            self.notes.append(data.as_weights)
        if options.linear_probe:
            model.requires_grad_(False)
            if options.drop_path:
                self.notes.append("--drop-path has no effect: the blocks are frozen (--linear-probe)")
            heads = cast(Any, model).get_classifier()  # timm's distilled models have two heads
            for head in heads if isinstance(heads, tuple) else (heads,):
                head.requires_grad_(True)
        if options.teacher:
            self.frozen_helpers = (load_teacher(options, data),)
        return model

    def _compare_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Add a note if images are normalised differently than when the initial weights were trained."""
        ours, theirs = [*self.data.mean, *self.data.std], [*(mean or ()), *(std or ())]
        if len(ours) == len(theirs) and any(abs(a - b) > STATISTICS for a, b in zip(ours, theirs)):
            values = (",".join(f"{value:.3g}" for value in each) for each in (self.data.mean, self.data.std, mean, std))
            self.notes.append(
                "images are normalised with mean {} and std {}; to use the values that the weights were trained with, "
                "give --mean {} --std {}".format(*values)
            )

    def describe(self, model: nn.Module) -> dict[str, Any]:
        options, data = self.options, self.data
        return {
            "task": "classification",
            "model": options.model,
            "model_args": options.model_args,
            "num_classes": len(data.classes),
            "in_chans": data.in_chans,
            "img_size": data.size,
            "interpolation": options.interpolation,
            "crop_pct": 1.0 if data.held_in_memory else options.crop_pct,
            "memory": "auto" if data.held_in_memory else "no",
            "holdout": options.holdout,
            "data": data.name,
            **({"test_on": options.test_on} if options.test_on else {}),
            **({"test_share": options.test_share} if data.shares_images else {}),
            "test_split": data.splits.test.images.split,
            **({} if data.threshold is None else {"threshold": data.threshold}),
            **data.identity,
            "mean": list(data.mean),
            "std": list(data.std),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(model, (data.in_chans, data.size, data.size)),
        }


class Teacher(nn.Module):
    """Run the teacher on images that were normalised for the student.

    `ours` holds the mean and std of the student, and `its` holds the mean and std of the teacher.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, ours: Statistics, its: Statistics):
        super().__init__()
        student, teacher = (torch.tensor(statistics).view(2, -1, 1, 1) for statistics in (ours, its))
        self.model = model
        self.register_buffer("scale", student[1] / teacher[1])
        self.register_buffer("shift", (student[0] - teacher[0]) / teacher[1])

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:  # (n, C, H, W) -> (n, classes)
        return self.model(image * self.scale + self.shift).float()


def load_teacher(options: ClassificationOptions, data: ClassificationData) -> Teacher:
    """Build the teacher and load its weights; raise ValueError if it does not fit the student's classes and images."""
    checkpoint, name = options.teacher_checkpoint, f"the teacher {options.teacher}"
    trained = load_classifier(checkpoint, model=options.teacher, pretrained=not checkpoint)
    model, metadata = trained.model, trained.metadata
    assert metadata.mean and metadata.std
    its, ours = (metadata.num_classes or 0, metadata.in_chans or 0), (len(data.classes), data.in_chans)
    if its != ours:
        raise ValueError(
            f"{name} has {plural(its[0], 'class')} and takes {plural(its[1], 'channel')}, but {data.name} has "
            f"{plural(ours[0], 'class')} and {plural(ours[1], 'channel')}; give the --teacher-checkpoint of a model "
            f"that was trained on such data"
        )
    if (metadata.threshold is None) != (data.threshold is None):
        which = "one class" if metadata.threshold is None else "several labels"
        raise ValueError(f"{name} predicts {which} per image, unlike {data.name}; give another --teacher-checkpoint")
    for theirs, students in zip(metadata.classes or data.classes, data.classes):
        if theirs != students:
            raise ValueError(
                f"{name} has the class {theirs!r} where {data.name} has {students!r}, but it needs the same classes in "
                f"the same order; give another --teacher-checkpoint"
            )
    teacher = Teacher(model, (data.mean, data.std), (metadata.mean, metadata.std)).eval()
    check_image_size(teacher, name, data.in_chans, data.size, "Give another --teacher, or --img-size")
    return teacher
