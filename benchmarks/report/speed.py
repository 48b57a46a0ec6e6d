"""Make the tables of speed and memory, from the files in results/."""

from collections.abc import Callable, Iterable
from itertools import groupby
from math import log
from statistics import linear_regression

from benchmarks.markdown import table, wrap
from benchmarks.measure.memory import INFERENCE, SIZES
from benchmarks.measure.speed import REFERENCE
from benchmarks.paths import RESULTS, read_json
from metamix.mixers import list_mixers

BATCH, SIZE = 8, 224  # batch and image size of the rows that the tables show
CELLS = {
    ("infer", "fp32"): "fp32 inference",
    ("train", "fp32"): "fp32 training",
    ("infer", "bf16"): "bf16 inference",
    ("train", "bf16"): "bf16 training",
}
FIT_FROM = 224  # pixels; for smaller images, costs that do not depend on the size dominate
Cells = dict[tuple[str, str], dict]


def mixers_table() -> str:
    """Make the table of the s12 models and the timm models that they are compared with."""
    place, models = load("speed.json", batch=BATCH, size=SIZE, reference=REFERENCE)

    def memory(cells: Cells) -> str:
        rows = cells.get(("train", "fp32")), cells.get(("train", "bf16"))
        return " / ".join(str(row["peak_mib"]) if row else "-" for row in rows)

    note = (
        f"Each cell gives the time of one step of {BATCH} images of {SIZE}x{SIZE} pixels {place}, and the speed "
        f"relative to timm's `{REFERENCE}`. Memory is what training adds to a process that has imported torch, in "
        f"fp32 / bf16."
    )
    return f"{wrap(note)}\n\n{by_precision(models, step, ('training memory, MiB', memory))}"


def authors_table() -> str:
    """Make the table that compares our code for the papers' models with the authors' code."""
    place, models = load("authors_speed.json")

    def memory(cells: Cells) -> str:
        row = cells.get(("train", "fp32"))
        return f"{row['mib']} / {row['authors_mib']}" if row and "mib" in row else "-"  # absent if their code fails

    note = (
        f"Each cell gives the time of one step {place}, and the speed relative to the authors' code in the same "
        f"run. The batches differ, so compare times only within a row. Memory is what fp32 training adds to a process "
        f"that has imported torch, for our code / the authors' code."
    )
    return f"{wrap(note)}\n\n{by_precision(models, step, ('fp32 training memory, MiB', memory))}"


def roofline_table() -> str:
    """Make the table of speed relative to the machine's convolutions."""
    place, models = load("roofline.json", batch=BATCH, size=SIZE)
    note = f"Each cell gives GFLOP/s relative to the faster of a 1x1 and a 3x3 convolution in the same run, {place}."
    shares = by_precision(models, lambda row: f"{row['of_convolution']:.0%}")
    return f"{wrap(note)}\n\n{shares}"


def memory_table() -> str:
    """Make the table of inference memory by mixer."""
    rows = read_json(INFERENCE)
    lines = []
    for name, group in groupby(rows, key=lambda row: row["model"]):
        of_model = list(group)
        cells = [f"{row['adds_mib']} MiB" for row in of_model] + [f"{of_model[-1]['peak_mib']} MiB"]
        lines.append([f"`{name.split('_')[1]}`", *cells])
    sizes = [f"{height}x{width}" for height, width in SIZES]
    added = (f"added at {size}" for size in sizes)
    return table(["mixer of the s12 model", *added, f"peak of the process at {sizes[-1]}"], lines)


def scaling_table() -> str:
    """Make the table of how time and memory grow with the number of pixels."""
    result, curves = read_json(RESULTS / "scaling.json"), scaling_curves()
    rows = [
        [
            *(f"`{mixer}`", f"{curve['ms'][0]:.0f} ms", f"{curve['ms'][-1]:.0f} ms", f"{curve['mib'][-1]:.0f} MiB"),
            *(f"{curve['time']:.2f}", f"{curve['memory']:.2f}"),
        ]
        for mixer, curve in curves.items()
    ]
    first, *_, last = next(iter(curves.values()))["sizes"]
    header = ["mixer of the s12 model", f"time at {first} px", f"time at {last} px", f"memory at {last} px"]
    place = where(result["machine"], result["rows"])
    return f"Measured {place}.\n\n{table([*header, 'exponent of time', 'exponent of memory'], rows)}"


def scaling_curves() -> dict[str, dict]:
    """Return {mixer: {"sizes", "ms", "mib", "time", "memory"}}; the last two are exponents of the number of pixels."""
    rows, curves = read_json(RESULTS / "scaling.json")["rows"], {}
    for mixer in list_mixers():
        of_mixer = sorted((row for row in rows if row["mixer"] == mixer), key=lambda row: row["size"])
        if of_mixer:
            sizes, ms, mib = ([row[key] for row in of_mixer] for key in ("size", "ms", "mib"))
            curves[mixer] = dict(sizes=sizes, ms=ms, mib=mib, time=exponent(sizes, ms), memory=exponent(sizes, mib))
    return curves


def exponent(sizes: list[int], values: list[float]) -> float:
    """Fit p in values ~ pixels^p by least squares of the logarithms, for sizes from FIT_FROM on; p = 1 is linear."""
    points = [(log(size**2), log(value)) for size, value in zip(sizes, values) if size >= FIT_FROM]
    return linear_regression(*zip(*points)).slope


def train_loop_table() -> str:
    """Make the table that compares our training loop with timm's."""
    results = read_json(RESULTS / "train_loop.json")
    names = {"ours": "metamix", "bare": "the step alone", "timm": "timm's parts", "script": "timm's script"}
    rows = []
    for case in results["cases"]:
        ours = case["loops"]["ours"]["img_per_s"]
        for loop, row in case["loops"].items():
            added = f"{row['process_mib'] - row['imports_mib']} MiB" if "imports_mib" in row else ""
            speed = row["img_per_s"], f"{ours / row['img_per_s']:.2f}"
            rows.append([f"{case['name']}, `{case['model']}`", names[loop], *speed, added, f"{row['workers_mib']} MiB"])
    header = ["images and model", "loop", "img/s", "speed of metamix relative to it", "memory added by training"]
    header.append("workers' memory")
    note = (
        f"Measured in bf16 {where(results['machine'])}. The step alone trains on one random batch, without loading "
        f"or augmenting images."
    )
    return f"{wrap(note)}\n\n{table(header, rows)}"


def load(name: str, **only) -> tuple[str, dict[str, Cells]]:
    """Read the rows of a result file that match `only`.

    Returns:
        The machine, the torch version and the days of the measurements in words, and {model: {(mode, precision): row}}.
    """
    result = read_json(RESULTS / name)
    rows = [row for row in result["rows"] if only.items() <= row.items()]
    models: dict[str, Cells] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["mode"], row["precision"]] = row
    return where(result["machine"], rows), models


def by_precision(
    models: dict[str, Cells], describe: Callable[[dict], str], *more: tuple[str, Callable[[Cells], str]]
) -> str:
    """Make a table with a row for each model and a column for each mode and precision that was measured."""
    measured = [cell for cell in CELLS if any(cell in cells for cells in models.values())]
    rows = []
    for name, cells in models.items():
        texts = [describe(cells[cell]) if cell in cells else "" for cell in measured]
        rows.append([f"`{name}`", *texts, *(function(cells) for _, function in more)])
    return table(["model", *(CELLS[cell] for cell in measured), *(title for title, _ in more)], rows)


def where(machine: dict, rows: Iterable[dict] = ()) -> str:
    """Name the machine, the torch version and the days of the measurements in a table."""
    cpu = machine["cpu"].replace("(R)", "").removesuffix(" Processor")
    dates = sorted({row["date"] for row in rows if "date" in row})
    days = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    return f"on {machine['cores']} {cpu} cores with torch {machine['torch'].partition('+')[0]}{days}"


def milliseconds(ms: float) -> str:
    return f"{ms:.{0 if ms > 100 else 1}f} ms"


def step(row: dict) -> str:
    """Format the time of a step, its speed relative to the reference, and its time with torch.compile."""
    ratio = f", {row['ratio']:.2f}" if "ratio" in row else ""
    compiled = f"; compiled {milliseconds(row['compiled_ms'])}" if "compiled_ms" in row else ""
    return f"{milliseconds(row['ms'])}{ratio}{compiled}"
