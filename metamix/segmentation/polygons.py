"""Read the outlines of objects in COCO's format, to make masks for training."""

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from metamix.data.tables import SPLITS
from metamix.utils.files import read_bytes

from .labelme import IGNORE, Shape, check_shapes, masks_of
from .masks import Masks

Entries = list[tuple[str, tuple[int, int], list[Shape]]]  # name, (height, width) and outlines of each image


def read_polygons(source: Path) -> Masks:
    """Read annotations/instances_*.json, as `metamix convert coco` and `yolo` write them, and draw the polygons.

    A small object is drawn over a larger one. The rest of an image is background. The pixels of crowds are ignored.
    """
    files = {path.stem.removeprefix("instances_"): path for path in sorted(source.glob("annotations/instances_*.json"))}
    if not files:
        raise FileNotFoundError(
            f"{source} has no annotations/instances_train.json: make it with metamix convert coco, or yolo"
        )
    notes: dict[str, list[str]] = defaultdict(list)
    read = {
        split: read_outlines(path, notes["objects without a polygon were left out"]) for split, path in files.items()
    }
    labels = masks_of(outline for entries in read.values() for _, _, outlines in entries for outline in outlines)
    labels.notes = notes
    for split, entries in read.items():
        folders = [source / split, source / "images" / split, source / "images"]
        for name, size, outlines in entries:
            file = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if file:
                stem = os.path.splitext(name)[0]
                labels.add(SPLITS.get(split.lower(), ""), stem, file, size, (size, outlines))
            else:
                labels.notes["images that do not exist were left out"].append(f"{name} of {files[split]}")
    if not any(outlines for _, (_, outlines) in (sample.label for sample in labels.samples)):
        raise ValueError(f"{source} has no image with a polygon: give a data set whose objects have polygons")
    return labels


def read_outlines(path: Path, without: list[str]) -> Entries:
    """Read the images of a file and their outlines, the largest first; list the objects `without` a polygon."""
    try:
        data = json.loads(read_bytes(path))
        classes = {each["id"]: " ".join(str(each["name"]).split()) for each in data["categories"]}
        objects: dict[object, list[Shape]] = {each["id"]: [] for each in data["images"]}
        for each in sorted(data["annotations"], key=lambda each: -float(each["area"])):
            label = IGNORE if each.get("iscrowd") else classes[each["category_id"]]
            polygons = each.get("segmentation")
            if not polygons or not isinstance(polygons, list):  # a box alone, or run lengths
                without.append(f"{path}, annotation {each['id']}")
                continue
            for values in polygons:
                points = [(float(x), float(y)) for x, y in np.reshape(values, (-1, 2))]
                objects[each["image_id"]].append(Shape(label, "polygon", points))
        entries = []
        for each in data["images"]:
            name = os.path.normpath(f"/{each['file_name']}".replace("\\", "/")).lstrip("/")  # inside of the folder
            entries.append((name, (int(each["height"]), int(each["width"])), objects[each["id"]]))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not in COCO's format: {type(error).__name__}: {error}") from None
    for _, size, shapes in entries:
        check_shapes(path, size, shapes)
    return entries
