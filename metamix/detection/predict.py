"""Finds objects in images.

    python -m metamix.detection.predict IMAGE... --checkpoint FILE

FILE is a run folder of train.py --task detection, or a file in it. Each image is drawn with its boxes to
OUTPUT/<name>.png, and all of them listed in OUTPUT/predictions.json: for each image its path, width and height and the
objects, the surest first, with class, score and box (x1, y1, x2, y2 in pixels of the upright image). One that cannot
be read is left out, and the exit code is then 1.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from metamix.data import CorruptImage
from metamix.training.processes import ProcessGroup
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message, readable

from .coco import read_image
from .load import load_detector
from .pictures import Objects, draw_image


@torch.no_grad()
def predict(model: nn.Module, path: Path, threshold: float) -> tuple[Tensor, Objects]:
    """The pixels of an image, (3, H, W) uint8, and the objects that score `threshold` or more; CorruptImage where it
    cannot be read."""
    image = F.pil_to_tensor(read_image(path))
    (found,) = model.eval()([image.to(next(model.parameters()).device) / 255])
    sure = (found["scores"] >= threshold) & (found["labels"] > 0)
    return image, {key: value[sure].cpu() for key, value in found.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metamix.detection.predict", description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, help="run folder, or weights in it")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of what is shown (default: 0.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    options = parser.parse_args(argv)
    missing = [str(path) for path in options.images if not path.is_file()]
    if missing:
        parser.error(f"there is no image {', '.join(missing)}")
    if len({path.stem for path in options.images}) < len(options.images):
        parser.error("several images have one name, and so would their pictures: give each its own --output")
    drawn = [options.output / f"{path.stem}.png" for path in options.images]
    if own := [str(path) for path, picture in zip(options.images, drawn) if path.resolve() == picture.resolve()]:
        parser.error(f"{', '.join(own)} would be overwritten by its picture: give another --output")
    try:
        device = ProcessGroup.start(options.device).device
        model, about = load_detector(options.checkpoint)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    with exit_with_message(OSError):
        options.output.mkdir(parents=True, exist_ok=True)
        model, records, broken = model.to(device), [], 0
        for path in options.images:
            try:
                image, found = predict(model, path, options.threshold)
            except CorruptImage as error:
                print(readable(f"left out: {error}"), file=sys.stderr)
                broken += 1
                continue
            draw_image(options.output / f"{path.stem}.png", image, found, about["classes"])
            objects = [
                {"class": about["classes"][label - 1], "score": round(score, 4), "box": [round(v, 1) for v in box]}
                for label, score, box in zip(
                    found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist()
                )
            ]
            records.append({"image": str(path), "width": image.shape[2], "height": image.shape[1], "objects": objects})
            print(readable(f"{path}: {len(objects)} objects"))
        write_text(options.output / "predictions.json", json.dumps(records, indent=2) + "\n")
        print(readable(f"written: {options.output / 'predictions.json'} and {len(records)} pictures"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
