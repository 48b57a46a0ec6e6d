"""Score segmentation by mean IoU, accuracies and boundary F-score.

C is the confusion matrix over all pixels that are not ignored. Its rows are labels, and its columns are predictions.

    IoU_k = C_kk / (sum of row k + sum of column k - C_kk)      mean IoU: over all classes in labels or predictions
    accuracy_k = C_kk / sum of row k                            mean accuracy: over all classes in labels
    pixel accuracy = trace C / sum C

    boundary F_k = 2 P R / (P + R)              for the boundary pixels of class k:
        P: share of the predicted boundary pixels that are near a true boundary pixel
        R: share of the true boundary pixels that are near a predicted boundary pixel

"Near" means within 0.75 % of the image's diagonal (Csurka et al., BMVC 2013). A pixel is on a boundary if the pixel
above, below, left or right of it has another class, and neither is ignored. Boundary pixels are counted over all
images, and the state holds the counts.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamix.training.reports import by_name, total
from metamix.training.task import Batch, Metric, State

from .inference import Predictor
from .labels import IGNORED

TOLERANCE = 0.0075  # share of the image's diagonal
SHOWN = 4  # number of best images, and of worst images, that each process keeps for pictures
SCORES = ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")


@dataclass(frozen=True)
class Shown:
    """An image to draw."""

    iou: float  # mean over the classes
    index: int
    name: str
    image: Tensor  # (3, h, w) uint8, as resized for the model
    truth: Tensor  # labels (H, W) uint8
    predicted: Tensor  # labels (H, W) uint8


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix (classes, classes) int64, whose rows are true labels; skip IGNORED pixels."""
    labelled = truth != IGNORED
    pairs = truth[labelled].long() * classes + predicted[labelled].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def class_scores(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Compute IoU and accuracy of each class, (classes,) float64; scores that are not defined are NaN."""
    right, labelled, predicted = (x.double() for x in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    return right / (labelled + predicted - right), right / labelled


def boundary_counts(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count boundary pixels of one image by class: (4, classes) int64.

    The rows count predicted boundary pixels, predicted boundary pixels near a true one, true boundary pixels, and true
    boundary pixels near a predicted one.
    """
    predicted = torch.where(truth == IGNORED, truth, predicted)
    labels = torch.cat([truth.unique(), predicted.unique()]).unique()
    labels = labels[labels < classes]
    boundaries = [boundary(labelled) & (labelled == labels[:, None, None]) for labelled in (predicted, truth)]
    radius = TOLERANCE * math.hypot(*truth.shape)
    drawn, real = boundaries
    near_drawn, near_real = (dilate(pixels, radius) for pixels in boundaries)
    counts = torch.zeros(4, classes, dtype=torch.int64, device=truth.device)
    for row, pixels in zip(counts, (drawn, drawn & near_real, real, real & near_drawn)):
        row[labels.long()] = pixels.sum((1, 2))
    return counts


def boundary(labels: Tensor) -> Tensor:
    """Find the pixels that have a neighbour with a different label, if neither is ignored: (H, W) -> (H, W) bool."""
    edges = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (0, 1):
        length = labels.shape[dim] - 1
        first, second = labels.narrow(dim, 0, length), labels.narrow(dim, 1, length)
        differ = (first != second) & (first != IGNORED) & (second != IGNORED)
        edges.narrow(dim, 0, length).logical_or_(differ)
        edges.narrow(dim, 1, length).logical_or_(differ)
    return edges


def dilate(pixels: Tensor, radius: float) -> Tensor:
    """Find the pixels within the Euclidean distance `radius` of a marked pixel: (n, H, W) bool -> (n, H, W) bool."""
    height, width = pixels.shape[-2:]
    row, reach, result = pixels.clone(), 0, torch.zeros_like(pixels)
    for y in range(min(int(radius), height - 1), -1, -1):  # the disk's rows become wider towards its middle
        while reach < min(int(math.sqrt(radius**2 - y**2)), width - 1):
            reach += 1
            row[..., reach:] |= pixels[..., :-reach]
            row[..., :-reach] |= pixels[..., reach:]
        result[:, y:] |= row[:, : height - y]
        result[:, : height - y] |= row[:, y:]
    return result


def boundary_scores(counts: Tensor) -> Tensor:
    """Compute the boundary F-score of each class, (classes,) float64, from `boundary_counts` of all images.

    A class that has a boundary in neither the truth nor the predictions gets NaN.
    """
    drawn, right, real, recalled = counts.double()
    precision, recall = right / drawn.clamp(min=1), recalled / real.clamp(min=1)
    scores = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where(drawn + real > 0, scores, math.nan)


class SegmentationMetric(Metric):
    """Score predicted labels.

    Args:
        normalize: function that turns images (1, 3, H, W) uint8 into the model's input.
        predictors: maps a prefix of score names to the predictor whose labels are scored; one prefix is "".
    """

    def __init__(
        self, classes: Sequence[str], normalize: Callable[[Tensor], Tensor], predictors: Mapping[str, Predictor]
    ):
        self.classes, self.normalize, self.predictors = tuple(classes), normalize, predictors

    def start(self) -> State:
        """Return an empty state, on the CPU: counts and images to show."""
        classes = len(self.classes)
        counts = {
            prefix + name: torch.zeros(shape, dtype=torch.int64)
            for prefix in self.predictors
            for name, shape in (("confusion", (classes, classes)), ("boundary", (4, classes)))
        }
        return counts | {"shown": []}

    def predict(self, model: nn.Module, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """Yield the predicted labels (H, W) of each image by prefix."""
        for image, truth in zip(batch["image"], batch["target"]):
            normalized, size = self.normalize(image[None]), (truth.shape[0], truth.shape[1])
            yield {prefix: predictor(model, normalized, size) for prefix, predictor in self.predictors.items()}

    def update(self, state: State, outputs: Iterable[Mapping[str, Tensor]], batch: Batch) -> None:
        """Add the counts of each image to the state; `outputs` are the values that `predict` yields."""
        rows = zip(outputs, batch["image"], batch["target"], batch["index"].tolist(), batch["name"], strict=True)
        for output, image, truth, index, name in rows:
            for prefix, predicted in output.items():
                confusion = confusion_matrix(truth, predicted, len(self.classes))
                state[f"{prefix}confusion"] += confusion
                state[f"{prefix}boundary"] += boundary_counts(truth, predicted, len(self.classes))
                if not prefix:
                    iou = float(class_scores(confusion)[0].nanmean())
                    shown = Shown(iou, index, name, image.cpu(), truth.cpu(), predicted.cpu())
                    if not math.isnan(iou):  # NaN if all pixels are ignored
                        state["shown"] = best_and_worst([*state["shown"], shown])

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the scores in percent, mean IoU first. Boundary F is missing if no class has a boundary."""
        if not int(total(states, "confusion").sum()):
            raise ValueError("no pixel is left to score: all images are unreadable, or all their pixels are ignored")
        scores: dict[str, float] = {}
        for prefix in self.predictors:
            confusion = total(states, f"{prefix}confusion")
            iou, accuracy = class_scores(confusion)
            pixel = int(confusion.trace()) / int(confusion.sum())
            edges = boundary_scores(total(states, f"{prefix}boundary"))
            values = (float(iou.nanmean()), pixel, float(accuracy.nanmean()), float(edges.nanmean()))
            scores |= {prefix + name: 100 * value for name, value in zip(SCORES, values) if not math.isnan(value)}
        return scores

    def by_class(self, states: list[State]) -> dict[str, dict[str, float | None]]:
        """Compute IoU, accuracy, boundary F-score and share of the pixels of each class, in percent."""
        confusion = total(states, "confusion")
        iou, accuracy = class_scores(confusion)
        edges, share = boundary_scores(total(states, "boundary")), confusion.sum(1).double() / confusion.sum()
        return by_name(self.classes, iou=100 * iou, accuracy=100 * accuracy, boundary_f=100 * edges, share=100 * share)


def best_and_worst(images: Iterable[Shown]) -> list[Shown]:
    """Return the images with the highest and the lowest mean IoU, the highest first."""
    ranked = sorted(images, key=lambda image: (-image.iou, image.index))
    return ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]


def describe_scores(predictor: Predictor) -> str:
    """Describe in one line how the scores are measured."""
    return f"scores of {predictor.describe()}, at the size of the masks; boundary F within 0.75 % of the diagonal"
