"""Draw the objects of an image, the ground truth beside the detections, and precision-recall curves."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from metamix.data import CorruptImage
from metamix.training.task import Pictures, State
from metamix.utils.figures import figure_text, image_grid, save_figure
from metamix.utils.files import write_text

from .metric import DetectionMetric, Detections, Scores, from_coco, table
from .objects import Objects, decode

SHOWN = 4  # number of the best and of the worst images to draw
SURE = 0.5  # lowest score of the detections that are drawn


class DetectionPictures(Pictures):
    """Draw precision-recall curves and the best and worst images, and write the scores of each class."""

    def __init__(self, metric: DetectionMetric):
        self.metric, self.data = metric, metric.data

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        curves, images, numbers = (folder / f"test_{name}" for name in ("curves.png", "images.png", "scores.json"))
        scores = self.metric.scores(states)
        draw_precision_recall(curves, scores[""])
        draw_grid(images, self.best_and_worst(states, scores[""]), self.data.classes)
        results = {"all": scores[""].summary, "classes": scores[""].classes}
        if of_masks := scores.get("mask_"):
            results["masks"] = {"all": of_masks.summary, "classes": of_masks.classes}
        write_text(numbers, json.dumps(results, indent=2) + "\n")
        return [curves, images, numbers]

    def best_and_worst(self, states: list[State], scores: Scores) -> list[tuple[str, Tensor, Objects, Objects]]:
        """Return title, image, ground truth and detections of the images with the highest and the lowest F1."""
        split = self.data.scored_split(states)
        ranked = sorted(scores.images, key=scores.images.__getitem__, reverse=True)
        chosen = ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]
        detections: dict[int, Detections] = {image_id: [] for image_id in chosen}
        for detection in (d for state in states for d in state["results"]):
            if detection["image_id"] in detections and detection["score"] >= SURE:
                detections[detection["image_id"]].append(detection)
        rows = []
        for image_id in chosen:
            try:
                image, truth = split.read(split.ids.index(image_id))
            except CorruptImage:  # reported by the loader
                continue
            title = f"{split.coco.imgs[image_id]['file_name']}, F1 {scores.images[image_id]:.2f}"
            rows.append((title, image, truth, from_coco(detections[image_id], split)))
        return rows

    def details(self, states: list[State]) -> list[str]:
        """Return a table of the box scores and, for Mask R-CNN, a table of the mask scores."""
        boxes, *masks = map(table, self.metric.scores(states).values())
        return ["boxes", boxes, "masks", *masks] if masks else [boxes]


def colour_of(label: int, classes: Sequence[str]) -> tuple[float, float, float, float]:
    """Return the colour of a class, as RGBA."""
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    return colours((label - 1) % colours.N)


def draw_objects(axes: Axes, image: Tensor, objects: Objects, classes: Sequence[str], named: bool = True) -> None:
    """Draw an image, (3, H, W) uint8, with boxes and masks in the colours of their classes; `named` adds labels."""
    labels = objects["labels"].tolist()
    pixels = image.permute(1, 2, 0).numpy().copy()
    for runs, label in zip(objects.get("runs", ()), labels):
        inside = decode(runs)
        pixels[inside] = 0.5 * pixels[inside] + 127.5 * np.array(colour_of(label, classes)[:3])
    axes.imshow(pixels, extent=(0, image.shape[2], image.shape[1], 0))
    axes.set_axis_off()
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(labels)
    for (x0, y0, x1, y1), label, score in zip(objects["boxes"].tolist(), labels, scores, strict=True):
        colour = colour_of(label, classes)
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        if named:
            text = classes[label - 1] + (f" {score:.2f}" if score is not None else "")
            at_top, at_right = y0 < 14, x0 + 7 * len(text) > image.shape[2]  # where the text would be cut off
            axes.text(
                x1 if at_right else x0,
                y0,
                figure_text(text),
                color="white",
                fontsize=7,
                verticalalignment="top" if at_top else "bottom",
                horizontalalignment="right" if at_right else "left",
                bbox=dict(facecolor=colour, edgecolor="none", pad=0.5),
            )


def draw_image(path: Path, image: Tensor, objects: Objects, classes: Sequence[str]) -> None:
    """Draw one image with its boxes and masks, at the size of the image."""
    height, width = ((side + 0.1) / 110 for side in image.shape[1:])  # in inches; matplotlib 3.10.0 rounds pixels down
    figure = Figure(figsize=(width, height))
    draw_objects(figure.add_axes((0, 0, 1, 1)), image, objects, classes)
    save_figure(path, figure)


def draw_grid(path: Path, rows: Sequence[tuple[str, Tensor, Objects, Objects]], classes: Sequence[str]) -> None:
    """Draw ground truth beside detections, two images per line; `rows` holds title, image, truth and detections."""
    lines = max(1, -(-len(rows) // 2))
    figure, grid = image_grid(lines, 4, figsize=(13, 2.6 * lines + 0.4))
    for i, (title, image, truth, detected) in enumerate(rows):
        left, right = grid[i // 2, 2 * (i % 2) : 2 * (i % 2) + 2]
        draw_objects(left, image, truth, classes, named=False)
        draw_objects(right, image, detected, classes, named=False)
        left.set_title(f"{figure_text(title)}: truth", fontsize="small")
        right.set_title("found", fontsize="small")
    shown = sorted({label for _, _, *both in rows for objects in both for label in objects["labels"].tolist()})
    handles = [Patch(color=colour_of(label, classes), label=figure_text(classes[label - 1])) for label in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize="small")
    save_figure(path, figure)


def draw_precision_recall(path: Path, scores: Scores) -> None:
    """Draw precision-recall curves at IoU 0.5: one per class for up to ten classes, and the mean over all classes.

    For a single class, no mean is drawn.
    """
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    recall = [i / 100 for i in range(101)]
    curves = list(scores.precision.items())
    for name, precision in curves if len(curves) <= 10 else ():
        axes.plot(recall, precision, label=f"{figure_text(name)}, AP50 {scores.classes[name]['AP50']:.1f}")
    if len(curves) > 1:
        mean = sum(precision for _, precision in curves) / len(curves)
        axes.plot(recall, mean, color="black", label=f"all classes, AP50 {scores.summary['AP50']:.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01), title="IoU 0.5")
    axes.grid(alpha=0.3)
    # Without handles, the legend leaves out names that begin with an underscore.
    axes.legend(handles=axes.get_lines(), loc="lower left", fontsize="small")
    save_figure(path, figure)
