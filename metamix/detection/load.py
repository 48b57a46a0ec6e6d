"""A detector from what a file says of it: weights of train.py carry all that is needed to build their model again."""

from pathlib import Path
from typing import Any

from torch import nn

from metamix.utils.tensor_files import load_into, load_weights

from .detectors import build_detector


def build_described(about: dict[str, Any], **weights: Any) -> nn.Module:
    """The detector that `about` describes, for training images that are resized already.

    `weights` says where those of its backbone come from, as in `build_backbone`.
    """
    return build_detector(
        about["detector"],
        backbone=about["model"],
        num_classes=len(about["classes"]),
        backbone_args={key: about[key] for key in ("out_indices", "extra", "out_channels", "frozen_norms")}
        | about["model_args"]
        | weights,
        min_size=about["min_size"],
        max_size=about["max_size"],
        resize_in_training=False,
        **about["detector_args"],
    )


def load_detector(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The detector in a file or run folder of train.py, and what is known of it: "classes", for one.

    ValueError where the file holds something else; FileNotFoundError.
    """
    tensors, about = load_weights(path)
    if about.get("task") != "detection":
        found = about.get("model", "weights without a description")
        raise ValueError(f"{path} holds no detector of metamix, but {found}; give a run of train.py --task detection")
    model = build_described(about)
    load_into(model, tensors, str(path))
    model.transform.image_mean, model.transform.image_std = about["mean"], about["std"]
    return model, about


def load_pretrained(model: nn.Module, path: str | Path, classes: list[str]) -> list[str]:
    """Loads the weights of a detector of the same build, to fine-tune it; layers for other classes are left as they
    are.

    Returns the names of the weights that were left.
    """
    tensors, about = load_weights(path)
    if about.get("classes", classes) != classes:  # as many, perhaps, but others
        tensors = {name: value for name, value in tensors.items() if not name.startswith(model.classifier)}
    return load_into(model, tensors, str(path), head=model.classifier)
