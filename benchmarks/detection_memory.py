"""Memory of RetinaNet on each mixer's s12: writes docs/detection_memory.json.

    python benchmarks/detection_memory.py

As published, 256 channels at strides 8 to 128, float32, every measurement in a process of its own: one image of
800x1216 in evaluation, and a training step on two of 640x480, AdamW included. Peaks are those of the whole process;
"without" is what it holds before: torch, timm, torchvision and the weights. benchmarks/detection_results.py makes the
README's table.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "detection_memory.json"
MIXERS = ("identity", "pooling", "raft", "maxim", "wavemix", "nin", "minattn")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(mixer: str, what: str) -> dict:
    """Peak of this process in GiB, and seconds, for "eval" or "train"."""
    import torch

    import metamix  # noqa: F401 - registers the models with timm
    from metamix.detection import build_detector

    torch.manual_seed(0)
    model = build_detector("retinanet", backbone=f"metaformer_{mixer}_s12", num_classes=80, resize_in_training=False)
    model.to(memory_format=torch.channels_last)
    before = peak_gib()
    start = time.perf_counter()
    if what == "eval":
        with torch.inference_mode():
            model.eval()([torch.rand(3, 800, 1216)])
    else:
        box = torch.tensor([[100.0, 100.0, 300.0, 250.0]])
        images = [torch.rand(3, 480, 640) for _ in range(2)]
        targets = [{"boxes": box, "labels": torch.tensor([1])} for _ in images]
        sum(model.train()(images, targets).values()).backward()
        torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    seconds = time.perf_counter() - start
    return {"without_gib": round(before, 2), f"{what}_gib": round(peak_gib(), 2), f"{what}_seconds": round(seconds, 1)}


def main() -> None:
    rows = []
    for mixer in MIXERS:
        row = {"mixer": mixer}
        for what in ("eval", "train"):
            done = subprocess.run([sys.executable, __file__, mixer, what], check=True, capture_output=True, text=True)
            row |= json.loads(done.stdout)
        rows.append(row)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
