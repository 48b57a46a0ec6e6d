"""Define the protocol of a split, and rules for file names, split names and classes that the storage formats share."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from metamix.utils.checks import check_choice
from metamix.utils.text import package_logger, warn_once

from ..files import list_files

log = package_logger(__name__)

TEST_SPLITS = ("val", "valid", "validation", "test")  # the first that exists is scored


class ImageSplit(Protocol):
    """The images of one split."""

    split: str  # its name in the data set, such as train or val
    labels: Tensor  # (N,) int64, indices into `classes`; with several labels per image, (N, classes) float32: 0 or 1
    classes: tuple[str, ...]
    mode: str = "RGB"  # mode of the decoded images: "RGB" or "L"

    def open(self, i: int) -> Image.Image:
        """Open image `i`. The pixels need not be decoded yet."""

    def path(self, i: int) -> str:
        """Name image `i` for messages."""

    def fingerprint(self, i: int) -> str:
        """Identify image `i` without reading it: files by path and size in bytes, other images by name or number."""
        return self.path(i)

    def content(self, i: int) -> str:
        """Hash the content of image `i`; see `file_content`."""


def choose_test_split(available: Iterable[str], test_on: str, source: object) -> str:
    """Choose the split to score: `test_on` or, if it is empty, the first of `TEST_SPLITS` that is available.

    `available` names all splits but train; `source` names the data set in messages. Raise ValueError if there is no
    such split.
    """
    available = list(available)
    if test_on and not available:
        raise ValueError(f"test_on is {test_on!r}, but {source} has no splits to score: leave it out")
    if test_on:
        check_choice("test_on", test_on, available, f"These splits of {source} can be scored.")
        return test_on
    candidates = [split for split in TEST_SPLITS if split in available]
    if not candidates:
        raise ValueError(
            f"{source} has none of the splits {', '.join(TEST_SPLITS)}; choose another split to score with --test-on: "
            f"{', '.join(available)}"
        )
    chosen, *others = candidates
    if others:
        warn_once(log, f"{source}: {chosen} is scored; not used: {', '.join(others)}. Choose a split with --test-on")
    return chosen


# Formats of phone cameras. Pillow may lack the decoder, and training does not read these formats.
PHOTOGRAPHS = {".heic", ".heif", ".avif"}


def is_image(path: str) -> bool:
    """Return whether a path has the extension of an image and no hidden file or folder in it."""
    return os.path.splitext(path)[1].lower() in IMG_EXTENSIONS and "/." not in f"/{path}"


def list_image_paths(root: Path) -> list[str]:
    """List the images below a folder by their relative paths, in natural order; warn about images in other formats."""
    files = list_files(root)
    kinds = Counter(os.path.splitext(path)[1].lower() for path in files)
    if others := sorted(kinds.keys() & (Image.registered_extensions().keys() | PHOTOGRAPHS) - set(IMG_EXTENSIONS)):
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in others)
        warn_once(log, f"{root}: images of other types are left out: {counts}. Save them as .png or .jpg")
    return sorted(filter(is_image, files), key=natural_order)


def natural_order(path: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts 2.png before 10.png and gives the same order on every machine."""
    parts = re.split(r"(\d+)", path.lower())
    return [int(part[:4000]) if i % 2 else part for i, part in enumerate(parts)], path  # int() allows 4,300 digits


def class_name(folder: str) -> str:
    """Return the name of a class folder in normal form NFC, since archives from a Mac hold names in NFD."""
    return unicodedata.normalize("NFC", folder)


def label_by_folder(paths: Sequence[str], place: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Label images by the first folder of their path in the split; return labels (N,) int64 and class names.

    Classes are in natural order, 2 before 10, as in timm.
    """
    if not paths:
        raise ValueError(f"{place.absolute()} has no image ({' '.join(IMG_EXTENSIONS)})")
    stray = next((path for path in paths if "/" not in path), None)
    if stray:
        raise ValueError(f"{place.absolute()} must hold one folder of images per class; {stray} is in none of them")
    names = [class_name(path.partition("/")[0]) for path in paths]
    classes = tuple(sorted(set(names), key=natural_order))
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in names]), classes


def match_classes(split: ImageSplit, classes: tuple[str, ...]) -> list[str]:
    """Renumber the labels of a split in the order of `classes`, and return an empty list.

    If the split has classes that are not in `classes`, return their names and change nothing.
    """
    places = {class_name(name): number for number, name in enumerate(classes)}
    if unknown := [name for name in split.classes if class_name(name) not in places]:
        return unknown
    numbers = torch.tensor([places[class_name(name)] for name in split.classes])
    one, labels = split.labels.ndim == 1, split.labels
    labels = numbers[labels] if one else torch.zeros(len(labels), len(classes)).index_copy_(1, numbers, labels)
    split.labels, split.classes = labels, classes
    return []
