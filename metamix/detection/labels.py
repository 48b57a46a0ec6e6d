"""Collect boxes that were read from labels of other programs, check them, and write them in COCO's format."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from math import inf
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from metamix.data.files import read_header
from metamix.data.tables import SPLITS
from metamix.tasks.convert import LabelledImages, Sample
from metamix.utils.files import write_text
from metamix.utils.text import plural

from .annotations import Entries, Entry

# A box may extend this many pixels beyond its image without a note: labels may be rounded, and VOC files may count
# pixels from 0 instead of 1.
EDGE = 1


@dataclass(frozen=True)
class Box:
    """An object that was read from labels."""

    label: str  # name of its class
    corners: tuple[float, ...]  # x1, y1, x2, y2: pixels, counted from 0, or shares of width and height
    place: str = field(compare=False)  # file of the label with its line or annotation, for messages
    difficult: bool = False  # whether training and scores ignore the object
    more: Mapping[str, Any] = field(default_factory=dict)  # further fields of the annotation, such as `segmentation`
    outline: Sequence[float] = ()  # x, y, x, y, ... of its polygon; empty if it has none


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """List the subfolders that are named after a split, such as train or valid, each with the name of its split."""
    folders = ((SPLITS.get(path.name.lower()), path) for path in sorted(folder.glob("*")) if path.is_dir())
    return [(split, path) for split, path in folders if split]


class Boxes(LabelledImages):
    """Collect images with boxes. The label of a sample is (height, width, boxes). Class numbers begin at 1."""

    def __init__(self, classes: Sequence[str]):
        super().__init__(("--config", "finetune/tiny_detection"))
        self.classes = classes

    def add(
        self, name: str, file: Path, boxes: Iterable[Box], split: str, size: tuple[int, int] = (0, 0), *, shares=False
    ) -> None:
        """Add an image, and note what is left out or unusual.

        Args:
            size: height and width that the labels give; 0 if they give none.
            shares: whether boxes and outlines are given as shares of width and height, not in pixels.
        """
        try:
            height, width = read_header(file).size
        except ValueError:
            self.notes["images that cannot be read were left out"].append(str(file))
            return
        if all(size) and size != (height, width):
            sizes = f"{height} x {width} instead of {size[0]} x {size[1]}"
            self.notes["images whose size differs from the annotated size were left out"].append(f"{file} ({sizes})")
            return
        sides = (width, height) if shares else (1, 1)
        kept = []
        for box in boxes:
            corners, outline = (tuple(map(mul, points, cycle(sides))) for points in (box.corners, box.outline))
            x1, y1, x2, y2 = corners
            if not (-inf < x1 < x2 < inf and -inf < y1 < y2 < inf):
                self.notes["boxes without a finite area were left out"].append(box.place)
                continue
            if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                self.notes["boxes outside of their image were left out"].append(box.place)
                continue
            if min(x1, y1) < -EDGE or x2 > width + EDGE or y2 > height + EDGE:
                self.notes["boxes extend beyond their image, and training clips them"].append(box.place)
            kept.append(replace(box, corners=corners, outline=outline))
        self.samples.append(Sample(file, name, split, label=(height, width, tuple(kept))))

    def checked(self, where: object) -> "Boxes":
        """Return these labels; raise ValueError if no image has a box. `where` says where labels are expected."""
        if not any(sample.label[2] for sample in self.samples):
            notes = "; ".join(f"{clause}, such as {places[0]}" for clause, places in self.notes.items() if places)
            raise ValueError(f"there is no image with a box; labels are expected in {where}. {notes}".strip())
        return self

    def write(self, folder: Path, splits: Mapping[str, Sequence[Sample]]) -> str:
        """Write the annotations of each split, and return a text that counts classes and boxes."""
        count = 0
        (folder / "annotations").mkdir()
        for split, samples in splits.items():
            data = self.entries(samples)
            count += len(data["annotations"])
            write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(data))
        return f"{plural(len(self.classes), 'class')}, {plural(count, 'box')}"

    def entries(self, samples: Iterable[Sample]) -> Entries:
        """Return an annotation file's content. Difficult objects become crowds, which training and scores ignore."""
        numbers = {name: number for number, name in enumerate(self.classes, start=1)}
        images: list[Entry] = []
        annotations: list[Entry] = []
        for sample in samples:
            height, width, boxes = sample.label
            images.append({"id": len(images) + 1, "file_name": sample.name, "width": width, "height": height})
            for box in boxes:
                x1, y1, x2, y2 = box.corners
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": numbers[box.label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(box.difficult),
                        **box.more,
                    }
                )
                if box.outline:
                    annotations[-1] |= {"segmentation": [list(box.outline)], "area": area(box.outline)}
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def area(outline: Sequence[float]) -> float:
    """Return the area of a polygon x, y, x, y, ... (the shoelace formula)."""
    xs, ys = np.reshape(outline, (-1, 2)).T
    return float(abs(xs @ np.roll(ys, 1) - ys @ np.roll(xs, 1)) / 2)
