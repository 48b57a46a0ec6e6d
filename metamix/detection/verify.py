"""Find the problems of a data set in COCO's format or of one annotation file.

Each problem is printed with its file, image and annotation. Training and scoring refuse wrong fields, duplicate ids or
class names, splits with different classes and, for mask_rcnn, missing or wrong masks. They leave out unreadable images,
and objects that have an unknown image, an unknown class or no area inside their image. Training clips boxes at the
edges of their image, and takes images without boxes as background.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from metamix.data import CorruptImage
from metamix.tasks.verify import VerifyOptions
from metamix.utils.options import option
from metamix.utils.rules import Count
from metamix.utils.text import plural, printable

from .anchors import choose_anchor_scale, describe_sizes, retinanet_sizes
from .annotations import (
    Entries,
    Entry,
    box_sizes,
    class_problem,
    duplicates,
    field_problems,
    object_problem,
    read_annotations,
    segmentation_problem,
    usable_annotations,
)
from .coco import find_splits, no_images_message, read_annotated_image

RETINANET_STRIDES = (8.0, 16.0, 32.0, 64.0, 128.0)


def find_problems(annotations: Path, entries: Entries, images: Path | None) -> Iterator[str]:
    """Describe each problem in the entries of an annotation file and, if the image folder is known, in its images."""
    yield from (f"{annotations}: {problem}" for problem in duplicates(entries))
    by_id = {image["id"]: image for image in entries["images"]}
    classes = {category["id"] for category in entries["categories"]}
    for annotation in entries["annotations"]:
        image = by_id.get(annotation["image_id"], {})
        if problem := object_problem(annotation, by_id, classes) or edge_or_mask_problem(annotation, image):
            named = name(image) if image else f"image {annotation['image_id']}"
            yield f"{annotations}: {named}, annotation {annotation['id']}: {problem}"
    if images is None:
        return
    for image in entries["images"]:
        try:
            read_annotated_image(images, image)
        except CorruptImage as error:
            yield f"{annotations}: {name(image)}: it cannot be used: {error}"


def name(image: Entry) -> str:
    """Name an image by id and file."""
    return f"image {image['id']} ({image['file_name']})"


def edge_or_mask_problem(annotation: Entry, image: Entry) -> str | None:
    """Say that a box extends beyond its image, or why its segmentation cannot be drawn; return None if both are right.

    A box may extend beyond its image by half a pixel, since labels are rounded. A segmentation is optional.
    """
    x, y, w, h = annotation["bbox"]
    width, height = image.get("width"), image.get("height")
    if width and height and (x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5):
        return f"its box {annotation['bbox']} extends beyond the image of {height} x {width} pixels"
    segmentation = annotation.get("segmentation")
    return segmentation_problem(segmentation, image) if segmentation else None


def describe_gaps(path: Path, entries: Entries, usable: Sequence[Entry]) -> Iterator[str]:
    """Count crowds, images with only crowds or no usable box, and annotations without a mask if others have one."""
    if crowds := [annotation["id"] for annotation in usable if annotation.get("iscrowd")]:
        count = plural(len(crowds), "crowd")
        yield f"{path}: training ignores {count}, such as annotation {crowds[0]}; set iscrowd to 0 for single objects"
    with_boxes = {annotation["image_id"] for annotation in usable if not annotation.get("iscrowd")}
    if bare := [image for image in entries["images"] if image["id"] not in with_boxes]:
        yield f"{path}: training uses {plural(len(bare), 'image')} without a box as background, such as {name(bare[0])}"
    boxes = [annotation["id"] for annotation in usable if not annotation.get("segmentation")]
    if 0 < len(boxes) < len(usable):
        count = plural(len(boxes), "annotation")
        yield f"{path}: mask_rcnn also needs a segmentation for {count}, such as annotation {boxes[0]}"


@dataclass
class VerifyAnnotations(VerifyOptions):
    """Check a data set in COCO's format or one annotation file; count images without boxes; print the box sizes."""

    images: Path | None = option(None, "folder of the images of an annotation file; by default the folder of the file")
    min_size: Count = option(800, "shorter side of the training images, in pixels")
    max_size: Count = option(1333, "limit of the longer side of the training images, in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir and self.data != "coco":
            raise ValueError(f"--data-dir is only for the data set coco, but data is {self.data}: leave --data-dir out")
        self.path = Path(self.data_dir or self.data)
        self.chosen: tuple[Path, float] | None = None  # the file that anchors are chosen for, and their scale
        if not self.path.exists():
            raise FileNotFoundError(f"there is no file or folder {self.path}")
        if self.min_size > self.max_size:
            raise ValueError(f"--min-size is {self.min_size}, above --max-size, which is {self.max_size}")
        if self.images and self.path.is_dir():
            raise ValueError(f"--images is for one annotation file, and {self.path} is a folder: leave --images out")

    def problems(self) -> Iterator[str]:
        self.splits = find_splits(self.path) if self.path.is_dir() else {}
        self.files = list(self.splits.values()) or [(self.path, self.images or self.path.parent)]
        self.notes: list[str] = []
        first: tuple[Path, tuple[str, ...]] | None = None  # the file that all others must agree with, and its classes
        train_first = sorted(self.files, key=lambda file: "train" not in file[0].stem)
        for path, folder in train_first:
            if not folder:
                yield no_images_message(path)
            try:
                entries = read_annotations(path)
                wrong = list(field_problems(entries))
            except (OSError, ValueError) as error:
                wrong = [f"it cannot be read as annotations in COCO's format: {error}"]
            if wrong:
                yield from (f"{path}: {problem}" for problem in wrong)
                continue
            yield from find_problems(path, entries, folder)
            names = {category["id"]: category["name"] for category in entries["categories"]}
            classes = tuple(names[number] for number in sorted(names))
            first = first or (path, classes)
            if problem := class_problem(path, classes, *first):
                yield problem
            usable = usable_annotations(entries)
            self.notes += [*describe_gaps(path, entries, usable), *self.describe_boxes(path, entries, usable)]

    def summary(self, count: int) -> str:
        names = ", ".join(str(path) for path, _ in self.files)
        lines = [plural(count, "problem") if count else f"{names}: nothing is wrong"]
        for wanted in (("train",), ("val", "test")):
            if self.splits and self.splits.keys().isdisjoint(wanted):
                names = " or ".join(f"instances_{name}.json" for name in wanted)
                lines.append(f"note: {self.path / 'annotations'} has no {names}, and metamix train needs one")
        return "\n".join(map(printable, [*lines, *self.notes]))

    def describe_boxes(self, path: Path, entries: Entries, usable: Sequence[Entry]) -> Iterator[str]:
        """Compare the box sizes of an annotation file with the anchors that a RetinaNet would use.

        The anchors are chosen for the training split, or else for the first file with boxes.
        """
        images = {image["id"]: image for image in entries["images"]}
        sizes = torch.tensor(box_sizes(usable, images, self.min_size, self.max_size))
        if not len(sizes):
            return
        self.chosen = self.chosen or (path, choose_anchor_scale(sizes, RETINANET_STRIDES))
        source, scale = self.chosen
        anchors = retinanet_sizes(RETINANET_STRIDES, scale)
        yield (
            f"{path}: for min_size {self.min_size} and max_size {self.max_size}, "
            f"{describe_sizes(sizes, (anchors[0][0], anchors[-1][-1]))} "
            f"(retinanet with anchor_scale {scale:g}{'' if source == path else f', as for {source.name}'})"
        )
