"""Load the teacher of knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metamix.models.registry import check_image_size
from metamix.utils.text import plural

from .data import ClassificationData
from .load import load_classifier
from .options import ClassificationOptions


class Teacher(nn.Module):
    """Run a classifier, with its own mean and std, on images that were normalised with the student's."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        own_mean: Sequence[float],
        own_std: Sequence[float],
    ):
        super().__init__()
        student, teacher = (torch.tensor([m, s]).view(2, -1, 1, 1) for m, s in ((mean, std), (own_mean, own_std)))
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
            f"{name} has {plural(its[0], 'class')} and takes {plural(its[1], 'channel')}, and {options.data} has "
            f"{plural(ours[0], 'class')} and {plural(ours[1], 'channel')}; give --teacher-checkpoint of one that was "
            f"trained on such data"
        )
    if (metadata.threshold is None) != (data.threshold is None):
        which = "one class" if metadata.threshold is None else "several labels"
        raise ValueError(f"{name} gives an image {which}, unlike {options.data}; give another --teacher-checkpoint")
    for theirs, own in zip(metadata.classes or data.classes, data.classes):
        if theirs != own:
            raise ValueError(
                f"{name} has the class {theirs!r} where {options.data} has {own!r}; give --teacher-checkpoint of one "
                f"that was trained on such data"
            )
    teacher = Teacher(model, data.mean, data.std, metadata.mean, metadata.std).eval()
    check_image_size(teacher, name, data.in_chans, data.size, "Give another --teacher, or --img-size")
    return teacher
