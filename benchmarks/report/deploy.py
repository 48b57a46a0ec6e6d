"""Make the tables of deployed models from results/deploy.json, and the picture of the engines."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.markdown import table, wrap
from benchmarks.measure.deploy import LOWER, load
from benchmarks.paths import DOCS, IMAGES
from benchmarks.report.style import WIDTH, save
from benchmarks.weight_cards import load_cards, load_former, weights_digest
from metamix.mixers import list_mixers
from metamix.utils.text import plural

NOT_MEASURED = "Not measured yet."
PICTURE = IMAGES / "cifar10-engines.png"
NAMES = {"eager": "torch eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # that an engine runs
Cell = tuple[str, str]  # engine and precision
FILES = {"onnx int8": ".onnx", "openvino int8": ".xml, .bin"}
COLORS = {"eager": "#777777", "compile": "#cc79a7", "onnxruntime": "#d55e00", "openvino": "#0072b2"}
LINES = {"fp32": "-", "bf16": "--", "int8": ":"}


def speed_table(batch: int) -> str:
    """Make the table of the s12 models in each engine at one batch size."""
    found = load("speed")
    rows = [row for row in found.get("rows", []) if row["model"].endswith("_s12") and row["batch"] == batch]
    if not rows:
        return NOT_MEASURED
    base = dict.fromkeys(f"{ms:.0f}" for ms in sorted(row["reference_ms"] for row in rows))
    note = (
        f"Each cell has the milliseconds for {images(rows)} and the speed relative to timm's "
        f"`{rows[0]['reference']}` in eager fp32 ({' to '.join([*base][:: max(len(base) - 1, 1)])} ms): {where(found)}."
    )
    return f"{wrap(note)}\n\n{cells_table(rows, 's12 with')}"


def nanos_table(batch: int = 1) -> str:
    """Make the table of the nanos in each engine."""
    found = load("speed")
    rows = [row for row in found.get("rows", []) if not row["model"].endswith("_s12") and row["batch"] == batch]
    if not rows:
        return NOT_MEASURED
    note = (
        f"Each cell has the milliseconds for {images(rows)} and the speed relative to `identity` in eager fp32: "
        f"{where(found)}."
    )
    return f"{wrap(note)}\n\n{cells_table(rows, 'nano with')}"


def images(rows: list[dict]) -> str:
    """Say how many images of which size the rows are about."""
    count, side = rows[0]["batch"], rows[0]["img_size"]
    return f"{'one image' if count == 1 else f'{count} images'} of {side} x {side} pixels"


def cells_table(rows: list[dict], first: str) -> str:
    """Make a table with a line for each mixer and a column for each engine and precision."""
    cells = dict.fromkeys(map(cell_of, rows))
    own = {(mixer_of(row["model"]), *cell_of(row)): f"{digits(row['ms'])}, {row['speedup']:.2f}" for row in rows}
    lines = [
        [f"`{mixer}`", *(own.get((mixer, *cell), "") for cell in cells)]
        for mixer in list_mixers()
        if any(key[0] == mixer for key in own)
    ]
    return table([first, *(title(*cell) for cell in cells)], lines)


def digits(ms: float) -> str:
    """Format milliseconds with three digits."""
    return f"{ms:.{max(0, 2 - floor(log10(ms)))}f}"


def accuracy_table() -> str:
    """Make a table of accuracy and sizes in lower precision for each machine."""
    parts, former = scored_parts(load_cards()), scored_parts(load_former())
    if not (parts := parts or former):
        return NOT_MEASURED
    tag, limit = parts[0]["tag"], max(row["limit"] for part in parts for row in part["rows"])
    gone = ", which are no longer shipped," if parts is former else ""
    note = (
        f"Loses: points of test accuracy that the `{tag}` weights{gone} lose. Files: their size in int8, and its "
        f"share of that in fp32. Not quantized: layers kept in fp32 in ONNX and in OpenVINO, with "
        f"`--max-drop {limit:g}`."
    )
    tables = [f"Measured on {machine(part['machine'])}, {part['measured']}:\n\n{losses(part)}" for part in parts]
    return "\n\n".join([wrap(note), *tables])


def scored_parts(cards: Sequence[dict]) -> list[dict]:
    """Return the accuracies of the weights of these cards, by machine."""
    shipped = {weights_digest(card) for card in cards}
    parts = load("accuracy").get("parts", [])
    current = [part | {"rows": [row for row in part["rows"] if row.get("weights") in shipped]} for part in parts]
    return [part for part in current if part["rows"]]


def losses(found: Mapping) -> str:
    """Make the table of one machine."""
    models: dict[str, dict[str, dict]] = {}
    for row in found["rows"]:
        models.setdefault(mixer_of(row["model"]), {})[f"{row['format']} {row['precision']}"] = row
    measured = [cell for cell in LOWER if any(cell in own for own in models.values())]
    lines = []
    for mixer in filter(models.get, list_mixers()):
        own = models[mixer]
        line = [f"`{mixer}`", f"{next(iter(own.values()))['eager_top1']:.2f}"]
        line += [f"{own[cell]['eager_top1'] - own[cell]['top1']:.2f}" if cell in own else "" for cell in measured]
        for cell in filter(FILES.get, measured):
            row = own.get(cell)
            line.append(f"{row['bytes'] / 1000:,.0f} kB, {row['bytes'] / row['fp32_bytes']:.0%}" if row else "")
        kept = [own[cell]["quantization"] for cell in FILES if cell in own]
        lines.append([*line, ", ".join(f"{len(one['kept'])} of {one['layers']}" for one in kept)])
    lost = [f"{cell.replace('onnx', 'ONNX').replace('openvino', 'OpenVINO')} loses" for cell in measured]
    files = [FILES[cell] for cell in measured if cell in FILES]
    header = ["nano with", "fp32, %", *lost, *files, "not quantized"]
    return table(header, lines)


def picture() -> str:
    """Show the picture, if it is drawn."""
    if not PICTURE.exists():
        return NOT_MEASURED
    return (
        f"![Test accuracy of the CIFAR-10 models against the latency of one image, a line for each engine and "
        f"precision]({PICTURE.relative_to(DOCS)})"
    )


def points(batch: int = 1) -> dict[Cell, dict[str, tuple[float, float]]]:
    """Return {engine and precision: {mixer: (ms, test accuracy)}} of the cells with both, by rising accuracy.

    Accuracy is that on the machine of the speed where it was measured there, else that on another.
    """
    timed = load("speed")
    parts = sorted(scored_parts(load_cards()), key=lambda part: part["machine"] == timed.get("machine"))
    scored = [row for part in parts for row in part["rows"]]
    tops = {}
    for row in scored:
        mixer = mixer_of(row["model"])
        tops[mixer, row["format"], row["precision"]] = row["top1"]
        tops[mixer, None, "fp32"] = row["eager_top1"]
    names = {row["model"].partition(".")[0] for row in scored}
    found: dict[Cell, dict[str, tuple[float, float]]] = {}
    for row in timed.get("rows", []):
        engine, precision = cell_of(row)
        mixer = mixer_of(row["model"])
        top1 = tops.get((mixer, None if precision == "fp32" else FORMATS.get(engine), precision))
        if row["batch"] == batch and row["model"] in names and top1 is not None:
            found.setdefault((engine, precision), {})[mixer] = (row["ms"], top1)
    return {cell: dict(sorted(own.items(), key=lambda item: item[1][1])) for cell, own in found.items()}


def draw_engines(path: Path, found: Mapping[Cell, Mapping[str, tuple[float, float]]]) -> None:
    """Draw accuracy against latency, a line for each engine and precision, with a point for each mixer."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for (engine, precision), own in found.items():
        style = {"color": COLORS[engine], "ls": LINES[precision], "marker": "o", "ms": 4, "lw": 1.6}
        axes.plot(*zip(*own.values()), **style, label=title(engine, precision))
    accuracies: dict[str, list[float]] = {}
    for own in found.values():
        for mixer, (_, top1) in own.items():
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
    save(path, figure)


def apart(heights: Mapping[str, float], limits: tuple[float, float]) -> dict[str, float]:
    """Move labels up until each is a line of text above the one below it."""
    least, below, moved = 0.045 * (limits[1] - limits[0]), float("-inf"), {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        below = moved[name] = max(height, below + least)
    return moved


def where(found: Mapping) -> str:
    """Say on which machine the speed was measured, and with what."""
    engines = ("torch", "onnxruntime", "openvino")
    numbers = ", ".join(f"{name} {found['versions'][name]}" for name in engines if name in found["versions"])
    threads = plural(found["threads"], "thread")
    return f"medians of {found['runs']} runs in turns with {threads} on {machine(found['machine'])}, {numbers}"


def machine(found: Mapping) -> str:
    """Name a processor, and its instructions for short numbers."""
    short = [name for name in found["instructions"] if name.endswith(("vnni", "bf16", "int8"))]
    cpu = found["cpu"].removesuffix(" Processor")
    return f"{found['cores']} {cpu} cores ({', '.join(short) or 'none for 8 or 16 bits'})"


def cell_of(row: Mapping) -> Cell:
    return row["engine"], row["precision"]


def title(engine: str, precision: str) -> str:
    return f"{NAMES[engine]} {precision}"


def mixer_of(model: str) -> str:
    """Return the mixer of a model of the comparison family."""
    return model.split("_")[1]
