"""Measure the memory of RetinaNet on each mixer's s12 model: results/detection_memory.json.

    python -m benchmarks.measure.detection_memory

RetinaNet has 256 channels at strides 8 to 128, in float32. Evaluation takes one image of 800x1216 pixels, a training
step with AdamW takes two of 480x640. Each measurement is the peak of a new process; `without_gib` is what it holds
before: torch, timm, torchvision and the weights.
"""

import argparse

import torch

from benchmarks.measure.timing import in_fresh_process, machine, memory_mib, save
from benchmarks.paths import RESULTS
from metamix import list_mixers
from metamix.detection import build_detector


def measure(mixer: str, what: str) -> dict:
    """Measure the peak of this process in GiB in "eval" or "train"."""
    torch.manual_seed(0)
    model = build_detector("retinanet", backbone=f"metaformer_{mixer}_s12", num_classes=80, resize_in_training=False)
    model.to(memory_format=torch.channels_last)
    before = peak_gib()
    if what == "eval":
        with torch.inference_mode():
            model.eval()([torch.rand(3, 800, 1216)])
    else:
        box = torch.tensor([[100.0, 100.0, 300.0, 250.0]])
        images = [torch.rand(3, 480, 640) for _ in range(2)]
        targets = [{"boxes": box, "labels": torch.tensor([1])} for _ in images]
        sum(model.train()(images, targets).values()).backward()
        torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    return {"without_gib": before, f"{what}_gib": peak_gib()}


def peak_gib() -> float:
    return round(memory_mib() / 1024, 2)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [
        {"mixer": mixer} | in_fresh_process(measure, mixer, "eval") | in_fresh_process(measure, mixer, "train")
        for mixer in list_mixers()
    ]
    save(RESULTS / "detection_memory.json", machine(), rows, ("mixer",))


if __name__ == "__main__":
    main()
