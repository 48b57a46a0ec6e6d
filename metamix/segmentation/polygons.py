"""Read the outlines of objects in COCO's format, to make masks for training."""

import json
import os
import posixpath
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from metamix.data.run_lengths import is_brush, read_runs
from metamix.data.tables import SPLITS
from metamix.utils.files import read_bytes

from .labelme import IGNORE, Shape, check_shapes, masks_of
from .masks import Masks

Entries = list[tuple[str, tuple[int, int], list[Shape]]]  # name, (height, width) and outlines of each image


def read_polygons(source: Path) -> Masks:
    """Read annotations/instances_*.json, as `metamix convert coco` and `yolo` write them.

    `Masks.write` draws small objects over larger objects. The rest of an image is background. The pixels of crowds are
    ignored. For an object with neither a polygon nor a mask, the pixels of its box are ignored.
    """
    files = {path.stem.removeprefix("instances_"): path for path in sorted(source.glob("annotations/instances_*.json"))}
    if not files:
        raise FileNotFoundError(
            f"{source} has no annotations/instances_train.json: make it with `metamix convert coco` or `yolo`"
        )
    notes: dict[str, list[str]] = defaultdict(list)
    read = {
        split: read_outlines(path, notes["objects have no polygon or mask, and the pixels of their boxes are ignored"])
        for split, path in files.items()
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
    if not any(shape.label != IGNORE for sample in labels.samples for shape in sample.label[1][1]):
        raise ValueError(
            f"{source} has no image with a polygon or mask: give a data set that has images and their objects' outlines"
        )
    return labels


def read_outlines(path: Path, without: list[str]) -> Entries:
    """Read the images of a file and their outlines, the largest first; add objects without an outline to `without`."""
    try:
        data = json.loads(read_bytes(path))
        classes = {each["id"]: " ".join(str(each["name"]).split()) for each in data["categories"]}
        objects: dict[object, list[Shape]] = {each["id"]: [] for each in data["images"]}
        sizes = {each["id"]: (int(each["height"]), int(each["width"])) for each in data["images"]}
        for each in sorted(data["annotations"], key=area, reverse=True):
            shape = each.get("segmentation")
            label = IGNORE if each.get("iscrowd") and not is_brush(each, shape) else classes[each["category_id"]]
            if isinstance(shape, dict):
                runs, problem = read_runs(shape, *sizes[each["image_id"]])
                if problem:
                    raise ValueError(f"annotation {each['id']}: {problem}")
                objects[each["image_id"]].append(Shape(label, "mask", [(0, 0)], runs=runs))
                continue
            # Some annotation programs also write polygons of one or two points.
            polygons = [part for part in shape if len(part) >= 6] if isinstance(shape, list) else []
            if not polygons:
                x, y, width, height = each["bbox"]
                label, polygons = IGNORE, [[x, y, x + width, y, x + width, y + height, x, y + height]]
                without.append(f"{path}, annotation {each['id']}")
            for part in polygons:
                points = [(float(x), float(y)) for x, y in np.reshape(part, (-1, 2))]
                objects[each["image_id"]].append(Shape(label, "polygon", points))
        entries = []
        for each in data["images"]:
            name = posixpath.normpath(f"/{each['file_name']}".replace("\\", "/")).lstrip("/")  # inside the folder
            entries.append((name, sizes[each["id"]], objects[each["id"]]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not in COCO's format: {type(error).__name__}: {error}") from None
    for _, size, shapes in entries:
        check_shapes(path, size, shapes)
    return entries


def area(annotation: dict[str, Any]) -> float:
    """Return the area of an object, or of its box if the file does not record the area."""
    value = float(annotation.get("area") or annotation["bbox"][2] * annotation["bbox"][3])
    if not 0 <= value < np.inf:  # the order of drawing would be wrong
        raise ValueError(f"annotation {annotation['id']} has the area {value}: leave area out, or correct its bbox")
    return value
