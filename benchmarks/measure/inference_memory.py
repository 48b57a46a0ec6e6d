"""Measure the memory of one image through each mixer's s12 model: results/inference_memory.json.

    python -m benchmarks.measure.inference_memory

Batch 1, float32, inference, channels_last, each measurement in a new process. `adds_mib` is what the forward pass adds
to the peak of a process that holds torch, timm and the weights; `peak_mib` is the peak of the whole process.
"""

import argparse
import json

import timm
import torch

from benchmarks.measure.timing import in_fresh_process, memory_mib
from benchmarks.paths import RESULTS
from metamix import list_mixers
from metamix.utils.files import write_text

FILE = RESULTS / "inference_memory.json"
SIZES = ((224, 224), (800, 1216))  # height, width in pixels


def measure(name: str, height: int, width: int) -> dict:
    """Measure one forward pass in this process."""
    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, height, width).to(memory_format=torch.channels_last)
    before = memory_mib()
    with torch.inference_mode():
        model(image)
    peak = memory_mib()
    return {"model": name, "size": [height, width], "adds_mib": round(peak - before), "peak_mib": round(peak)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = [f"metaformer_{mixer}_s12" for mixer in list_mixers()]
    rows = [in_fresh_process(measure, name, *size) for name in names for size in SIZES]
    write_text(FILE, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
