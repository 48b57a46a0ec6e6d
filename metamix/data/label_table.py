"""Read images with several labels from labels.csv, which has the columns file, labels and optionally split."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import torch

from metamix.utils.files import read_bytes
from metamix.weights.metadata import MAX_CLASSES

from .formats.base import choose_test_split, list_names, natural_order
from .formats.folder import LABELS, FolderImages
from .tables import SEVERAL, Row, read_table

MOST = 2**30  # labels times images, in 4 GiB


def open_label_table(root: Path, test_on: str, train_required: bool) -> tuple[TableImages | None, TableImages] | None:
    """Open the training and the test split; without splits, both are all images.

    Returns None if the folder has no labels.csv whose first line names a column for several labels.

    Raises:
        ValueError: a line, which the message names, cannot be used, or there are fewer than two labels.
    """
    file = root / LABELS
    first = read_bytes(file).partition(b"\n")[0].decode(errors="replace") if file.exists() else ""
    if set(SEVERAL).isdisjoint(re.findall(r"\w+", first.lower())):
        return None
    table = read_table(file)
    if table.missing:
        raise ValueError(f"images are neither in {root} nor in its images/, see {list_names(table.missing)}")
    by_split: dict[str, list[Row]] = defaultdict(list)
    for path in sorted(table.images, key=lambda path: natural_order(str(path))):
        row, *others = table.images[path]
        if others:
            raise ValueError(f"{others[0].place} names the image of {row.place} again: write its labels into one line")
        by_split[row.split].append(row)
    if len(by_split) > 1 and (without := by_split.get("")):
        raise ValueError(f"{without[0].place} has no split, but other lines do: write train, val or test")
    names = {name for rows in by_split.values() for row in rows for name in labels_of(row)}
    if len(names) < 2:
        raise ValueError(f"{file} must have two different labels at least; found {', '.join(names) or 'none'}")
    if len(names) > (most := min(MAX_CLASSES, MOST // len(table.images))):
        raise ValueError(f"{file} has {len(names):,} labels: {len(table.images):,} images may have {most:,} at most")
    classes = tuple(sorted(names, key=natural_order))
    splits = {split: TableImages(root, split, rows, classes) for split, rows in by_split.items()}
    tests = [split for split in splits if split not in ("", "train")]
    if not tests and not test_on:
        (images,) = splits.values()
        images.split = "test"
        return images, images
    test = splits[choose_test_split(tests, test_on, file)]
    if train_required and "train" not in splits:
        raise ValueError(f"{file} has no image to train on: write train into the column split")
    return splits.get("train"), test


def labels_of(row: Row) -> list[str]:
    """Return the labels of a line, which | or ; separates."""
    return [name.strip() for name in re.split(r"[|;]", row.label) if name.strip()]


class TableImages(FolderImages):
    """Read one split; `labels` are (N, classes) float32, 1 for each label that an image has."""

    def __init__(self, root: Path, split: str, rows: list[Row], classes: tuple[str, ...]):
        self.root, self.split, self.classes = root, split, classes
        self.paths = [Path(os.path.relpath(row.file, root)).as_posix() for row in rows]
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = torch.zeros(len(rows), len(classes))
        for labels, row in zip(self.labels, rows):
            labels[[numbers[name] for name in labels_of(row)]] = 1
