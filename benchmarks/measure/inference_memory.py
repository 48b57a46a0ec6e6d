"""Memory of one image through each mixer's s12: docs/memory.json, and its table in README.md.

    python benchmarks/memory.py            measure, and write the table
    python benchmarks/memory.py --check    exit 1 where README.md is stale, and measure nothing

Every measurement has a process of its own: batch 1, float32, inference, channels_last. What the forward pass adds is
above the peak of a process that holds torch, timm and the weights.
"""

import json
import sys
from itertools import groupby

import timm
import torch

import metamix
from benchmarks.measure import timing
from benchmarks.paths import RESULTS as FOLDER
from benchmarks.report.markers import refresh
from metamix.utils.files import write_text

RESULTS = FOLDER / "inference_memory.json"
SIZES = ((224, 224), (800, 1216))


def measure(name: str, height: int, width: int) -> dict:
    """Peak of this process in MiB, and what one forward pass adds to it."""
    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, height, width).to(memory_format=torch.channels_last)
    before = timing.memory_mib()
    with torch.inference_mode():
        model(image)
    peak = timing.memory_mib()
    return {"model": name, "size": [height, width], "adds_mib": round(peak - before), "peak_mib": round(peak)}


def tables(rows: list[dict]) -> str:
    sizes = [f"{height}x{width} adds" for height, width in SIZES]
    lines = []
    for name, own in groupby(rows, key=lambda row: row["model"]):
        own = list(own)
        cells = [f"{row['adds_mib']} MiB" for row in own] + [f"{own[-1]['peak_mib']} MiB"]
        lines.append([name.split("_")[1], *cells])
    return "\n\n".join(
        [
            "Memory of one image in float32, inference, in a process for each; the last column has torch, timm and the "
            "weights in it:",
            timing.table(["s12 with", *sizes, "whole process"], lines),
        ]
    )


def main() -> None:
    check = "--check" in sys.argv[1:]
    if not check:
        names = [f"metaformer_{mixer}_s12" for mixer in metamix.list_mixers()]
        rows = [timing.in_fresh_process(measure, name, *size) for name in names for size in SIZES]
        write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
    refresh("memory", "memory.py", tables(json.loads(RESULTS.read_text())), check)


if __name__ == "__main__":
    main()
