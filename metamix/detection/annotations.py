"""Read annotation files in COCO's format, and check the rules that their entries must follow.

Training refuses a file with wrong entries, and leaves out objects that it cannot use. `metamix verify` lists both.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import sub
from pathlib import Path
from typing import Any, TypeGuard

from metamix.data.run_lengths import read_runs
from metamix.utils.files import read_bytes
from metamix.weights.metadata import MAX_SCORED_CLASSES, MAX_SIDE

Entry = dict[str, Any]  # an image, an annotation or a category
Entries = dict[str, list[Entry]]  # all entries of a file, by the keys of FIELDS

# Types are compared exactly, so True is not an integer. pycocotools would split a string id into its characters.
INTEGER = (int,), "an integer"
TEXT = (str,), "a string"
NUMBER = (int, float, type(None)), "a number, if it is given"
FLAG = (int, bool, type(None)), "0 or 1, if it is given"
MAX_AREA = 10**10  # pycocotools ignores objects whose area is not from 0 to this
AREA = (int, float, type(None)), f"a number from 0 to {MAX_AREA:,}; leave it out to compute it from the box"

FIELDS: dict[str, dict[str, tuple[tuple[type, ...], str]]] = {
    "images": {"id": INTEGER, "file_name": TEXT, "width": NUMBER, "height": NUMBER},
    "annotations": {"id": INTEGER, "image_id": INTEGER, "category_id": INTEGER, "area": AREA, "iscrowd": FLAG},
    "categories": {"id": INTEGER, "name": TEXT},
}


def read_annotations(path: Path) -> Entries:
    """Read the images, annotations and categories of a file, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON, or one of its three keys does not hold a list of objects.
    """
    try:
        data = json.loads(read_bytes(path))  # from bytes, json detects UTF-8, UTF-16 and byte order marks
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    lists: dict[str, Any] = {key: data.get(key) if isinstance(data, dict) else None for key in FIELDS}
    for key, entries in lists.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"its {key!r} must be a list of objects")
    return lists


def class_problem(path: Path, classes: Sequence[str], first: Path, expected: Sequence[str]) -> str | None:
    """Describe how the classes of a file differ from the classes of the first file, or return None."""
    if tuple(classes) == tuple(expected):
        return None
    names, first_names = ", ".join(classes), ", ".join(expected)
    return f"{path} has the classes {names}, but {first} has {first_names}; all splits need the same classes"


def field_problems(data: Entries, inside: bool = True) -> Iterator[str]:
    """Describe fields that are missing or wrong, too many classes and, if `inside`, files outside the image folder."""
    if (count := len(data["categories"])) > MAX_SCORED_CLASSES:
        yield f"it has {count:,} categories, but at most {MAX_SCORED_CLASSES:,} can be scored"
    for key, fields in FIELDS.items():
        for place, entry in enumerate(data[key]):
            for field, (types, accepted) in fields.items():
                value: Any = entry.get(field)
                if type(value) not in types or (field == "area" and value is not None and not 0 <= value <= MAX_AREA):
                    wrong = f"no {field}" if value is None else f"the {field} {value!r}"
                    yield f"{key}[{place}] has {wrong}; it must be {accepted}"
                elif (field == "file_name" and inside) and (
                    os.path.isabs(value) or os.path.normpath(value).split(os.sep)[0] == os.pardir
                ):
                    yield f"{key}[{place}] has the file_name {value!r}; it must be a path inside the image folder"
                elif field in ("width", "height") and value is not None and not 0 <= value < 2**31:  # PNG's limit
                    yield f"{key}[{place}] has the {field} {value}; it must be a number of pixels, if it is given"


def duplicates(data: Entries) -> Iterator[str]:
    """Describe duplicate ids, which would mix up two entries, and duplicate class names, which would merge classes."""
    for key, field in (("images", "id"), ("annotations", "id"), ("categories", "id"), ("categories", "name")):
        seen = set()
        for entry in data[key]:
            if entry[field] in seen:
                yield f"the {field} {entry[field]} appears twice in {key}"
            seen.add(entry[field])


def is_box(box: object) -> TypeGuard[list[float]]:
    """Return whether a value is a list of four numbers, finite or not."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(type(x) is float or (type(x) is int and abs(x) < 2**53) for x in box)  # float() overflows for huge ints


def object_problem(annotation: Entry, images: Mapping[int, Entry], classes: Collection[int]) -> str | None:
    """Describe why an annotation cannot be used in training and scoring, or return None."""
    image, box = images.get(annotation["image_id"]), annotation.get("bbox")
    if image is None:
        return "its image is not in the file"
    if annotation["category_id"] not in classes:
        return f"class {annotation['category_id']} is unknown; the classes are {', '.join(map(str, sorted(classes)))}"
    if not is_box(box):
        return f"its box is {box}; four numbers x, y, width, height are needed"
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        return f"its box {box} has no area; finite x, y, width, height are needed, the last two above 0"
    height, width = image.get("height"), image.get("width")
    if min(clipped(box, width or math.inf, height or math.inf)) <= 0:
        size = f" of {height} x {width} pixels" if height and width else ""
        return f"its box {box} has no area inside the image{size}"
    return None


def usable_annotations(data: Entries) -> list[Entry]:
    """Return the annotations that have a known image, a known class, and a finite box that overlaps the image."""
    images = {image["id"]: image for image in data["images"]}
    classes = {category["id"] for category in data["categories"]}
    return [annotation for annotation in data["annotations"] if not object_problem(annotation, images, classes)]


def clipped(box: Sequence[float], width: float, height: float) -> tuple[float, float]:
    """Return the width and height of the part of a box x, y, w, h that lies inside the image.

    If no part lies inside, the width or the height is 0 or less.
    """
    x, y, w, h = box
    return min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)


def box_sizes(usable: Iterable[Entry], images: Mapping[int, Entry], min_size: int, max_size: int) -> list[float]:
    """Return the square root of each box's area inside the image, in pixels of the image resized for training.

    Crowds, and the boxes of images without width and height, are left out.

    Args:
        usable: annotations; see `usable_annotations`.
        images: entries of `images`, by id.
        min_size, max_size: shorter side of the resized image, and limit of its longer side, in pixels.
    """
    sizes = []
    for annotation in usable:
        width, height = (images[annotation["image_id"]].get(side) for side in ("width", "height"))
        if width and height and not annotation.get("iscrowd"):
            scale = min(min_size / min(width, height), max_size / max(width, height))
            sizes.append(scale * math.sqrt(math.prod(clipped(annotation["bbox"], width, height))))
    return sizes


def segmentation_problem(segmentation: Any, image: Entry) -> str | None:
    """Describe why a segmentation cannot be drawn as a mask, or return None.

    pycocotools fails on such segmentations, or reads beyond their end.
    """
    if not segmentation:
        return "it has neither a polygon of three points or more nor run lengths"
    if isinstance(segmentation, dict):
        return read_runs(segmentation, image.get("height"), image.get("width"))[1]
    if not isinstance(segmentation, list):
        return f"its segmentation is {segmentation!r}; polygons or run lengths are needed"
    side = min(max(image.get("width") or 0, image.get("height") or 0), MAX_SIDE)
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            return f"its segmentation has the polygon {polygon}; x and y of three points or more are needed"
        inside = -side <= min(polygon) and max(polygon) <= 2 * side and math.isfinite(sum(polygon))
        if side and not inside:  # pycocotools crashes on huge numbers
            return "its segmentation has a polygon with a point far outside of the image"
        if side and sum(map(abs, map(sub, polygon[2:], polygon))) > 1000 * side:  # pycocotools takes 100 bytes a pixel
            return "its segmentation has a polygon whose outline is over 1,000 times as long as the image"
    return None
