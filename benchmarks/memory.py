"""Memory of one image through each mixer's s12: writes docs/memory.json and prints the README's table.

    python benchmarks/memory.py

Every measurement has a process of its own: batch 1, float32, inference. "Adds" is what the forward pass adds to the
peak of the process above torch, timm and the weights.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "memory.json"
MIXERS = ("identity", "pooling", "raft", "maxim", "wavemix", "nin", "minattn")
SIZES = ((224, 224), (800, 1216))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, height: int, width: int) -> dict:
    """Peak of this process in MiB, and what one forward pass adds to it."""
    import timm
    import torch

    import metamix  # noqa: F401 - registers the models with timm

    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, height, width).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = peak_mib()
        model(image)
    return {
        "model": name,
        "size": [height, width],
        "adds_mib": round(peak_mib() - before),
        "peak_mib": round(peak_mib()),
    }


def main() -> None:
    rows = []
    for mixer in MIXERS:
        for size in SIZES:
            words = [sys.executable, __file__, f"metaformer_{mixer}_s12", *map(str, size)]
            rows.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")
    print("| s12 with | 224x224 adds | 800x1216 adds | whole process |\n|---|---|---|---|")
    for small, large in zip(rows[::2], rows[1::2]):
        mixer = small["model"].split("_")[1]
        print(f"| {mixer} | {small['adds_mib']} MiB | {large['adds_mib']} MiB | {large['peak_mib']} MiB |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        main()
