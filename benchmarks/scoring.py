"""Score models on the test split of the data that they were trained on."""

import argparse
from collections.abc import Iterator
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metamix  # noqa: F401 - registers the models with timm
from metamix.classification.options import ModelOptions
from metamix.classification.task import Classification
from metamix.restoration.task import Restoration
from metamix.training.forward import score_batches
from metamix.training.processes import ProcessGroup


def tag_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with --tag and --data-dir, for a command that scores the weights of one tag."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", help="tag of the weights, such as digits or cifar10")
    parser.add_argument("--data-dir", help="folder of the data, as in training; the digits need none")
    return parser


def score(task: Classification, model: nn.Module) -> tuple[float, Tensor]:
    """Run a model in float32 on the test split; return its top-1 accuracy in percent and the confusion matrix."""
    model.eval().to(memory_format=torch.channels_last)
    loader = task.data.eval_loaders(256, 0, 1)["test"]
    scores, states = score_batches(task.metric, model, loader, ProcessGroup.start("cpu"), None, torch.channels_last)
    return scores["top1"], states[0]["confusion"]


def score_restoration(task: Restoration, model: nn.Module) -> dict[str, float]:
    """Run a model in float32 on the task's test images; return its scores by name."""
    loader = task.data.eval_loaders(1, 0, 1)["test"]
    return score_batches(task.metric, model, loader, ProcessGroup.start("cpu"), None, torch.channels_last)[0]


def check_reproduced(card: dict, top1: float) -> None:
    """Raise ValueError if a measured accuracy differs from the accuracy on a card by more than 0.011 points.

    One prediction of 10,000 may depend on the machine.
    """
    if abs(top1 - card["top1"]) > 0.011:
        raise ValueError(
            f"{card['name']} scores {top1} % on these data, but its card says {card['top1']} %: give --data-dir with "
            f"the data that it was trained on, or ship the weights again"
        )


def six_views(images: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yield (weight, view): images (N, C, H, W), two copies moved diagonally by a pixel, and all three mirrored."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1,) * 4, mode="reflect")
    moved = [padded[..., :height, :width], padded[..., 2:, 2:]]
    for weight, view in [(0.25, images), (0.125, moved[0]), (0.125, moved[1])]:
        yield weight, view
        yield weight, view.flip(-1)


def task_of(card: dict, data_dir: str | None, size: int | None = None) -> Classification:
    """Open the data that a card's model was trained on, with its normalisation, interpolation and centre crop.

    The digits need no `data_dir`. `size` is the side of the images in pixels, by default the side on the card.
    """
    cfg = card["pretrained_cfg"]
    size = size or cfg["input_size"][1]
    like_it = {key: cfg[key] for key in ("interpolation", "crop_pct")} | {k: tuple(cfg[k]) for k in ("mean", "std")}
    return _open(data=card["recipe"]["data"], data_dir=data_dir, img_size=size, **like_it)


@cache
def _open(**options: Any) -> Classification:
    return Classification(ModelOptions(**options))


def load(card: dict, **arguments: Any) -> nn.Module:
    """Load the model of a card with its weights, in evaluation mode; `arguments` are further arguments of the model."""
    model = timm.create_model(card["name"], pretrained=True, **arguments)
    return model.eval().to(memory_format=torch.channels_last)
