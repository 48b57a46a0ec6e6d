"""Pictures of boxes: on one image, truth beside prediction for many, and how precision falls as recall grows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from metamix.utils.figures import plain, save_figure

from .metrics import Scores

Objects = dict[str, Tensor]  # "boxes" (n, 4) x1, y1, x2, y2, "labels" (n,) from 1, and for predictions "scores" (n,)


def colour_of(label: int, classes: Sequence[str]) -> tuple[float, ...]:
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    return colours[(label - 1) % len(colours)]


def draw_objects(axes: Axes, image: Tensor, objects: Objects, classes: Sequence[str], named: bool = True) -> None:
    """An image, (3, H, W) uint8, with its boxes, a colour for each class."""
    axes.imshow(image.permute(1, 2, 0).numpy())
    axes.set_axis_off()
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(objects["boxes"])
    for (x0, y0, x1, y1), label, score in zip(objects["boxes"].tolist(), objects["labels"].tolist(), scores):
        colour = colour_of(label, classes)
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        if named:
            text = classes[label - 1] + (f" {score:.2f}" if score is not None else "")
            high, right = y0 < 14, x0 + 7 * len(text) > image.shape[2]  # a label would be cut off at the edge
            axes.text(
                x1 if right else x0,
                y0,
                plain(text),
                color="white",
                fontsize=7,
                verticalalignment="top" if high else "bottom",
                horizontalalignment="right" if right else "left",
                bbox=dict(facecolor=colour, edgecolor="none", pad=0.5),
            )


def draw_image(path: Path, image: Tensor, objects: Objects, classes: Sequence[str]) -> None:
    """One image with its boxes, as large as it is."""
    figure = Figure(figsize=(image.shape[2] / 110, image.shape[1] / 110))
    draw_objects(figure.add_axes((0, 0, 1, 1)), image, objects, classes)
    save_figure(path, figure)


def draw_grid(path: Path, rows: Sequence[tuple[str, Tensor, Objects, Objects]], classes: Sequence[str]) -> None:
    """Two images with truth and prediction in a line; `rows` are a title, the image, what is there and what was
    found."""
    lines = -(-len(rows) // 2)
    figure = Figure(figsize=(13, 2.6 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (title, image, truth, found) in enumerate(rows):
        left, right = grid[i // 2, 2 * (i % 2) : 2 * (i % 2) + 2]
        draw_objects(left, image, truth, classes, named=False)
        draw_objects(right, image, found, classes, named=False)
        left.set_title(f"{plain(title)}: truth", fontsize="small")
        right.set_title("found", fontsize="small")
    shown = sorted({label for _, _, *both in rows for objects in both for label in objects["labels"].tolist()})
    handles = [Patch(color=colour_of(label, classes), label=plain(classes[label - 1])) for label in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize="small")
    save_figure(path, figure)


def draw_precision_recall(path: Path, scores: Scores) -> None:
    """Precision over recall at IoU 0.5 for each class: the area under a curve is its AP50. Of many classes only the
    mean."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    recall = [i / 100 for i in range(101)]
    curves = list(scores.precision.items())
    for name, precision in curves if len(curves) <= 10 else ():
        axes.plot(recall, precision, label=f"{plain(name)}, AP50 {scores.classes[name]['AP50']:.1f}")
    if len(curves) > 1:
        mean = sum(precision for _, precision in curves) / len(curves)
        axes.plot(recall, mean, color="black", label=f"all classes, AP50 {scores.summary['AP50']:.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01), title="IoU 0.5")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    save_figure(path, figure)
