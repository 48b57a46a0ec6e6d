"""Score classifiers: top-1 and top-5 accuracy, cross-entropy, recall and precision of each class."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.training.task import Batch, State
from metamix.utils.checks import check_finite


class ClassificationMetric:
    """Score a classifier from its confusion matrix; `normalize` turns images (n, C, H, W) uint8 into its input."""

    lower_is_better = False

    def __init__(self, classes: tuple[str, ...], normalize: Callable[[Tensor], Tensor]):
        self.classes, self.normalize = classes, normalize

    def start(self) -> State:
        classes = len(self.classes)
        return {
            "confusion": torch.zeros(classes, classes, dtype=torch.int64),  # [label, prediction]
            "in_top5": torch.zeros((), dtype=torch.int64),
            "loss": torch.zeros(()),
            "unreadable": torch.zeros((), dtype=torch.int64),  # images that are left out of the scores
        }

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (n, classes)."""
        return model(self.normalize(batch["image"]))

    def update(self, state: State, outputs: Tensor, batch: Batch) -> None:
        """Add the logits (n, classes) of a batch to the state; raise ValueError if a logit is not finite."""
        was_read = batch["index"] >= 0
        logits = check_finite(outputs).float()[was_read]
        label, classes = batch["label"][was_read], len(self.classes)
        best = logits.topk(min(5, classes)).indices  # (n, 5)
        state["confusion"] += torch.bincount(label * classes + best[:, 0], minlength=classes**2).view(classes, classes)
        state["in_top5"] += (best == label[:, None]).sum()
        state["loss"] += F.cross_entropy(logits, label, reduction="sum")
        state["unreadable"] += (~was_read).sum()

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the scores, top-1 first."""
        confusion = total_confusion(states)
        count = int(confusion.sum())
        scores = {"top1": 100 * int(confusion.trace()) / count}
        if len(self.classes) > 5:  # with five classes or fewer it is always 100
            scores["top5"] = 100 * sum(int(state["in_top5"]) for state in states) / count
        return scores | {"loss": sum(float(state["loss"]) for state in states) / count}

    def by_class(self, states: list[State]) -> dict[str, dict[str, float | None]]:
        """Compute recall, precision and number of images of each class, by name."""
        return {
            name: {"recall": recall, "precision": precision, "images": images}
            for name, recall, precision, images in zip(self.classes, *class_scores(total_confusion(states)))
        }


def class_scores(confusion: Tensor) -> tuple[list[float | None], list[float | None], list[int]]:
    """Compute the scores of each class from a confusion matrix.

    Returns:
        Recall and precision in percent, and the number of images. Recall is None for a class without images, precision
        for a class that was never predicted.
    """
    right = confusion.diagonal()
    images, predicted = confusion.sum(1), confusion.sum(0)

    def percent(total: Tensor) -> list[float | None]:
        return [round(100 * r / n, 2) if n else None for r, n in zip(right.tolist(), total.tolist())]

    return percent(images), percent(predicted), images.tolist()


def total_confusion(states: list[State]) -> Tensor:
    """Sum the confusion matrices of all states: (classes, classes) int64, rows are labels, columns predictions."""
    return torch.stack([state["confusion"] for state in states]).sum(0)
