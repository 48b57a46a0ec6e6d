"""Draw the pictures that need no data set, from results/ and the cards in weights/, into docs/images/.

    python -m benchmarks.report.figures

Accuracy against cost and the learning curves of the mixers on CIFAR-10, accuracy against latency in each engine, and
time and memory against image size.
`python -m benchmarks.report.mixer_views` draws what each mixer looks at, which needs the images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from benchmarks.paths import IMAGES
from benchmarks.report import deploy
from benchmarks.report.speed import scaling_curves
from benchmarks.report.style import COLORS, WIDTH, save
from benchmarks.weight_cards import by_mixer, load_cards


def draw_curves(path: Path, family: dict[str, dict]) -> None:
    """Draw training loss and held-out accuracy over the epochs, from cards that have learning curves."""
    family = {mixer: card for mixer, card in family.items() if "curve" in card}
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    seen = []
    for mixer, card in family.items():
        style = {"color": COLORS[mixer], "lw": 1.5, "ls": "--" if mixer == "identity" else "-"}
        losses, scores = card["curve"]["train_loss"], card["curve"]["holdout_top1"]
        left.plot(range(1, len(losses) + 1), losses, **style, label=mixer)
        if points := [(epoch, score) for epoch, score in enumerate(scores, 1) if score is not None]:
            right.plot(*zip(*points), **style)
            seen.append([score for _, score in points])
    if seen:
        # The first quarter would hide the differences at the end.
        floor = min(scores[len(scores) // 4] for scores in seen)
        right.set_ylim(floor, max(map(max, seen)) + 0.05 * (max(map(max, seen)) - floor))
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="accuracy on the held-out slice, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(family), frameon=False, handlelength=1.2, columnspacing=1.2)
    save(path, figure)


def draw_front(path: Path, family: dict[str, dict]) -> None:
    """Draw accuracy against parameters and against inference speed, with the Pareto front."""
    kinds = [("parameters, millions", lambda card: card["parameters"] / 1e6, 1)]
    if all("cost" in card for card in family.values()):
        kinds.append(("inference, images per second", lambda card: card["cost"]["infer_img_per_s"], -1))
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (title, value, sign) in zip(panels, kinds):
        points = {mixer: (value(card), card["top1"]) for mixer, card in family.items()}
        for mixer, (x, y) in points.items():
            error = family[mixer]["spread"].get("std")
            axes.errorbar(x, y, error, fmt="o", ms=7, color=COLORS[mixer], capsize=3, lw=1.2)
        axes.set_xlabel(title)
        axes.margins(0.16)
        axes.grid(alpha=0.3)
        corners = front(list(points.values()), sign)
        worst = axes.get_xlim()[1 if sign > 0 else 0]
        axes.set_xlim(axes.get_xlim())
        axes.plot(*zip(*corners, (worst, corners[-1][1])), color="0.5", lw=1, ls="--", zorder=1)
    panels[0].set_ylabel("test accuracy, %")
    figure.draw_without_rendering()  # so that names can be placed beside points
    for axes, (_, value, _) in zip(panels, kinds):
        name_points(axes, {mixer: (value(card), card["top1"]) for mixer, card in family.items()})
    save(path, figure)


def front(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """Return the corners of the Pareto front of points (x, y) as a staircase.

    Args:
        points: x is a cost or a speed, y an accuracy.
        sign: 1 if a smaller x is better, -1 if a larger x is.
    """
    kept, steps = [], []
    for x, y in sorted(points, key=lambda point: (sign * point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            if kept:
                steps.append((x, kept[-1][1]))
            kept.append((x, y))
            steps.append((x, y))
    return steps


def name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write names beside points, on the first side that covers no other name or point. Equal points share a label."""
    together: dict[tuple[float, float], list[str]] = {}
    for name, point in points.items():
        together.setdefault(point, []).append(name)
    spots = [axes.transData.transform(point) for point in together]
    taken, frame = [], axes.get_window_extent()
    offsets = [(dx, dy) for dy in (4, -4, 16, -16, 28, -28) for dx in (5, -5)]  # points
    sides = [(dx, dy, "left" if dx > 0 else "right", "bottom" if dy > 0 else "top") for dx, dy in offsets]
    for spot, (point, names) in zip(spots, together.items()):
        for dx, dy, ha, va in sides:
            color = COLORS[names[0]] if len(names) == 1 else "black"
            line = {"arrowstyle": "-", "color": color, "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
            placed = {"xytext": (dx, dy), "textcoords": "offset points", "ha": ha, "va": va, "color": color}
            text = axes.annotate(", ".join(names), point, **placed, arrowprops=line)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
            text.get_window_extent()  # moves the text to its place; this extent includes the line
            box = Text.get_window_extent(text)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            near = box.padded(7)  # pixels, a little more than the radius of a point
            others = [s for s in spots if s is not spot]
            if inside and not any(map(box.overlaps, taken)) and not any(near.contains(*s) for s in others):
                break
            if (dx, dy, ha, va) != sides[-1]:
                text.remove()
        taken.append(box)


def draw_scaling(path: Path, curves: dict[str, dict]) -> None:
    """Draw time and memory of one image against its size."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = ("ms", "time", "time, ms"), ("mib", "memory", "memory above the weights, MiB")
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
        axes.legend(title="mixer, exponent over pixels", frameon=False)
    save(path, figure)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    family = by_mixer(load_cards("cifar10"))
    draw_front(IMAGES / "cifar10-front.png", family)
    draw_curves(IMAGES / "cifar10-curves.png", family)
    draw_scaling(IMAGES / "scaling.png", scaling_curves())
    if engines := deploy.points():
        deploy.draw_engines(deploy.PICTURE, engines)


if __name__ == "__main__":
    main()
