"""Finds what is wrong with a data set in COCO's format before a detector is trained on it.

    python -m metamix.detection.verify FOLDER                         all splits, as metamix.detection.coco finds them
    python -m metamix.detection.verify FILE.json --images FOLDER      one annotation file

One line for each finding: the file, the image, the annotation, and what is wrong; the exit code is 1 if there is any.
Training and scores leave out what they cannot use; training cuts boxes to their image, and learns from images without
boxes that there is nothing to see.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from metamix.data import CorruptImage
from metamix.utils.text import readable

from .coco import find_splits, is_useless, no_images, read_described
from .annotations import field_problems, repeated, segmentation_problem


def find_problems(annotations: Path, images: Path | None) -> Iterator[str]:
    """A sentence for each thing that is wrong with an annotation file and the images that it names."""
    if images is None:
        yield no_images(annotations)
        return
    try:
        data = json.loads(annotations.read_text())
        entries = {key: data[key] for key in ("images", "annotations", "categories")}
        for key, values in entries.items():
            if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
                raise TypeError(f"{key} is no list of objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{annotations}: not an annotation file of COCO's format ({type(error).__name__}: {error})"
        return
    wrong = [f"{annotations}: {what}" for what in field_problems(entries)]
    if wrong:  # what follows looks entries up by these fields
        yield from wrong
        return
    yield from (f"{annotations}: {what}" for what in repeated(entries))

    by_id = {image["id"]: image for image in entries["images"]}
    classes = {category["id"] for category in entries["categories"]}
    with_boxes = set()
    for annotation in entries["annotations"]:
        image = by_id.get(annotation["image_id"])
        what = box_problem(annotation, image, classes)
        if not what and annotation.get("segmentation"):  # boxes need none
            what = segmentation_problem(annotation["segmentation"], image)
        if is_box(annotation.get("bbox")) and not annotation.get("iscrowd"):
            if not is_useless(annotation, image, classes):  # one that reaches out of its image is cut
                with_boxes.add(image["id"])
        if what:
            yield f"{annotations}: {name(image, annotation)}, annotation {annotation['id']}: {what}"
    for image in entries["images"]:
        what = file_problem(image, images) or (image["id"] not in with_boxes and "no box (it trains as background)")
        if what:
            yield f"{annotations}: {name(image)}: {what}"


def name(image: dict | None, annotation: dict | None = None) -> str:
    if image is None:
        return f"image {annotation['image_id']}"
    return f"image {image['id']} ({image['file_name']})"


def is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)


def box_problem(annotation: dict, image: dict | None, classes: set) -> str | None:
    """What is wrong with an annotation, or None. Half a pixel over the edge is rounding, not an error."""
    if image is None:
        return "its image is not in the file"
    if annotation["category_id"] not in classes:
        return f"class {annotation['category_id']} is unknown; known are {', '.join(map(str, sorted(classes)))}"
    box = annotation.get("bbox")
    if not is_box(box):
        return f"its box is {box}; four numbers x, y, width, height are needed"
    x, y, w, h = box
    if not all(map(math.isfinite, box)):
        return f"its box {box} is not finite"
    if w < 0 or h < 0:
        return f"its box {box} is inverted: x, y, width, height"
    if w == 0 or h == 0:
        return f"its box {box} is empty"
    width, height = image.get("width"), image.get("height")
    if width and height and (x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5):
        return f"its box {box} reaches out of the image of {width} x {height}"
    return None


def file_problem(image: dict, folder: Path) -> str | None:
    path = folder / image["file_name"]
    if not path.is_file():
        return f"there is no file {path}"
    try:
        read_described(folder, image)
    except CorruptImage as error:
        return f"it cannot be used: {error}"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metamix.detection.verify", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of a data set, or one annotation file")
    parser.add_argument("--images", type=Path, help="folder of the images that an annotation file names")
    options = parser.parse_args(argv)
    if options.data.is_dir():
        try:
            splits = list(find_splits(options.data).values())
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
    else:
        splits = [(options.data, options.images or options.data.parent)]
    count = 0
    for annotations, images in splits:
        for what in find_problems(annotations, images):
            print(readable(what))
            count += 1
    read = ", ".join(str(path) for path, _ in splits)
    print(f"{count} finding{'s' * (count > 1)}" if count else readable(f"{read}: nothing is wrong"))
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
