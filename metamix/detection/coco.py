"""Sets of images with boxes, in COCO's format.

    FOLDER/annotations/instances_<split>.json      train, val and perhaps test, a year after the name or none
    FOLDER/<split>/  or  FOLDER/images/            the images, as the annotations name them

So COCO itself lies there as it is published; `python -m metamix.detection.voc` makes such a file of Pascal VOC's.
"""

import contextlib
import io
import math
import re
from collections.abc import Container
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms.v2.functional import to_image

from metamix.data.sources import CorruptImage, decode
from metamix.utils.text import nearest

from .annotations import field_problems, repeated, segmentation_problem, with_area


def find_splits(folder: str | Path) -> dict[str, tuple[Path, Path | None]]:
    """The annotation file and the image folder, None where there is none, of each split in a folder.

    FileNotFoundError says what was looked for; ValueError where two files are one split, of two years.
    """
    folder = Path(folder)
    layout = f"expected {folder / 'annotations/instances_train.json'} and the like, with images in {folder / 'images'}"
    splits = {}
    for path in sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        places = [folder / name, folder / "images" / name, folder / "images"]
        images = next((place for place in places if place.is_dir()), None)
        name = re.sub(r"(19|20)\d\d$", "", name)
        if name in splits:
            raise ValueError(f"{splits[name][0]} and {path} are both the split {name!r}: keep one of them there")
        splits[name] = path, images
    if not splits:
        raise FileNotFoundError(f"{folder.absolute()} holds no data set: {layout}")
    return splits


def open_split(splits: dict[str, tuple[Path, Path]], name: str, masks: bool = False) -> "BoxSource":
    if name not in splits:
        raise ValueError(f"there is no split {name!r}{nearest(name, splits)} The splits are {', '.join(splits)}")
    annotations, images = splits[name]
    if images is None:
        raise FileNotFoundError(no_images(annotations))
    return BoxSource(annotations, images, masks=masks)


def no_images(annotations: Path) -> str:
    """What is wrong with an annotation file of a data set's folder that has no images."""
    folder, name = annotations.parents[1], annotations.stem.removeprefix("instances_")
    return f"{annotations} is there, but not its images: they belong into {folder / name} or {folder / 'images'}"


def read_image(path: Path) -> Image.Image:
    """In colour; CorruptImage, which names it, where that cannot be."""
    return decode(lambda: Image.open(io.BytesIO(path.read_bytes())), path)  # of a bad file the handle would stay open


def read_described(folder: Path, entry: dict) -> Image.Image:
    """The image of an entry of `images`; CorruptImage where its size is another, and boxes would lie elsewhere."""
    path = Path(folder, entry["file_name"])
    image = read_image(path)
    width, height = image.size
    said = entry.get("width") or width, entry.get("height") or height
    if said != image.size:
        raise CorruptImage(f"{path} is {width} x {height}, but the annotations say {said[0]} x {said[1]}")
    return image


def is_useless(annotation: dict, image: dict | None, classes: Container[int]) -> bool:
    """Whether nobody could find it: an unknown image or class, a box that is empty or outside of its image."""
    if image is None or annotation["category_id"] not in classes:
        return True
    x, y, w, h = annotation["bbox"]
    width, height = (image.get(side) or math.inf for side in ("width", "height"))
    # NaN is in no range.
    return not (0 < w < math.inf and 0 < h < math.inf and -w < x < width and -h < y < height)


class Boxes(CocoDetection):
    """torchvision's set without crowds, which are for scoring alone."""

    def _load_image(self, image_id: int) -> Image.Image:
        return read_described(self.root, self.coco.imgs[image_id])

    def _load_target(self, image_id: int) -> list[dict]:
        return [annotation for annotation in super()._load_target(image_id) if not annotation["iscrowd"]]


class BoxSource:
    """The images of one split, in the order of their ids.

    Attributes:
        coco: pycocotools' index of the annotations, without useless ones.
        classes: names in the order of their category ids; a label is a place in it, counted from 1.
        category_ids: category ids in that order.
        useless: number of annotations that are left out of training and of scores, because of an unknown image or
            class, or a box that is empty, not finite or outside of its image.
        objects: number of those that stay, crowds aside.

    `read(i)` gives the image as torchvision's uint8 tv_tensor and its objects, {"boxes": (n, 4) x1, y1, x2, y2,
    "labels": (n,)} and "masks" (n, H, W) if asked for; objects that mark a crowd are left out.
    """

    def __init__(self, annotations: Path, images: Path, masks: bool = False):
        self.annotations, self.masks = annotations, masks
        boxes = index_annotations(annotations, images)
        self.coco, self.ids = boxes.coco, boxes.ids
        self.useless = boxes.useless
        self.objects = sum(not a["iscrowd"] for a in self.coco.anns.values())
        self.category_ids = sorted(self.coco.cats)
        self.classes = tuple(self.coco.cats[i]["name"] for i in self.category_ids)
        self.labels = {category: label for label, category in enumerate(self.category_ids, start=1)}
        if masks:
            self.check_masks()
        keys = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
        self.set = wrap_dataset_for_transforms_v2(boxes, target_keys=keys)

    def check_masks(self) -> None:
        """ValueError unless a mask can be drawn of each object."""
        unknown = [
            i
            for i, image in self.coco.imgs.items()
            if not all(type(image.get(side)) is int and image[side] > 0 for side in ("width", "height"))
        ]
        if unknown:
            raise ValueError(
                f"{self.annotations} has {len(unknown)} images without width and height in pixels, such as "
                f"{unknown[0]}; mask_rcnn needs them of each: write them there, or take faster_rcnn"
            )
        problems = {}
        for number, annotation in self.coco.anns.items():
            annotation["segmentation"] = with_area(annotation.get("segmentation"))
            what = segmentation_problem(annotation["segmentation"], self.coco.imgs[annotation["image_id"]])
            if what:
                problems[number] = what
        if problems:
            number, what = next(iter(problems.items()))
            raise ValueError(
                f"{self.annotations} has {len(problems)} annotations without a segmentation, such as {number}; {what}. "
                f"mask_rcnn needs one for each: correct them, or take faster_rcnn"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def missing(self) -> list[str]:
        """Paths of images that are not there."""
        paths = map(self.path, range(len(self)))
        return [path for path in paths if not Path(path).is_file()]

    def path(self, index: int) -> str:
        return str(Path(self.set.root, self.coco.imgs[self.ids[index]]["file_name"]))

    def read(self, index: int) -> tuple[tv_tensors.Image, dict]:
        image, target = self.set[index]
        image = to_image(image)
        size = tuple(image.shape[-2:])
        if "boxes" not in target:  # nothing to see
            target = {
                "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size),
                "labels": torch.zeros(0, dtype=torch.int64),
            }
            if self.masks:
                target["masks"] = tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
        target["labels"] = torch.tensor([self.labels[c] for c in target["labels"].tolist()], dtype=torch.int64)
        return image, target


def index_annotations(annotations: Path, images: Path) -> Boxes:
    """torchvision's set over pycocotools' index of a file, with all that scoring needs; ValueError for no such file."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the index says how long it took
            boxes = Boxes(str(images), str(annotations))
            coco = boxes.coco
            problem = next(chain(field_problems(coco.dataset), repeated(coco.dataset)), None)
            if problem:
                raise ValueError(problem)
            for annotation in coco.anns.values():
                x, y, w, h = annotation["bbox"] = list(map(float, annotation["bbox"]))
                annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)  # files of other tools lack these two
                if annotation.get("area") is None:
                    annotation["area"] = w * h
            useful = [a for a in coco.anns.values() if not is_useless(a, coco.imgs.get(a["image_id"]), coco.cats)]
            boxes.useless = len(coco.anns) - len(useful)
            if 0 in coco.anns:  # pycocotools takes a match with annotation 0 for none
                for annotation in useful:
                    annotation["id"] += 1
            coco.dataset["annotations"] = useful  # a useless one would count as an object that was missed
            coco.createIndex()
    except ImportError as error:
        raise ImportError("COCO's format needs pycocotools: pip install 'metamix[detection]'") from error
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{annotations} is not in COCO's format ({type(error).__name__}: {error}); "
            f"python -m metamix.detection.verify {annotations} --images {images} says where"
        ) from error
    return boxes
