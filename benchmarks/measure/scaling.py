"""Time and memory of one image against its size, for every mixer: docs/scaling.json, docs/scaling.png and a table.

    python benchmarks/scaling.py                        all mixers, 32 to 1024 pixels
    python benchmarks/scaling.py --mixers raft,nin      these anew; the others are kept from the file

`metaformer_<mixer>_s12` as it is, made for 224 pixels, on images of each size: inference, batch 1, fp32, channels_last.
Time is the median of turns that all mixers take at one size. Memory is the peak of the process after one pass of each
size, in rising order, above what it held with torch and the weights before the first; one process for each mixer.

The exponent is the slope of a straight line through the logarithms, least squares, over the number of pixels from 224 x
224 on: 1 is linear, 2 is quadratic. Below that size what costs the same for any image tells more.
"""

import argparse
from math import log
from pathlib import Path
from statistics import linear_regression

from benchmarks.measure import reference_models as peers
from benchmarks.measure import timing
from benchmarks.measure.speed import choices
from benchmarks.measure.timing import Subject, table
from benchmarks.paths import RESULTS
from benchmarks.report.views import COLORS
from metamix.mixers import list_mixers
from metamix.utils.system import keep_freed_memory

SIZES = (32, 64, 128, 224, 256, 512, 1024)
FIT_FROM = 224


def subject(mixer: str, size: int) -> Subject:
    """The model for images of 224 pixels, whatever the size of these."""
    return Subject(peers.create(f"metaformer_{mixer}_s12", 224), 1, size, "channels_last")


def added_mib(mixer: str) -> list[float]:
    """MiB above the weights at each of SIZES, in this process."""
    steps = {size: subject(mixer, size).step("infer", "fp32") for size in SIZES}
    before = timing.memory_mib(peak=False)
    peaks = []
    for step in steps.values():
        step()
        peaks.append(round(timing.memory_mib() - before, 1))
    return peaks


def measure(mixers: list[str], seconds: float) -> list[dict]:
    memory = {mixer: timing.in_fresh_process(added_mib, mixer) for mixer in mixers}
    rows = []
    for i, size in enumerate(SIZES):
        steps = {mixer: subject(mixer, size).step("infer", "fp32") for mixer in mixers}
        for mixer, spent in timing.interleaved(steps, seconds).items():
            rows.append(dict(mixer=mixer, size=size, ms=round(1000 * spent, 3), mib=memory[mixer][i]))
    return rows


def exponent(sizes: list[int], values: list[float]) -> float:
    """p of values ~ pixels^p, from FIT_FROM on."""
    points = [(log(size**2), log(value)) for size, value in zip(sizes, values) if size >= FIT_FROM]
    return linear_regression(*zip(*points)).slope


def curves(rows: list[dict]) -> dict[str, dict]:
    """{mixer: sizes, ms, mib and both exponents}, in the order of the mixers."""
    found = {}
    for mixer in list_mixers():
        own = sorted((row for row in rows if row["mixer"] == mixer), key=lambda row: row["size"])
        if own:
            sizes, ms, mib = ([row[key] for row in own] for key in ("size", "ms", "mib"))
            found[mixer] = dict(sizes=sizes, ms=ms, mib=mib, time=exponent(sizes, ms), memory=exponent(sizes, mib))
    return found


def print_tables(curves: dict[str, dict]) -> None:
    for key, what, digits in (("ms", "time", 1), ("mib", "memory", 0)):
        unit = {"ms": "ms", "mib": "MiB"}[key]
        header = [f"s12 with, {unit}", *(str(size) for size in SIZES), "exponent"]
        lines = [[m, *(f"{v:.{digits}f}" for v in c[key]), f"{c[what]:.2f}"] for m, c in curves.items()]
        print(table(header, lines) + "\n")


def draw(curves: dict[str, dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    pyplot.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5), layout="constrained")
    panels = ("ms", "time", "time, ms"), ("mib", "memory", "memory above the weights, MiB")
    for axis, (key, what, title) in zip(axes, panels):
        for mixer, curve in curves.items():
            label = f"{mixer}, {curve[what]:.2f}"
            axis.plot(
                curve["sizes"], curve[key], marker="o", markersize=4, linewidth=1.8, color=COLORS[mixer], label=label
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel="image side, pixels")
        places = FixedLocator([32, 64, 128, 256, 512, 1024]), LogLocator(subs=(1, 2, 5))
        for line, locator in zip((axis.xaxis, axis.yaxis), places):
            line.set(major_locator=locator, minor_locator=NullLocator(), major_formatter=StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.3)
        axis.legend(title="mixer, exponent over pixels", frameon=False, fontsize=11, title_fontsize=11)
    figure.suptitle("One image through s12, fp32 inference on a CPU", fontsize=14)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", type=choices(tuple(list_mixers())), default=list_mixers())
    parser.add_argument("--seconds", type=float, default=3.0, help="for all mixers at one size, 5 turns at least")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json", help="the picture lies beside it")
    options = parser.parse_args()
    keep_freed_memory()
    rows = timing.save(options.output, timing.machine(), measure(options.mixers, options.seconds), ("mixer", "size"))
    found = curves(rows)
    print_tables(found)
    draw(found, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
