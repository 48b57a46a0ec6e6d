"""Measure the memory of models in evaluation and training, each measurement in a new process.

    python -m benchmarks.measure.memory inference      each mixer's s12 model: results/inference_memory.json
    python -m benchmarks.measure.memory detection      RetinaNet on each s12 model: results/detection_memory.json
    python -m benchmarks.measure.memory restoration    image models, 256 to 2048 pixels: results/restoration_memory.json
    python -m benchmarks.measure.memory photograph     image models, 12 megapixels, into the same file

All measurements are in float32 and channels_last. `adds_mib` is the memory that a pass adds to the peak of a process
that holds torch, the weights and the image. `peak_mib` and the GiB of detection are peaks of the whole process.

inference     One image of each size in `SIZES`.
detection     RetinaNet has 256 channels at strides 8 to 128. Evaluation takes one image of 800x1216 pixels, and a
              training step with AdamW takes two images of 480x640.
restoration   One random image of each side in `SIDES`, with as many channels as the model takes. The process keeps
              freed memory, as `metamix predict` does. `seconds` is the time of the second pass, since the
              first also waits for the system to provide memory.
photograph    maxim_s1 and maxim_nano restore an image of 4000 x 3000 pixels, in tiles of 256 x 256 pixels for maxim_s1
              and of 512 x 512 pixels for maxim_nano. The tiles overlap by 32 pixels.
"""

import argparse
import time
from collections.abc import Sequence

import timm
import torch

from benchmarks.measure.timing import in_fresh_process, machine, memory_mib, save
from benchmarks.paths import RESULTS, write_json
from metamix import list_mixers
from metamix.detection import build_detector
from metamix.models.image_models import create_image_model
from metamix.restoration.inference import Restorer
from metamix.utils.system import keep_freed_memory

INFERENCE, DETECTION, RESTORATION = (
    RESULTS / f"{name}_memory.json" for name in ("inference", "detection", "restoration")
)
SIZES = ((224, 224), (800, 1216))  # height, width in pixels
SIDES = (256, 512, 1024, 2048)
IMAGE_MODELS = ("maxim_nano", "wavemix_restore_nano", "wavemixsr_nano")
PHOTOGRAPH = (("maxim_s1", 3000, 4000, 256), ("maxim_nano", 3000, 4000, 512))  # model, height, width, tile


def inference() -> None:
    """Measure one forward pass of each mixer's s12 model."""
    names = [f"metaformer_{mixer}_s12" for mixer in list_mixers()]
    rows = [in_fresh_process(forward, name, *size) for name in names for size in SIZES]
    write_json(INFERENCE, rows)


def forward(name: str, height: int, width: int) -> dict:
    """Measure one forward pass in this process."""
    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, height, width).to(memory_format=torch.channels_last)
    before = memory_mib()
    with torch.inference_mode():
        model(image)
    peak = memory_mib()
    return {"model": name, "size": [height, width], "adds_mib": round(peak - before), "peak_mib": round(peak)}


def detection() -> None:
    """Measure RetinaNet on each mixer's s12 model."""
    rows = [
        {"mixer": mixer} | in_fresh_process(detect, mixer, "eval") | in_fresh_process(detect, mixer, "train")
        for mixer in list_mixers()
    ]
    save(DETECTION, machine(), rows, ("mixer",))


def detect(mixer: str, mode: str) -> dict:
    """Measure the peak memory of this process in GiB, before and after one step of "eval" or "train"."""
    torch.manual_seed(0)
    model = build_detector("retinanet", backbone=f"metaformer_{mixer}_s12", num_classes=80, resize_in_training=False)
    model.to(memory_format=torch.channels_last)
    before = memory_mib()
    if mode == "eval":
        with torch.inference_mode():
            model.eval()([torch.rand(3, 800, 1216)])
    else:
        box = torch.tensor([[100.0, 100.0, 300.0, 250.0]])
        images = [torch.rand(3, 480, 640) for _ in range(2)]
        targets = [{"boxes": box, "labels": torch.tensor([1])} for _ in images]
        sum(model.train()(images, targets).values()).backward()
        torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    return {"without_gib": round(before / 1024, 2), f"{mode}_gib": round(memory_mib() / 1024, 2)}


def restoration(runs: Sequence[tuple[str, int, int, int]]) -> None:
    """Measure image models; a run is (model, height, width, tile). Tile 0 means the whole image at once."""
    for run in runs:
        row = in_fresh_process(restore, *run)
        print(row, flush=True)
        save(RESTORATION, machine(), [row], ("model", "height", "width", "tile"))


@torch.no_grad()
def restore(name: str, height: int, width: int, tile: int) -> dict:
    """Measure the restoration of one image in this process."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = create_image_model(name).eval().to(memory_format=torch.channels_last)
    restorer, image = Restorer(tile=tile), torch.rand(1, model.in_chans, height, width)
    before = memory_mib()
    restorer(model, image[..., : tile or height, : tile or width])
    start = time.perf_counter()
    restorer(model, image)
    row = {"model": name, "height": height, "width": width, "tile": tile}
    return row | {"seconds": round(time.perf_counter() - start, 2), "adds_mib": round(memory_mib() - before)}


def main(argv: Sequence[str] | None = None) -> None:
    parts = {
        "inference": inference,
        "detection": detection,
        "restoration": lambda: restoration([(name, side, side, 0) for name in IMAGE_MODELS for side in SIDES]),
        "photograph": lambda: restoration(PHOTOGRAPH),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts, help="measurement to make")
    parts[parser.parse_args(argv).part]()


if __name__ == "__main__":
    main()
