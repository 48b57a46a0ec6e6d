"""Draw the confusion matrix, and the scores of each class."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from metamix.training.reports import total
from metamix.training.task import Pictures, State
from metamix.utils.figures import draw_confusion, figure_text, save_figure

from .load import describe_threshold
from .metric import ClassificationMetric, MultiLabelMetric

BARS = 40  # largest number of classes in a bar chart


class ClassificationPictures(Pictures):
    """Draw and report the scores in the states of a metric."""

    def __init__(self, metric: ClassificationMetric | MultiLabelMetric):
        self.metric = metric

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        matrix, bars = (Path(folder) / f"test_{name}.png" for name in ("confusion", "classes"))
        draw_classes(bars, self.metric.by_class(states))
        if isinstance(self.metric, MultiLabelMetric):
            return [bars]
        confusion = total(states, "confusion")
        title = f"{int(confusion.sum()):,} samples, top-1 {self.metric.result(states)['top1']:.2f} %"
        draw_confusion(matrix, confusion, self.metric.classes, title)
        return [matrix, bars]

    def advice(self, states: list[State]) -> str:
        """Say which probability a label must reach to be predicted, if an image may have several labels."""
        return describe_threshold(self.metric.threshold)


def draw_classes(path: Path, by_class: Mapping[str, Mapping[str, float | None]]) -> None:
    """Draw bars for the first two scores of each class that has images, with the lowest first score on top.

    If there are more than `BARS` such classes, only the classes with the lowest first scores are drawn.
    """
    first, second, *_ = next(iter(by_class.values()))
    tested = [name for name, scores in by_class.items() if scores["images"]]
    shown = sorted(tested, key=lambda name: by_class[name][first] or 0.0)[:BARS]
    figure = Figure(figsize=(6.0, 1.6 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(shown))
    for shift, score in ((-0.2, first), (0.2, second)):
        axes.barh([row + shift for row in rows], [by_class[name][score] or 0.0 for name in shown], 0.38, label=score)
    axes.set_yticks(rows, [f"{figure_text(name)} ({by_class[name]['images']:,})" for name in shown])
    axes.invert_yaxis()
    title = (
        "classes (images)" if len(shown) == len(tested) else f"{BARS} of {len(tested)} classes with the lowest {first}"
    )
    axes.set(xlim=(0, 100), xlabel="%", title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(path, figure)
