"""Find objects in images.

    OUTPUT/NAME.png            the image with its boxes and masks
    OUTPUT/predictions.json    path, width, height and objects of each image; objects are sorted by score

An object has a class, a score and a box (x1, y1, x2, y2 in pixels of the upright image). With Mask R-CNN it also has a
mask: run lengths in COCO's text form, {"size": [height, width], "counts": text}, for `pycocotools.mask.decode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metamix.data.files import read_pixels
from metamix.tasks.predict import PredictToFolder, predict_images
from metamix.utils.files import make_output_folder
from metamix.utils.options import option
from metamix.utils.rules import Share
from metamix.utils.text import plural, printable

from .load import TrainedDetector
from .objects import Objects, to_text
from .pictures import draw_image


@dataclass
class FindObjects(PredictToFolder):
    """Find the objects in images, draw them, and write predictions.json."""

    threshold: Share = option(0.5, "lowest score of an object to draw and list")

    def run(self, trained: TrainedDetector) -> int:
        def draw(path: Path, name: Path) -> dict[str, Any]:
            pixels, picture = read_pixels(path), self.output / name
            objects = trained.find(pixels, self.threshold)
            make_output_folder(picture.parent)
            draw_image(picture, pixels, objects, trained.classes)
            records = describe_objects(objects, trained.classes)
            tqdm.write(printable(f"{path}: {plural(len(records), 'object')}"))
            return {"width": pixels.shape[2], "height": pixels.shape[1], "objects": records}

        drawn = predict_images(self.names, draw, self.records)
        print(printable(f"written: {self.records} and {plural(drawn, 'picture')}"))
        return len(self.names) - drawn


def describe_objects(objects: Objects, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the class, score, box and, if there are masks, the mask of each object, as values that JSON can hold."""
    rows = zip(objects["labels"].tolist(), objects["scores"].tolist(), objects["boxes"].tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"class": classes[label - 1], "score": round(score, 4), "box": [round(value, 1) for value in box]}
        for label, score, box in rows
    ]
    for record, runs in zip(records, objects.get("runs", ())):
        record["mask"] = to_text(runs)
    return records
