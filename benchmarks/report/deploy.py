"""Make the tables of deployed models from results/deploy.json and results/deploy_amx.json."""

from collections.abc import Mapping, Sequence
from math import floor, log10

from benchmarks.markdown import table, wrap
from benchmarks.measure.deploy import FILE, LOWER, REFERENCES, load, reference_of
from benchmarks.paths import read_json
from benchmarks.weight_cards import load_cards, weights_digest
from metamix.mixers import list_mixers
from metamix.utils.text import plural

NOT_MEASURED = "Not measured yet."
NAMES = {"eager": "torch eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # the format that an engine runs
Cell = tuple[str, str]  # engine and precision
FILES = {"onnx int8": "ONNX int8 file", "openvino int8": "OpenVINO int8 files"}  # titles of columns


def speed_table(size: str, batch: int) -> str:
    """Make the speed table of one model size and batch size. The table of tiny also has timm's model."""
    result, reference = load("speed"), REFERENCES[size]
    rows = [row for row in result.get("rows", []) if reference_of(row["model"]) == reference and row["batch"] == batch]
    if not rows:
        return NOT_MEASURED
    base = "`identity` in eager fp32"
    if size != "nano":
        ms = dict.fromkeys(f"{ms:.0f}" for ms in sorted(row["reference_ms"] for row in rows))
        between = " to ".join([*ms][:: max(len(ms) - 1, 1)])
        base = f"timm's `{reference}` in eager fp32 ({between} ms)"
    note = f"Each cell gives the milliseconds for {images(rows)}, and the speed relative to {base}. {where(result)}."
    return f"{wrap(note)}\n\n{cells_table(rows)}"


def amx_table() -> str:
    """Make a table of OpenVINO in lower precision on a CPU with AMX."""
    result = read_json(FILE.with_name("deploy_amx.json"))["speed"]
    columns = [(size, batch, low) for size, batch in (("s12", 8), ("s12", 1), ("tiny", 1)) for low in ("bf16", "int8")]
    texts = {
        (mixer_of(row["model"]), reference_of(row["model"]), row["batch"], row["precision"]): cell_text(row)
        for row in result["rows"]
        if row["engine"] == "openvino"
    }
    lines = [
        [f"`{name}`", *(texts.get((name, REFERENCES[size], batch, low), "") for size, batch, low in columns)]
        for name in (*list_mixers(), REFERENCES["tiny"])
    ]
    header = [f"{size}, {plural(batch, 'image')}, {low}" for size, batch, low in columns]
    note = (
        f"Each cell gives the milliseconds for images of 224 x 224 pixels in OpenVINO, and the speed relative to "
        f"timm's `{REFERENCES['s12']}` (s12) or `{REFERENCES['tiny']}` (tiny) in eager fp32. {where(result)}."
    )
    return f"{wrap(note)}\n\n{table(['mixer, or other model', *header], lines)}"


def images(rows: list[dict]) -> str:
    """Describe the number and the size of the images of the rows."""
    count, side = rows[0]["batch"], rows[0]["img_size"]
    return f"{'one image' if count == 1 else f'{count} images'} of {side} x {side} pixels"


def cells_table(rows: list[dict]) -> str:
    """Make a table with a line for each mixer and a column for each engine and precision."""
    cells = dict.fromkeys(map(cell_of, rows))
    texts = {(mixer_of(row["model"]), *cell_of(row)): cell_text(row) for row in rows}
    lines = [
        [f"`{name}`", *(texts.get((name, *cell), "") for cell in cells)]
        for name in (*list_mixers(), REFERENCES["tiny"])
        if any(key[0] == name for key in texts)
    ]
    size = next(size for size in REFERENCES if any(row["model"].endswith(f"_{size}") for row in rows))
    header = f"mixer of the {size} model" + (", or other model" if REFERENCES["tiny"] in lines[-1][0] else "")
    return table([header, *(title(*cell) for cell in cells)], lines)


def cell_text(row: Mapping) -> str:
    """Write the milliseconds and the relative speed of a row."""
    return f"{digits(row['ms'])}, {row['speedup']:.2f}"


def digits(ms: float) -> str:
    """Format milliseconds with at least three significant digits."""
    return f"{ms:.{max(0, 2 - floor(log10(ms)))}f}"


def accuracy_table() -> str:
    """Make, for each machine, a table of the accuracy and the file sizes in lower precision."""
    if not (parts := scored_parts(load_cards())):
        return NOT_MEASURED
    tag, limit = parts[0]["tag"], max(row["limit"] for part in parts for row in part["rows"])
    note = (
        f"Columns that end in *loses* give the points of test accuracy that the `{tag}` weights lose relative to "
        f"fp32 in torch. File columns give the size in int8, and its share of the size in fp32. The last column counts "
        f"the layers that are not quantized in ONNX and in OpenVINO, with `--max-drop {limit:g}`."
    )
    tables = [f"Measured on {machine(part['machine'])}, {part['measured']}:\n\n{losses(part)}" for part in parts]
    return "\n\n".join([wrap(note), *tables])


def scored_parts(cards: Sequence[dict]) -> list[dict]:
    """Return the accuracies measured with the weights of these cards, by machine."""
    shipped = {weights_digest(card) for card in cards}
    parts = load("accuracy").get("parts", [])
    current = [part | {"rows": [row for row in part["rows"] if row.get("weights") in shipped]} for part in parts]
    return [part for part in current if part["rows"]]


def losses(part: Mapping) -> str:
    """Make the accuracy table of one machine."""
    models: dict[str, dict[str, dict]] = {}
    for row in part["rows"]:
        models.setdefault(mixer_of(row["model"]), {})[f"{row['format']} {row['precision']}"] = row
    measured = [cell for cell in LOWER if any(cell in cells for cells in models.values())]
    lines = []
    for mixer in filter(models.get, list_mixers()):
        cells = models[mixer]
        line = [f"`{mixer}`", f"{next(iter(cells.values()))['eager_top1']:.2f}"]
        line += [f"{cells[cell]['eager_top1'] - cells[cell]['top1']:.2f}" if cell in cells else "" for cell in measured]
        for cell in filter(FILES.get, measured):
            row = cells.get(cell)
            line.append(f"{row['bytes'] / 1000:,.0f} kB, {row['bytes'] / row['fp32_bytes']:.0%}" if row else "")
        kept = [cells[cell]["quantization"] for cell in FILES if cell in cells]
        lines.append([*line, ", ".join(f"{len(one['kept'])} of {one['layers']}" for one in kept)])
    lost = [f"{cell.replace('onnx', 'ONNX').replace('openvino', 'OpenVINO')} loses" for cell in measured]
    files = [FILES[cell] for cell in measured if cell in FILES]
    header = ["mixer of the nano model", "accuracy in fp32, %", *lost, *files, "not quantized"]
    return table(header, lines)


def points() -> dict[Cell, dict[str, tuple[float, float]]]:
    """Return {engine and precision: {mixer: (ms of one image, test accuracy)}}, sorted by accuracy.

    The accuracy comes from the machine that measured the speed. If that machine has not measured the accuracy, it comes
    from another machine.
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
    cells: dict[Cell, dict[str, tuple[float, float]]] = {}
    for row in timed.get("rows", []):
        engine, precision = cell_of(row)
        mixer = mixer_of(row["model"])
        top1 = tops.get((mixer, None if precision == "fp32" else FORMATS.get(engine), precision))
        if row["batch"] == 1 and row["model"] in names and top1 is not None:
            cells.setdefault((engine, precision), {})[mixer] = (row["ms"], top1)
    return {cell: dict(sorted(own.items(), key=lambda item: item[1][1])) for cell, own in cells.items()}


def where(result: Mapping) -> str:
    """Say in how many runs, on which machine and with which versions the speed was measured."""
    engines = ("torch", "onnxruntime", "openvino")
    numbers = ", ".join(f"{name} {result['versions'][name]}" for name in engines if name in result["versions"])
    runs = f"Times and relative speeds are medians of {result['runs']} interleaved runs"
    return f"{runs} with {plural(result['threads'], 'thread')} on {machine(result['machine'])}, {numbers}"


def machine(about: Mapping) -> str:
    """Name a processor and its instructions for 8-bit and 16-bit numbers."""
    short = [name for name in about["instructions"] if name.endswith(("vnni", "bf16", "int8"))]
    cpu = about["cpu"].removesuffix(" Processor")
    return f"{about['cores']} {cpu} cores ({', '.join(short) or 'no instructions for 8 or 16 bits'})"


def cell_of(row: Mapping) -> Cell:
    return row["engine"], row["precision"]


def title(engine: str, precision: str) -> str:
    return f"{NAMES[engine]} {precision}"


def mixer_of(model: str) -> str:
    """Return the mixer of a model of the comparison family, or the name of any other model."""
    return model.split("_")[1] if model.startswith("metaformer_") else model
