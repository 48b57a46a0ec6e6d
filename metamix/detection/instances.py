"""Read masks of instance numbers, in which each value except 0 is an object, to make a data set in COCO's format."""

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np

from metamix.data.files import as_corrupt_image, read_header, read_mask_file
from metamix.data.pairs import MASK_FOLDER, Pairs, find_files, match_files
from metamix.data.tables import SPLITS
from metamix.utils.extras import need
from metamix.utils.text import list_names

from .labels import Box, Boxes
from .objects import encode, to_text


def read_instances(source: Path) -> Boxes:
    """Read images and their masks. A folder inside a folder of masks names the class, as in masks/person/a.png."""
    images, masks = find_files(source, without="SegmentationClass")
    folders = {part for image in images.values() for part in image.relative_to(source).parts[:-1]}
    classes = {mask: class_of(mask.relative_to(source).parts[:-1], folders) for mask in masks.values()}
    pairs: Pairs = {}
    for label in set(classes.values()):
        pairs |= match_files(images, {key: mask for key, mask in masks.items() if classes[mask] == label})
    labels = Boxes(sorted({classes[mask] for mask in pairs}))
    labels.note_rest("mask", images, masks, pairs)
    boxes: dict[tuple[str, str, Path], list[Box]] = defaultdict(list)
    for mask in sorted(pairs):
        boxes[pairs[mask]] += read_objects(mask, pairs[mask][-1], classes[mask])
    for (split, name, image), objects in boxes.items():
        labels.add(f"{name}{image.suffix}", image, objects, split)
    return labels.checked(source)


def class_of(folders: tuple[str, ...], folders_of_images: Container[str]) -> str:
    """Return the class of the objects in a mask; `folders` are the folders that the mask is in."""
    *outer, last = ("", *(f for f in folders if not any(map(SPLITS.get, re.split("[-_. ]", f.lower())))))
    is_class = any(map(MASK_FOLDER.search, outer)) and not MASK_FOLDER.search(last)
    return last if is_class and last not in folders_of_images else "object"


def read_objects(mask: Path, image: Path, label: str) -> Iterator[Box]:
    """Yield the objects of a mask; raise ValueError if it is in colour, a JPEG, soft-edged or of another size."""
    coco_mask = need("pycocotools.mask", "detection")
    with as_corrupt_image(mask):
        numbers = np.array(file := read_mask_file(mask))
    if numbers.ndim > 2 or file.format in ("JPEG", "MPO"):
        raise ValueError(f"{mask} is in colour or a JPEG; a mask has the number of an object for each pixel")
    if (size := read_header(image).size) != numbers.shape:
        raise ValueError(f"{mask} has {numbers.shape} pixels (height, width), but {image} has {size}")
    borders = [255] if "SegmentationObject" in mask.parts else []  # VOC's masks number the borders of objects 255
    pixels = numbers[numbers > 0]
    values = np.setdiff1d(pixels, borders).tolist()
    if len(values) > 1 and values[-1] == 255 and pixels.dtype == np.uint8:
        steps = np.diff(values, prepend=0)
        if max(steps) > 2 * min(steps) or (len(values) > 99 and np.median(pixels) == 255):
            raise ValueError(
                f"{mask} has the values {list_names(values)}, which look like soft edges or borders: save masks "
                f"without antialiasing, with 0 around the objects and the objects numbered 1, 2, ..."
            )
    for number in values:
        runs = encode(numbers == number)
        x, y, width, height = coco_mask.toBbox(runs).tolist()
        more = {"segmentation": to_text(runs), "area": int(coco_mask.area(runs))}
        yield Box(label, (x, y, x + width, y + height), f"{mask}, object {number}", more=more)
