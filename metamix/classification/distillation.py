"""Load the teacher of knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metamix.utils.tensor_files import load_into

from .data import ClassificationData
from .load import check_image_size, create_model, read_classifier, timm_config
from .options import ClassificationOptions


class Teacher(nn.Module):
    """Run a classifier on images that were normalised with the student's statistics.

    Args:
        model: the classifier.
        mean, std: statistics that the images were normalised with.
        own_mean, own_std: statistics that the classifier was trained with.
    """

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
        given, own = (torch.tensor([m, s]).view(2, -1, 1, 1) for m, s in ((mean, std), (own_mean, own_std)))
        self.model = model
        self.register_buffer("scale", given[1] / own[1])
        self.register_buffer("shift", (given[0] - own[0]) / own[1])

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:  # (n, C, H, W) -> (n, classes)
        return self.model(image * self.scale + self.shift).float()


def load_teacher(options: ClassificationOptions, data: ClassificationData) -> Teacher:
    """Build the teacher and load its weights.

    Raises:
        ValueError: it was trained for other classes or channels, or does not take the student's images.
    """
    assert options.teacher
    shape = {"num_classes": len(data.classes), "in_chans": data.in_chans, "img_size": data.size}
    if options.teacher_checkpoint:
        tensors, metadata = read_classifier(options.teacher_checkpoint)
        model = create_model(options.teacher, **shape | metadata.shape | metadata.model_args)
        load_into(model, tensors, options.teacher_checkpoint)
        mean, std = metadata.mean or data.mean, metadata.std or data.std
        classes = metadata.classes or data.classes
    else:
        model = create_model(options.teacher, pretrained=True, in_chans=data.in_chans)
        config = timm_config(model)
        mean, std = config["mean"], config["std"]
        classes = data.classes
    if (model.num_classes, len(mean)) != (len(data.classes), data.in_chans):
        raise ValueError(
            f"the teacher {options.teacher} has {model.num_classes} classes and takes {len(mean)} channels, and "
            f"{options.data} has {len(data.classes)} classes and {data.in_chans} channels; give --teacher-checkpoint "
            f"of one that was trained on such data"
        )
    for theirs, ours in zip(classes, data.classes):
        if theirs != ours:
            raise ValueError(
                f"the teacher {options.teacher_checkpoint} has the class {theirs!r} where {options.data} has "
                f"{ours!r}; give --teacher-checkpoint of one that was trained on such data"
            )
    teacher = Teacher(model, data.mean, data.std, mean, std).eval()
    name = f"the teacher {options.teacher}"
    check_image_size(teacher, name, data.in_chans, data.size, "Give another --teacher, or --img-size")
    return teacher
