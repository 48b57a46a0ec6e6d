"""Measure time and memory of image models against the image's size: results/restoration_memory.json.

    python -m benchmarks.measure.restoration_memory                  the small models, 256 to 2048 pixels
    python -m benchmarks.measure.restoration_memory --photograph     a photograph of 12 megapixels as well
    python -m benchmarks.measure.restoration_memory --models wavemix_restore_nano --sides 256,512

One RGB image (luminance for models that take it), float32, inference; sides are those of the model's input. Each
measurement is a new process that keeps freed memory, as `metamix predict` does. `adds_mib` is its peak above
torch, the weights and the image. `seconds` is a second pass: in the first, the system has to provide the memory. The
photograph has 4000 x 3000 pixels and goes through maxim_s1 in tiles of 256, and through maxim_nano in tiles of 512,
with an overlap of 32.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.measure.arguments import list_of
from benchmarks.measure.timing import in_fresh_process, machine, memory_mib, save
from benchmarks.paths import RESULTS
from metamix.models.image_models import create_image_model, image_model_names
from metamix.restoration.inference import Restorer
from metamix.utils.system import keep_freed_memory

FILE = RESULTS / "restoration_memory.json"
MODELS = ("maxim_nano", "wavemix_restore_nano", "wavemixsr_nano")
SIDES = (256, 512, 1024, 2048)  # pixels
PHOTOGRAPH = (3000, 4000)  # height, width
PHOTOGRAPH_RUNS = (("maxim_s1", 256), ("maxim_nano", 512))  # model, tile


@torch.no_grad()
def measure(name: str, height: int, width: int, tile: int) -> dict:
    """Measure one image in this process; tile 0 is the whole image at once."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = create_image_model(name).eval().to(memory_format=torch.channels_last)
    restorer, image = Restorer(tile=tile), torch.rand(1, model.in_chans, height, width)
    before = memory_mib()
    restorer(model, image[..., : tile or height, : tile or width])
    start = time.perf_counter()
    restorer(model, image)
    return {
        "model": name,
        "height": height,
        "width": width,
        "tile": tile,
        "seconds": round(time.perf_counter() - start, 2),
        "adds_mib": round(memory_mib() - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=list_of(tuple(image_model_names())), default=MODELS, help="comma list")
    parser.add_argument("--sides", type=list_of(tuple(map(str, SIDES))), default=SIDES, help="comma list, in pixels")
    parser.add_argument("--photograph", action="store_true", help="also 12 megapixels")
    parser.add_argument("--output", type=Path, default=FILE, help="JSON file")
    options = parser.parse_args()
    runs = [(name, int(side), int(side), 0) for name in options.models for side in options.sides]
    runs += [(name, *PHOTOGRAPH, tile) for name, tile in PHOTOGRAPH_RUNS] if options.photograph else []
    for run in runs:
        row = in_fresh_process(measure, *run)
        print(row, flush=True)
        save(options.output, machine(), [row], ("model", "height", "width", "tile"))


if __name__ == "__main__":
    main()
