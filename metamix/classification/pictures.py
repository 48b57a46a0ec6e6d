"""Draw the confusion matrix, and recall and precision of each class."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from metamix.training.reports import left_out
from metamix.training.task import Pictures, State
from metamix.utils.figures import draw_confusion, figure_text, save_figure

from .metric import class_scores, total_confusion


class ClassificationPictures(Pictures):
    """Draw and report the states of `ClassificationMetric`."""

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        confusion = total_confusion(states)
        matrix, bars = (Path(folder) / f"test_{name}.png" for name in ("confusion", "classes"))
        accuracy = 100 * int(confusion.trace()) / max(1, int(confusion.sum()))
        title = f"{int(confusion.sum()):,} samples, top-1 {accuracy:.2f} %"
        draw_confusion(matrix, confusion, self.classes, title)
        draw_classes(bars, confusion, self.classes)
        return [matrix, bars]

    def report(self, states: list[State]) -> str:
        """Say how many images could not be read, if there are any."""
        return left_out(sum(int(state["unreadable"]) for state in states))


def draw_classes(path: Path, confusion: Tensor, classes: tuple[str, ...], most: int = 40) -> None:
    """Draw recall and precision of at most `most` classes as bars, the lowest recall at the top."""
    recall, precision, images = class_scores(confusion)
    tested = [i for i in range(len(classes)) if recall[i] is not None]
    shown = sorted(tested, key=lambda i: recall[i] or 0.0)[:most]
    figure = Figure(figsize=(6.0, 1.6 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(shown))
    for shift, name, values in ((-0.2, "recall", recall), (0.2, "precision", precision)):
        axes.barh([row + shift for row in rows], [values[i] or 0.0 for i in shown], height=0.38, label=name)
    axes.set_yticks(rows, [f"{figure_text(classes[i])} ({images[i]:,})" for i in shown])
    axes.invert_yaxis()
    title = "classes (images)" if len(shown) == len(tested) else f"the {most} of {len(tested)} classes of lowest recall"
    axes.set(xlim=(0, 100), xlabel="%", title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(path, figure)
