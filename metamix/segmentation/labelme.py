"""Read the shapes of LabelMe, to make a data set for training."""

import json
import math
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from metamix.data.files import decode, open_image
from metamix.data.pairs import Files, add_file, find_files, key_of, match_files
from metamix.data.run_lengths import fill_runs
from metamix.utils.files import read_bytes
from metamix.weights.metadata import MAX_SIDE

from .labels import IGNORED
from .masks import Masks

IGNORE = "__ignore__"  # label of shapes whose pixels are ignored
LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 1}  # kind that is drawn -> smallest number of points


@dataclass(frozen=True)
class Shape:
    """A shape of LabelMe, or an object in COCO's format; the points are x, y in pixels."""

    label: str
    kind: str
    points: list[tuple[float, float]]
    mask: bytes = b""  # an image file that is 0 outside of the object; its upper left corner is at the first point
    runs: Sequence[int] = ()  # run lengths of a mask for the whole image, instead of `mask`
    source: Path | None = None  # the file that holds the shape


def read_labelme(source: Path) -> Masks:
    """Read the .json files of LabelMe, and find their images.

    `Masks.write` draws the polygons, rectangles, circles and masks in the order of the file. The rest of an image is
    background. Pixels of shapes with the label `__ignore__` are ignored.
    """
    images, masks = find_files(source)
    images = masks | images  # an image in a folder named labels was taken for a mask
    files: Files = {}
    contents = {path: read_shapes(path) for path in sorted(source.rglob("*.json"))}
    read = {path: content for path, content in contents.items() if content}
    if contents and not read:
        raise ValueError(
            f"{next(iter(contents))} is not in LabelMe's format: it has no shapes. For COCO's format, use metamix "
            f"convert polygons"
        )
    for path in read:
        add_file(files, key_of(path, source), path, "labels")
    labels = masks_of(shape for _, shapes, _ in read.values() for shape in shapes)
    labels.notes["files that are not LabelMe's were left out"] += [str(path) for path in contents if path not in read]
    pairs = match_files(images, files)
    for path, (split, name, image) in pairs.items():
        size, shapes, others = read[path]
        labels.notes["lines, points and the like were left out"] += [f"{path} ({kind})" for kind in others]
        labels.add(split, name, image, size, (size, shapes))
    labels.note_rest("label", images, files, pairs)
    if not any(shapes for _, (_, shapes) in (sample.label for sample in labels.samples)):
        raise ValueError(f"{source} has no image with a shape to draw: name each .json file like its image")
    return labels


def read_shapes(path: Path) -> tuple[tuple[int, int], list[Shape], list[str]] | None:
    """Read the image's height and width, the shapes to draw, and the kinds of all other shapes.

    Return None if the file has no entry "shapes".
    """
    try:
        data = json.loads(read_bytes(path))
        if not isinstance(data, dict) or "shapes" not in data:
            return None
        if None in (sides := (data["imageHeight"], data["imageWidth"])):
            raise ValueError("imageHeight or imageWidth is null: give the size of the image in pixels")
        size = int(sides[0]), int(sides[1])
        shapes = []
        for shape in data["shapes"]:
            points = [(float(x), float(y)) for x, y in shape["points"]]
            kind = str(shape.get("shape_type") or "polygon")
            mask = b64decode(shape["mask"]) if kind == "mask" else b""
            shapes.append(Shape(" ".join(str(shape["label"]).split()), kind, points, mask, source=path))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not in LabelMe's format: {type(error).__name__}: {error}") from None
    check_shapes(path, size, shapes)
    drawn = [shape for shape in shapes if shape.kind in LEAST_POINTS]
    return size, drawn, sorted({shape.kind for shape in shapes} - LEAST_POINTS.keys())


def check_shapes(path: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
    """Raise ValueError if the image size (height, width) or a shape that was read from `path` is not valid."""
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise ValueError(f"{path} has an image of {size[0]} x {size[1]} pixels, but sides must be 1 to {MAX_SIDE}")
    for shape in shapes:
        if not shape.label:
            raise ValueError(f"{path} has a {shape.kind} without a label")
        least = LEAST_POINTS.get(shape.kind, 1)
        if len(shape.points) < least or not np.isfinite(shape.points).all():
            points = f"a {shape.kind} with the points {shape.points}"
            raise ValueError(f"{path} has {points}: give {least} or more finite points")


def masks_of(shapes: Iterable[Shape]) -> Masks:
    """Make an empty collection of masks whose classes are the background and the labels of these shapes."""
    numbers = {"background": 0, "_background_": 0, IGNORE: IGNORED}
    names = sorted({shape.label for shape in shapes} - numbers.keys())
    numbers |= {name: number for number, name in enumerate(names, start=1)}
    return Masks(["background", *names], lambda mask: draw(mask, numbers))


def draw(mask: tuple[tuple[int, int], Sequence[Shape]], numbers: Mapping[str, int]) -> np.ndarray:
    """Draw a mask as labels, (H, W) uint8; the mask is given as ((height, width), shapes)."""
    (height, width), shapes = mask
    image = Image.new("L", (width, height))
    for shape in shapes:
        points = shape.points
        if shape.kind == "mask":
            if shape.runs:
                inside = Image.fromarray(fill_runs(shape.runs, height, width))
            else:
                inside = decode(partial(open_image, BytesIO(shape.mask)), f"{shape.source}, the mask of a shape", "L")
            corner = np.clip(points[0], -MAX_SIDE, MAX_SIDE).astype(int).tolist()
            image.paste(numbers[shape.label], corner, inside.point([0] + [255] * 255))
            continue
        if shape.kind == "circle":
            (x, y), radius = points[0], math.dist(*points[:2])
            angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
            points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
        if shape.kind == "rectangle":
            xs, ys = zip(*points)
            points = [(min(xs), min(ys)), (max(xs), min(ys)), (max(xs), max(ys)), (min(xs), max(ys))]
        fill_polygon(image, points, numbers[shape.label])
    return np.array(image)


def fill_polygon(image: Image.Image, points: Sequence[tuple[float, float]], value: int) -> None:
    """Set the pixels whose centres are inside a polygon to a value, by the even-odd rule.

    The corner of the first pixel is at (0, 0), as in LabelMe, COCO and YOLO. Pillow would draw a larger polygon, since
    it takes points as centres of pixels.
    """
    corners = np.clip(np.array(points), -1e6, 1e6)
    left, top = np.maximum(np.floor(corners.min(0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(0)), image.size).astype(int).tolist()
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return
    x1, y1 = (corners - (left, top)).T
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    y = np.arange(height) + 0.5  # centres of the rows
    edges, rows = np.nonzero((y1[:, None] <= y) != (y2[:, None] <= y))  # each edge, and each row that it crosses
    x = x1[edges] + (y[rows] - y1[edges]) * (x2 - x1)[edges] / (y2 - y1)[edges]
    crossings = np.zeros((height, width + 1), np.uint8)
    np.add.at(crossings, (rows, np.ceil(x - 0.5).clip(0, width).astype(int)), 1)
    inside = np.cumsum(crossings[:, :width], axis=1, dtype=np.uint8) % 2 == 1
    image.paste(value, (left, top), mask=Image.fromarray(inside))
