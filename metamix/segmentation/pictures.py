"""Draw pictures of segmentation: the best and the worst images, the confusion matrix, and overlays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from torch import Tensor

from metamix.training.reports import total
from metamix.training.task import Pictures, State
from metamix.utils.figures import draw_confusion, figure_text, image_grid, save_figure
from metamix.utils.files import write_text
from metamix.utils.text import aligned, csv_text

from .labels import IGNORED, Labels, colours_of
from .metric import SegmentationMetric, Shown, best_and_worst

OPACITY = 0.55  # opacity of the labels' colours over an image
MAX_LEGEND_CLASSES = 40


class SegmentationPictures(Pictures):
    """Draw pictures and report scores from the states of `SegmentationMetric`."""

    def __init__(self, metric: SegmentationMetric, labels: Labels):
        self.metric, self.labels = metric, labels

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        """Draw the best and worst images and the confusion matrix, and write the matrix as a CSV; return the files."""
        images, matrix, table = (folder / f"test_{name}" for name in ("images.png", "confusion.png", "confusion.csv"))
        confusion, scores = total(states, "confusion"), self.metric.result(states)
        draw_images(images, best_and_worst(row for state in states for row in state["shown"]), self.labels)
        title = f"{int(confusion.sum()):,} pixels, mean IoU {scores['miou']:.2f} %"
        draw_confusion(matrix, confusion, self.labels.classes, title, of="pixels", percent=True)
        rows = [[name, *row] for name, row in zip(self.labels.classes, confusion.tolist())]
        write_text(table, csv_text([["label", *self.labels.classes], *rows]))
        return [images, matrix, table]

    def details(self, states: list[State]) -> list[str]:
        """Return a table of the scores of each class."""
        names = {"iou": "IoU", "accuracy": "accuracy", "boundary_f": "boundary F", "share": "% of pixels"}
        rows = [
            [label, *("-" if row[key] is None else f"{row[key]:.2f}" for key in names)]
            for label, row in self.metric.by_class(states).items()
        ]
        return aligned([["class", *names.values()], *rows], right=range(1, 1 + len(names)))


def draw_images(path: Path, rows: Sequence[Shown], labels: Labels) -> None:
    """Draw a row for each image: the image, its true labels, the prediction and the errors."""
    titles, lines = ("image", "truth", "prediction", "errors"), max(1, len(rows))
    figure, grid = image_grid(lines, len(titles), figsize=(13, 2.6 * lines + 0.5))
    colours = colours_of(len(labels.classes), labels.palette)
    present: set[int] = set()
    for row, line in zip(rows, grid):
        pictures = (row.image.permute(1, 2, 0).numpy(), colours[row.truth.numpy()], colours[row.predicted.numpy()])
        for axes, picture in zip(line, (*pictures, error_map(row.truth, row.predicted))):
            axes.imshow(picture)
        line[0].set_title(figure_text(f"{row.name}, mean IoU {100 * row.iou:.1f} %"), fontsize="small", loc="left")
        for axes, title in zip(line[1:], titles[1:]):
            axes.set_title(title, fontsize="small")
        present |= set(row.truth.unique().tolist()) | set(row.predicted.unique().tolist())
    names = [(k, figure_text(labels.classes[k])) for k in sorted(present - {IGNORED})[:MAX_LEGEND_CLASSES]]
    names += [(IGNORED, "ignored")] if IGNORED in present else []
    handles = [Patch(facecolor=tuple(colours[k] / 255), edgecolor="grey", label=name) for k, name in names]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=10, fontsize="small")
    save_figure(path, figure)


def error_map(truth: Tensor, predicted: Tensor) -> np.ndarray:
    """Show wrong pixels in red, right pixels in white and ignored pixels in grey: (H, W, 3) uint8."""
    picture = np.full((*truth.shape, 3), 255, dtype=np.uint8)
    picture[(truth != predicted).numpy()] = (200, 30, 30)
    picture[(truth == IGNORED).numpy()] = (150, 150, 150)
    return picture


def overlay(image: Tensor, predicted: Tensor, colours: np.ndarray) -> np.ndarray:
    """Blend the colours of labels (H, W) into an image (3, H, W) uint8: (H, W, 3) uint8."""
    below = image.permute(1, 2, 0).numpy().astype(np.float32)
    above = colours[predicted.numpy()].astype(np.float32)
    return ((1 - OPACITY) * below + OPACITY * above).round().astype(np.uint8)
