"""Draw the pictures that need no data set, from results/ and the cards in weights/, into docs/images/.

    python -m benchmarks.report.figures

They show the mixers on CIFAR-10 (accuracy against cost, training losses, accuracy against latency in each engine), mean
IoU on CamVid against latency, and time and memory against image size. `benchmarks.report.mixer_views` and
`benchmarks.report.restoration_views` draw the pictures that need images.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from benchmarks.measure.collect import TRANSFER
from benchmarks.paths import IMAGES, read_json
from benchmarks.report import deploy
from benchmarks.report.speed import scaling_curves
from benchmarks.weight_cards import by_mixer, load_cards
from metamix.mixers import list_mixers
from metamix.utils.figures import save_figure

# The palette of Okabe and Ito, and grey for identity.
COLORS = dict(zip(list_mixers(), ("#777777", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")))
ENGINE_COLORS = {"eager": "#777777", "compile": "#cc79a7", "onnxruntime": "#d55e00", "openvino": "#0072b2"}
LINES = {"fp32": "-", "bf16": "--", "int8": ":"}
LATENCY = "latency of one image in OpenVINO int8, ms"
WIDTH, DPI = 8.8, 200  # inches, and pixels per inch


def draw_curves(path: Path, family: dict[str, dict]) -> None:
    """Draw the training loss over the epochs, from the learning curves of the cards."""
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    for mixer, card in family.items():
        losses = card["curve"]["train_loss"]
        style = {"color": COLORS[mixer], "lw": 1.5, "ls": "--" if mixer == "identity" else "-"}
        axes.plot(range(1, len(losses) + 1), losses, **style, label=mixer)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(family), frameon=False, handlelength=1.2, columnspacing=1.2)
    save_figure(path, figure, DPI)


def draw_fronts(path: Path, score: str, panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Draw a score against costs, with a panel and a Pareto front for each cost.

    `panels` is {label of the cost: {mixer or model: (cost, score)}}; empty panels are left out.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {cost: points for cost, points in panels.items() if points}
    drawn = list(zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.values()))
    for (axes, points), cost in zip(drawn, panels):
        for name, point in points.items():
            axes.plot(*point, "o", ms=7, color=COLORS.get(name, "black"))
        axes.set_xlabel(cost)
        axes.margins(0.16)
        axes.grid(alpha=0.3)
        corners = front(list(points.values()))
        axes.set_xlim(axes.get_xlim())
        axes.plot(*zip(*corners, (axes.get_xlim()[1], corners[-1][1])), color="0.5", lw=1, ls="--", zorder=1)
    drawn[0][0].set_ylabel(score)
    figure.draw_without_rendering()  # so that names can be placed beside points
    for axes, points in drawn:
        name_points(axes, points)
    save_figure(path, figure, DPI)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the Pareto front of points (cost, accuracy), as a staircase."""
    steps: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not steps or y > steps[-1][1]:
            steps += [*((x, best) for _, best in steps[-1:]), (x, y)]
    return steps


def name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points, at the first free position inside the axes, or at the last if none is free."""
    spots = {name: axes.transData.transform(point) for name, point in points.items()}
    taken, frame = [], axes.get_window_extent()
    offsets = [(dx, dy) for dy in (4, -4, 16, -16, 28, -28) for dx in (5, -5)]  # points
    sides = [(dx, dy, "left" if dx > 0 else "right", "bottom" if dy > 0 else "top") for dx, dy in offsets]
    for name, point in points.items():
        for dx, dy, ha, va in sides:
            color = COLORS.get(name, "black")
            line = {"arrowstyle": "-", "color": color, "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
            placed = {"xytext": (dx, dy), "textcoords": "offset points", "ha": ha, "va": va, "color": color}
            text = axes.annotate(name, point, **placed, arrowprops=line)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
            text.get_window_extent()  # moves the text to its place; this extent includes the line
            box = Text.get_window_extent(text)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            near = box.padded(7)  # pixels; a little more than the radius of a point
            covers = any(near.contains(*spot) for other, spot in spots.items() if other != name)
            if inside and not covers and not any(map(box.overlaps, taken)):
                break
            if (dx, dy, ha, va) != sides[-1]:
                text.remove()
        taken.append(box)


def draw_scaling(path: Path, curves: dict[str, dict]) -> None:
    """Draw time and memory of one image against its size."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = ("ms", "time", "time, ms"), ("mib", "memory", "memory added by the passes, MiB")
    for axes, (key, exponent, title) in zip(figure.subplots(1, 2), panels):
        for mixer, curve in curves.items():
            style = {"marker": "o", "ms": 4, "lw": 1.8, "color": COLORS[mixer]}
            axes.plot(curve["sizes"], curve[key], label=f"{mixer}, {curve[exponent]:.2f}", **style)
        axes.set(xscale="log", yscale="log", title=title, xlabel="side of the image, pixels")
        axes.xaxis.set(major_locator=FixedLocator([32, 64, 128, 256, 512, 1024]))
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)))
        for line in (axes.xaxis, axes.yaxis):
            line.set(minor_locator=NullLocator(), major_formatter=StrMethodFormatter("{x:g}"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(title="mixer, exponent of the number of pixels", frameon=False)
    save_figure(path, figure, DPI)


def draw_engines(path: Path, cells: Mapping[deploy.Cell, Mapping[str, tuple[float, float]]]) -> None:
    """Draw accuracy against latency, with a line for each engine and precision and a point for each mixer."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for (engine, precision), points in cells.items():
        style = {"color": ENGINE_COLORS[engine], "ls": LINES[precision], "marker": "o", "ms": 4, "lw": 1.6}
        axes.plot(*zip(*points.values()), **style, label=deploy.title(engine, precision))
    accuracies: dict[str, list[float]] = {}
    for points in cells.values():
        for mixer, (_, top1) in points.items():
            accuracies.setdefault(mixer, []).append(top1)
    right = axes.secondary_yaxis("right")
    heights = apart({mixer: median(values) for mixer, values in accuracies.items()}, axes.get_ylim())
    right.set_yticks(list(heights.values()), list(heights))
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    axes.set(xscale="log", xlabel="latency of one image, ms", ylabel="test accuracy, %")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    save_figure(path, figure, DPI)


def apart(heights: Mapping[str, float], limits: tuple[float, float]) -> dict[str, float]:
    """Move labels up until each is at least a line of text above the label below it."""
    least, below, moved = 0.045 * (limits[1] - limits[0]), float("-inf"), {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        below = moved[name] = max(height, below + least)
    return moved


def transfer_points(data: str) -> dict[str, tuple[float, float]]:
    """Return {mixer or model: (ms of one image, score)} of `imagenet` and `tiny_in200` weights fine-tuned on `data`."""
    cells = {(row["model"], *deploy.cell_of(row), row["batch"]): row["ms"] for row in deploy.load("speed")["rows"]}
    scores: dict[str, list[float]] = {}  # a score for each seed
    for row in read_json(TRANSFER)["rows"]:
        if row["data"] == data and row["start"] in ("imagenet", "tiny_in200"):
            scores.setdefault(row["model"], []).append(row["score"])
    return {deploy.mixer_of(model): (cells[model, "openvino", "int8", 1], mean(each)) for model, each in scores.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    family = by_mixer(load_cards("cifar10"))
    engines = deploy.points()
    trained = {mixer: (card["parameters"] / 1e6, card["top1"]) for mixer, card in family.items()}
    costs = {"parameters, millions": trained, LATENCY: engines.get(("openvino", "int8"), {})}
    draw_fronts(IMAGES / "cifar10-front.png", "test accuracy, %", costs)
    draw_fronts(IMAGES / "transfer.png", "CamVid: mean IoU, %", {LATENCY: transfer_points("camvid")})
    draw_curves(IMAGES / "cifar10-curves.png", family)
    draw_scaling(IMAGES / "scaling.png", scaling_curves())
    if engines:
        draw_engines(IMAGES / "cifar10-engines.png", engines)


if __name__ == "__main__":
    main()
