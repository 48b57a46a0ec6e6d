"""Read data sets in COCO's format.

    FOLDER/annotations/instances_<split>.json      <split>: train, and val or test; a year may follow, as in train2017
    FOLDER/<split>/, FOLDER/images/<split>/ or FOLDER/images/      images, at the paths that the annotations give

COCO is published in this layout. `metamix convert` writes it from labels in other formats.
"""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_image

from metamix.data import CorruptImage, decode_file
from metamix.utils.extras import need
from metamix.utils.text import did_you_mean, plural
from metamix.weights.checksums import digest

from .annotations import (
    MAX_AREA,
    Entries,
    Entry,
    duplicates,
    field_problems,
    is_box,
    read_annotations,
    segmentation_problem,
    usable_annotations,
)
from .objects import Objects

Splits = Mapping[str, tuple[Path, Path | None]]  # annotation file and image folder of each split


def find_splits(folder: str | Path) -> dict[str, tuple[Path, Path | None]]:
    """Find the annotation file and the image folder of each split; the folder is None if it is missing.

    Raises:
        FileNotFoundError: the folder holds no annotation file.
        ValueError: two files of different years belong to the same split.
    """
    folder = Path(folder)
    splits: dict[str, tuple[Path, Path | None]] = {}
    for path in sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        candidates = [folder / name, folder / "images" / name, folder / "images"]
        images = next((candidate for candidate in candidates if candidate.is_dir()), None)
        name = re.sub(r"(19|20)\d\d$", "", name)
        if name in splits:
            raise ValueError(f"{splits[name][0]} and {path} both belong to split {name!r}: keep one of the two files")
        splits[name] = path, images
    if not splits:
        raise FileNotFoundError(
            f"{folder.absolute()} holds no data set: expected files such as "
            f"{folder / 'annotations/instances_train.json'}, with images in {folder / 'images'}; give another folder, "
            f"or make a data set with `metamix convert`"
        )
    return splits


def open_split(splits: Splits, name: str, masks: bool = False, *, use: str = "score") -> "CocoSplit":
    """Open one of the splits that `find_splits` found; `use` is "score" or "train on", for messages.

    Raises:
        FileNotFoundError: the split has no image folder.
        ValueError: there is no such split, or its annotations cannot be used.
    """
    if name not in splits:
        folder, another = next(iter(splits.values()))[0].parent, "--test-on" if use == "score" else "--train-on"
        raise ValueError(
            f"there is no split {name!r}{did_you_mean(name, splits)} To {use} it, add {folder}/instances_{name}.json; "
            f"or give another {another}. The splits are {', '.join(splits)}"
        )
    annotations, images = splits[name]
    if images is None:
        raise FileNotFoundError(no_images_message(annotations))
    return CocoSplit(annotations, images, masks=masks)


def no_images_message(annotations: Path) -> str:
    """Say where the images of an annotation file belong."""
    folder, name = annotations.parents[1], annotations.stem.removeprefix("instances_")
    return f"the images of {annotations} are missing: put them into {folder / name} or {folder / 'images'}"


def find_image(folder: Path, name: str) -> Path:
    """Return the path of an image that an annotation file names. Links in the folder may not lead out of it.

    Raises:
        CorruptImage: there is no such file, its name is not valid, or it is outside the folder or is a link that
            leads out of it.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # the name is too long or has a NUL, or links form a cycle
        raise CorruptImage(f"{path}: {error}") from error
    if not inside:
        raise CorruptImage(f"{path} leads out of {folder}, to {path.resolve()}: copy the file into the folder")
    if not exists:
        raise CorruptImage(f"there is no file {path}")
    return path


def read_annotated_image(folder: Path, entry: Entry) -> Image.Image:
    """Read the image of an entry of `images`; raise CorruptImage if it is unreadable or not of the annotated size."""
    path = find_image(folder, entry["file_name"])
    image = decode_file(path)
    width, height = image.size
    annotated = entry.get("width") or width, entry.get("height") or height
    if annotated != image.size:
        raise CorruptImage(
            f"{path} has {height} x {width} pixels, but the annotations say {annotated[1]} x {annotated[0]}"
        )
    return image


class CocoSplit:
    """The images and objects of one split, in the order of the image ids."""

    def __init__(self, annotations: Path, images: Path, masks: bool = False):
        self.annotations, self.images, self.masks = annotations, images, masks
        # `coco` is pycocotools' index of the annotations used for training and scoring. `unusable` counts the others:
        # their image or class is unknown, or their box is empty, not finite or outside the image.
        self.coco, self.unusable = index_annotations(annotations, images)
        self.ids = sorted(self.coco.imgs)
        self.objects = sum(not annotation["iscrowd"] for annotation in self.coco.anns.values())
        self.category_ids = sorted(self.coco.cats)
        self.classes = tuple(self.coco.cats[i]["name"] for i in self.category_ids)
        self.number_as(self.classes)
        if masks:
            self.check_masks()

    def number_as(self, classes: Sequence[str]) -> None:
        """Number the classes in the order of a model's `classes`; change nothing if the split has other classes."""
        if set(self.classes) <= set(classes):
            ids, categories = dict(zip(self.classes, self.category_ids)), self.coco.cats
            # COCOeval would ignore the false positives of classes that the split lacks, so these classes are added.
            for name in [name for name in classes if name not in ids]:
                ids[name] = max(categories, default=0) + 1
                categories[ids[name]] = {"id": ids[name], "name": name}
                self.coco.dataset["categories"].append(categories[ids[name]])
            self.category_ids = [ids[name] for name in classes]
            self.labels = {category: label for label, category in enumerate(self.category_ids, start=1)}
            self.classes = tuple(classes)

    def check_masks(self) -> None:
        """Drop polygons of fewer than three points; raise ValueError if the mask of an object cannot be drawn."""
        problems = {}
        for annotation in self.coco.anns.values():
            number = annotation["id_in_file"]
            image = self.coco.imgs[annotation["image_id"]]
            shape = annotation.get("segmentation")
            if isinstance(shape, list):  # pycocotools reads polygons as boxes if the first one has two points
                shape = [polygon for polygon in shape if not isinstance(polygon, list) or len(polygon) >= 6]
            annotation["segmentation"] = shape
            if not all(type(image.get(side)) is int and image[side] > 0 for side in ("width", "height")):
                problems[number] = f"its image {image['id']} has no width and height in pixels"
            elif problem := segmentation_problem(shape, image):
                problems[number] = problem
        if problems:
            number, problem = next(iter(problems.items()))
            raise ValueError(
                f"{self.annotations} has {plural(len(problems), 'annotation')} without a usable mask, such as {number}:"
                f" {problem}. mask_rcnn needs a mask for each object: correct the annotations, or use faster_rcnn"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def missing_images(self) -> list[str]:
        """Return a sentence for each image that has no file inside the image folder."""
        problems = []
        for i in self.ids:
            try:
                find_image(self.images, self.coco.imgs[i]["file_name"])
            except CorruptImage as error:
                problems.append(str(error))
        return problems

    def digest(self) -> str:
        """Hash the names and sizes of the image files, and the objects in the images, without decoding images.

        The hash does not change if the whole data set is moved.
        """
        return digest(row for i in self.ids for row in self.describe_sample(i))

    def describe_sample(self, image_id: int) -> Iterator[tuple[str | int | float, ...]]:
        """Yield an image file's name and size, then each object's class, box, crowd flag and, if used, mask."""
        name = self.coco.imgs[image_id]["file_name"]
        try:
            size = (self.images / name).stat().st_size
        except (OSError, ValueError):  # a few images may be missing or have invalid names
            size = -1
        yield Path(name).as_posix(), size
        for annotation in self.coco.imgToAnns[image_id]:
            shape = (json.dumps(annotation["segmentation"]),) if self.masks else ()
            category = self.coco.cats[annotation["category_id"]]["name"]
            yield category, *annotation["bbox"], annotation["iscrowd"], *shape

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.images / self.coco.imgs[self.ids[index]]["file_name"])

    def read(self, index: int) -> tuple[tv_tensors.Image, Objects]:
        """Read an image, (3, H, W) uint8, and its objects except crowds; "runs" holds masks if `masks` is true."""
        entry = self.coco.imgs[self.ids[index]]
        image = to_image(read_annotated_image(self.images, entry))
        size = tuple(image.shape[-2:])
        objects = [each for each in self.coco.imgToAnns[entry["id"]] if not each["iscrowd"]]
        boxes = torch.tensor([each["bbox"] for each in objects]).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: Objects = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self.labels[each["category_id"]] for each in objects], dtype=torch.int64),
        }
        if self.masks:
            target["runs"] = [self.coco.annToRLE(each) for each in objects]
        return image, target


def index_annotations(annotations: Path, images: Path):
    """Index the usable annotations of a file with pycocotools; also return the number of unusable annotations."""
    coco = need("pycocotools.coco", "detection").COCO()
    data = read_complete(annotations, images)
    usable = usable_annotations(data)
    for number, annotation in enumerate(usable, 1):  # pycocotools reads a match with annotation 0 as no match
        annotation |= {"id": number, "id_in_file": annotation["id"]}
    coco.dataset = data | {"annotations": usable}  # an unusable object would count as missed
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long indexing takes
        coco.createIndex()
    return coco, len(data["annotations"]) - len(usable)


def read_complete(annotations: Path, images: Path, inside: bool = True) -> Entries:
    """Read an annotation file and add missing iscrowd and area; raise ValueError if it breaks a rule of the format."""
    try:
        data = read_annotations(annotations)
        for problem in chain(field_problems(data, inside), duplicates(data)):  # lazily: `duplicates` needs valid fields
            raise ValueError(problem)
        for annotation in data["annotations"]:
            box = annotation.get("bbox")
            if not is_box(box):
                number = annotation["id"]
                raise ValueError(f"annotation {number} has the bbox {box}; four numbers x, y, width, height are needed")
            annotation["bbox"] = list(map(float, box))
            annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
            if annotation.get("area") is None:
                annotation["area"] = min(annotation["bbox"][2] * annotation["bbox"][3], MAX_AREA)
    except ValueError as error:
        command = shlex.join(["metamix", "verify", "--task", "detection", str(annotations), "--images", str(images)])
        raise ValueError(f"{annotations} is not in COCO's format: {error}. To list all problems: {command}") from error
    return data
