"""Writes the speed tables of the README from docs/cases.json, docs/speed.json and docs/roofline.json.

    python benchmarks/speed_table.py            rewrite README.md
    python benchmarks/speed_table.py --check    exit 1 where README.md is stale, and write nothing

The three come from benchmarks/speed.py and benchmarks/roofline.py.
"""

import json
import sys

from benchmarks.measure.speed import CASES, REFERENCE
from benchmarks.measure.timing import table
from benchmarks.paths import RESULTS
from benchmarks.report.markers import refresh

BATCH, SIZE = 8, 224  # of the family's tables
CELLS = {
    ("infer", "fp32"): "fp32 inference",
    ("train", "fp32"): "fp32 training",
    ("infer", "bf16"): "bf16 inference",
    ("train", "bf16"): "bf16 training",
}


def load(name: str, key: str, **only) -> tuple[dict, dict[str, dict[tuple[str, str], dict]]]:
    """(machine, {model: {(mode, precision): row}}) of a result file, of the rows in which the entries of `only` are."""
    found = json.loads((RESULTS / name).read_text())
    models: dict[str, dict] = {}
    for row in found["rows"]:
        if not only.items() <= row.items():
            continue
        models.setdefault(row[key], {})[row["mode"], row["precision"]] = row
    return found["machine"], models


def where(machine: dict) -> str:
    """The three files may come from different machines."""
    cpu = machine["cpu"].replace("(R)", "")
    return f"on {machine['cores']} {cpu} cores, torch {machine['torch'].partition('+')[0]}"


def milliseconds(ms: float) -> str:
    return f"{ms:.{0 if ms > 100 else 1}f} ms"


def compiled(row: dict) -> str:
    return f"; compiled {milliseconds(row['compiled_ms'])}" if "compiled_ms" in row else ""


def rows(models: dict, describe, *more) -> list[str]:
    """A table of the cells that were measured; `more` are (column, function of a model's cells)."""
    measured = [cell for cell in CELLS if any(cell in cells for cells in models.values())]
    header = ["model", *(CELLS[cell] for cell in measured), *(name for name, _ in more)]
    lines = []
    for name, cells in models.items():
        texts = [describe(cells[cell]) if cell in cells else "" for cell in measured]
        lines.append([f"`{name}`", *texts, *(function(cells) for _, function in more)])
    return table(header, lines).splitlines()


def case(row: dict) -> str:
    ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f}" + (f" ({row['asked']})" if row["asked"] else "")
    return milliseconds(row["ms"]) + ratio + compiled(row)


def case_memory(cells: dict) -> str:
    row = cells["train", "fp32"]
    here = f"theirs {row['authors_mib']}, " if "authors_mib" in row else ""
    return f"{row['mib']} MiB, {here}listed {CASES[row['case']].mib}"


def model_memory(cells: dict) -> str:
    return " / ".join(f"{cells['train', p]['peak_mib']}" if ("train", p) in cells else "-" for p in ("fp32", "bf16"))


def model(row: dict) -> str:
    return f"{milliseconds(row['ms'])}, {row['ratio']:.2f}{compiled(row)}"


def share_of_peak(row: dict) -> str:
    return f"{row['of_convolution']:.0%}, {row['ops'][0]['op']} in {row['ops'][0]['part']}"


def tables() -> str:
    cases_machine, cases = load("authors_speed.json", "case")
    models_machine, models = load("speed.json", "model", batch=BATCH, size=SIZE, reference=REFERENCE)
    roofline_machine, roofline = load("roofline.json", "model", batch=BATCH, size=SIZE)
    lines = [
        "Models in turns, freed memory kept, medians of milliseconds.",
        "",
        f"The papers' models, at the batch and size of `benchmarks/speed.py --cases`, {where(cases_machine)}: after "
        "the time, how many times as fast as the authors' code, in brackets the goal that was set, and then the time "
        "of what `torch.compile` makes of it. timm's PoolFormer and the `wavemix` package ran beside ours; the other "
        "authors' times were taken on two AMD EPYC cores and are rescaled by timm's `poolformer_s12`, which is least "
        "sure for bf16 inference.",
        "",
    ]
    lines += rows(cases, case, ("fp32 training, above the imports", case_memory))
    asked = [row for cells in cases.values() for row in cells.values() if row["asked"]]
    reached = sum(row["ratio"] >= row["asked"] for row in asked)
    lines += [
        "",
        f"Goals reached: {reached} of {len(asked)}. The memory listed is that of the authors' code elsewhere.",
    ]
    lines += [
        "",
        f"The family at {SIZE} pixels, batch {BATCH}, {where(models_machine)}, beside timm's models, each of those in "
        "the faster memory format: after the time, how many times as fast as timm's `poolformer_s12`.",
        "",
    ]
    lines += rows(models, model, ("training, above the imports, MiB, fp32 / bf16", model_memory))
    lines += [
        "",
        "Each model's GFLOP/s as a share of those of the faster of a 1x1 and a 3x3 convolution in the same run, "
        f"{where(roofline_machine)}, and the op that takes the most time above its roof (`benchmarks/roofline.py`). "
        "60 % was the aim:",
        "",
    ]
    lines += rows(roofline, share_of_peak)
    return "\n".join(lines)


if __name__ == "__main__":
    refresh("speed", "speed_table.py", tables(), check="--check" in sys.argv[1:])
