"""Score classifiers: accuracy if each image has one class, or mAP and F1 if images may have several labels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.training.reports import by_name, total
from metamix.training.task import Batch, Metric, State
from metamix.utils.checks import check_finite
from metamix.weights.metadata import MAX_SCORED_CLASSES, Threshold


class ClassificationMetric(Metric):
    """Score a classifier that gives each image one class.

    `normalize` turns images (n, C, H, W) uint8 into model inputs.
    """

    threshold = None

    def __init__(self, classes: tuple[str, ...], normalize: Callable[[Tensor], Tensor]):
        if (count := len(classes)) > MAX_SCORED_CLASSES:
            limit = f"at most {MAX_SCORED_CLASSES:,}"
            raise ValueError(f"there are {count:,} classes, but {limit} can be scored: merge or drop classes")
        self.classes, self.normalize = classes, normalize

    def start(self) -> State:
        classes = len(self.classes)
        return {
            # [label, prediction]. NumPy's zeros take no memory before they are written to, but torch's zeros do.
            "confusion": torch.from_numpy(np.zeros((classes, classes), np.int64)),
            "in_top5": torch.zeros((), dtype=torch.int64),
            "loss": torch.zeros(()),
        }

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (n, classes)."""
        return model(self.normalize(batch["image"]))

    def update(self, state: State, outputs: Tensor, batch: Batch) -> None:
        """Add the logits (n, classes) of a batch to the state; raise ValueError if a logit is not finite."""
        logits, label = check_finite(outputs).float(), batch["label"]
        best = logits.topk(min(5, len(self.classes))).indices  # (n, 5)
        state["confusion"].index_put_((label, best[:, 0]), torch.ones_like(label), accumulate=True)
        state["in_top5"] += (best == label[:, None]).sum()
        state["loss"] += F.cross_entropy(logits, label, reduction="sum")

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the scores, top-1 first."""
        confusion = total(states, "confusion")
        count = int(confusion.sum())
        scores = {"top1": 100 * int(confusion.trace()) / count}
        if len(self.classes) > 5:  # with five classes or fewer, top-5 is always 100
            scores["top5"] = 100 * sum(int(state["in_top5"]) for state in states) / count
        return scores | {"loss": sum(float(state["loss"]) for state in states) / count}

    def by_class(self, states: list[State]) -> dict[str, dict[str, float | None]]:
        """Compute recall, precision and number of images of each class, by name."""
        confusion = total(states, "confusion")
        right, images = 100 * confusion.diagonal().double(), confusion.sum(1)
        return by_name(self.classes, recall=right / images, precision=right / confusion.sum(0), images=images)


class MultiLabelMetric(Metric):
    """Score a classifier of images with several labels from its logits: mAP, F1 and binary cross-entropy.

    mAP and F1 are means over the labels that at least one image has, in percent. A label is predicted if its
    probability reaches `threshold`: one number for all labels, or one number for each label.
    """

    def __init__(self, classes: tuple[str, ...], normalize: Callable[[Tensor], Tensor], threshold: Threshold):
        self.classes, self.normalize, self.threshold = classes, normalize, threshold

    def start(self) -> State:
        return {"logits_and_labels": [torch.zeros(0, 2 * len(self.classes))]}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (n, classes)."""
        return model(self.normalize(batch["image"])).float()

    def update(self, state: State, outputs: Tensor, batch: Batch) -> None:
        """Add the logits (n, classes) of a batch to the state; raise ValueError if a logit is not finite."""
        state["logits_and_labels"].append(torch.cat([check_finite(outputs), batch["label"]], 1))

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the scores, mAP first; if the threshold is not 0.5, also F1 at 0.5."""
        logits, labels = logits_and_labels(states)
        scores = logits.sigmoid()
        means = {"mAP": average_precision(logits, labels), "F1": f1(scores, labels, self.threshold)}
        means |= {} if self.threshold == 0.5 else {"F1_at_0.5": f1(scores, labels, 0.5)}
        loss = float(F.binary_cross_entropy_with_logits(logits, labels))
        return {name: float(values.nanmean()) for name, values in means.items()} | {"loss": loss}

    def choose(self, states: list[State]) -> dict[str, Any]:
        """Choose for each label the threshold with the best F1, and return the thresholds for the weight file.

        If several thresholds are equally good, choose the nearest to 0.5. A label without images keeps 0.5.
        """
        logits, labels = logits_and_labels(states)
        scores = logits.sigmoid()
        choices = sorted((i / 100 for i in range(1, 100)), key=lambda threshold: abs(threshold - 0.5))
        best = torch.stack([f1(scores, labels, threshold) for threshold in choices]).argmax(0)
        # argmax returns the first of equal values. A label without images has only NaN, and argmax returns the first.
        self.threshold = tuple(choices[i] for i in best.tolist())
        return {"threshold": self.threshold}

    def by_class(self, states: list[State]) -> dict[str, dict[str, float | None]]:
        """Compute average precision, F1, number of images and threshold of each label, by name."""
        logits, labels = logits_and_labels(states)
        columns = dict(AP=average_precision(logits, labels), F1=f1(logits.sigmoid(), labels, self.threshold))
        columns |= dict(images=labels.sum(0).long(), threshold=torch.tensor(self.threshold).expand(len(self.classes)))
        return by_name(self.classes, **columns)


def logits_and_labels(states: list[State]) -> Sequence[Tensor]:
    """Return the logits and the labels of all images, (N, classes) float32 each."""
    return torch.cat([part for state in states for part in state["logits_and_labels"]]).chunk(2, 1)


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the average precision of each label in percent, (classes,); NaN for a label without images."""
    from sklearn.metrics import average_precision_score  # takes a second to import

    # Images are ranked by logits, since in float32 all logits above 17 have the probability 1.
    columns = zip(labels.T.numpy(), logits.T.numpy())
    return torch.tensor([100 * average_precision_score(*each) if each[0].any() else math.nan for each in columns])


def f1(scores: Tensor, labels: Tensor, threshold: Threshold) -> Tensor:
    """Compute F1 of each label in percent, (classes,); NaN for a label without images."""
    predicted = scores >= torch.tensor(threshold)
    shares = 200 * (predicted * labels).sum(0) / (predicted.sum(0) + labels.sum(0))
    return shares.where(labels.any(0), math.nan)
