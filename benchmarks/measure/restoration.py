"""Score the shipped restoration weights on the standard test sets, time them, and write results/restoration.json.

    python -m benchmarks.measure.restoration data/photos
    python -m benchmarks.measure.restoration data/photos --names wavemix_restore_nano.noise25
    python -m benchmarks.measure.restoration data/photos --parts speed

The folder holds bsd68, set12, set14 and set5/hr. Weights for noise are scored on bsd68 and set12, and weights
for super-resolution are scored on set5/hr and set14, both in float32. `psnr_x8` is the PSNR of the mean over eight
orientations. Other weights are only timed. For timing, the output has 256 x 256 pixels.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure import timing
from benchmarks.paths import RESULTS
from benchmarks.scoring import score_restoration as score
from benchmarks.weight_cards import load_cards
from metamix.models.image_models import create_image_model
from metamix.restoration.options import RestorationEvalOptions
from metamix.restoration.task import Restoration
from metamix.utils.system import keep_freed_memory
from metamix.utils.text import exit_with_message
from metamix.utils.timing import interleaved

FILE = RESULTS / "restoration.json"
SETS = {"noise": ("bsd68", "set12"), "downscale": ("set5/hr", "set14")}
PARTS = ("scores", "speed")
SIDE = 256  # side of the restored image in pixels


def measure(card: dict, photos: Path, seconds: float, parts: Sequence[str] = PARTS) -> list[dict]:
    """Score the weights of a card, or time them, or both."""
    kind = card["degradation"].partition(":")[0]
    rows = [score_set(card, photos / name) | {"set": name} for name in SETS.get(kind, ()) if "scores" in parts]
    if "speed" in parts:
        rows.append({"name": card["name"], "set": "speed", "ms": round(1000 * time_model(card, seconds), 1)})
    return rows


def score_set(card: dict, folder: Path) -> dict:
    """Score the weights of a card on the images of a folder, without and with the self-ensemble."""
    options = RestorationEvalOptions(model=card["name"], pretrained=True, test_dir=str(folder), workers=0)
    task, model, _ = Restoration.for_evaluation(options)
    row = {"name": card["name"], "images": len(task.data.parts["test"])}
    row |= {key: round(value, 4) for key, value in score(task, model).items()}
    task.metric.restorer = replace(task.metric.restorer, ensemble=True)
    return row | {
        "psnr_x8": round(score(task, model)["psnr"], 4),
        "measured": task.measure.describe(task.data.channels),
    }


def time_model(card: dict, seconds: float) -> float:
    """Return the median latency of one image in seconds."""
    model = create_image_model(card["name"], pretrained=True).eval().to(memory_format=torch.channels_last)
    side = SIDE // model.scale
    image = torch.rand(1, card["in_chans"], side, side).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.inference_mode():
            model(image)

    return interleaved({"": step}, seconds)[""]


def main() -> None:
    cards = load_cards(task="restoration")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with bsd68, set12, set14 and set5/hr")
    parser.add_argument("--names", nargs="+", choices=[card["name"] for card in cards], help="weights (default: all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: both)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds to time each model")
    options = parser.parse_args()
    keep_freed_memory()
    with exit_with_message(ValueError, OSError):
        for card in cards:
            if card["name"] in (options.names or [card["name"]]):
                rows = measure(card, options.photos, options.seconds, options.parts)
                timing.save(FILE, timing.machine(), rows, ("name", "set"))


if __name__ == "__main__":
    main()
