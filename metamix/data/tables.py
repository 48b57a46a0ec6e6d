"""Read CSV files that list images, with a class, several labels, or a class and a box on each line."""

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from metamix.utils.files import encoding, read_bytes, read_text
from metamix.utils.text import list_names, package_logger, to_number, warn_once
from metamix.weights.metadata import MAX_CLASSES

from .formats.base import choose_test_split, is_image, list_image_paths, natural_order
from .formats.folder import LABELS, FolderImages

log = package_logger(__name__)
SEVERAL = ("labels", "tags")  # names of a column whose cells may hold several labels, such as cat|dog
COLUMNS = (  # accepted names of the columns for file, class and split, as `column_name` returns them
    ("file", "filename", "filepath", "path", "image", "imagename", "imagepath", "imagefile", "img"),
    (*SEVERAL, "class", "classname", "label", "labelname", "category", "name"),
    ("split", "subset"),
)
FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}  # values in the column of a label
WORDS = ("true", "false", "yes", "no")  # values that are rejected in the column of a label
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
SPLITS = {"": "", "train": "train", "training": "train", "test": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
MAX_ENTRIES = 2**30  # labels times images; 4 bytes each make 4 GiB


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV file."""

    names: Sequence[str]  # names of all columns, as `column_name` returns them; names of labels are unchanged
    # Names of the columns for the image, its class or labels, and its split; "" for a column that does not exist.
    file: str
    label: str
    split: str
    box: Sequence[str]  # the four columns of a box; empty if there are none
    others: Sequence[str]  # the other columns. If `label` is "", each of these is for one label and holds 0 or 1


@dataclass(frozen=True)
class Row:
    """A line of a CSV file."""

    place: str  # FILE:LINE, for messages
    file: Path  # the image
    label: str  # its class, or its labels such as cat|dog
    split: str  # train, val, test or ""
    box: tuple[float, ...] | None  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class Table:
    """The lines of a CSV file."""

    path: Path
    images: dict[Path, list[Row]]  # the lines of each image, in their order
    names: dict[Path, str]  # path of each image, relative to the folder that holds all images
    missing: list[str]  # places of the lines whose image does not exist. These lines are left out
    has_boxes: bool  # whether there are columns for boxes
    # Names of the columns of 0 and 1, one for each label; empty if there is a column for the class or labels.
    labels: set[str]


def read_table(source: Path) -> Table:
    """Read a CSV file, or the only CSV file in a folder.

    Raises:
        ValueError: the header or a line cannot be used, or none of the images exists.
        FileNotFoundError: the folder does not hold exactly one CSV file.
    """
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    if len(files) != 1:
        raise FileNotFoundError(f"{source} holds {len(files)} .csv files: give the path of one file")
    source, text = files[0], read_text(files[0])
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    images: dict[Path, list[Row]] = {}
    missing = []
    try:
        columns = choose_columns(list(map(str.strip, next(reader, []))), source)
        flags = set(columns.others) if columns.label in SEVERAL and not columns.box else set()
        splits = set() if columns.split else set(columns.others)
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            row = read_row(cells, columns, source.parent, f"{source}:{reader.line_num}")
            values = [(name, cell.strip().lower()) for name, cell in zip(columns.names, cells)]
            flags.difference_update(name for name, value in values if value not in FLAGS)
            splits.difference_update(name for name, value in values if not SPLITS.get(value))
            if row.file.is_file():
                images.setdefault(row.file, []).append(row)
            else:
                missing.append(row.place)
    except csv.Error as error:
        raise ValueError(f"{source}:{reader.line_num} is not CSV: {error}") from None
    if not images:
        raise ValueError(f"{source} lists no image that exists in {source.parent} or its subfolder images/")
    if flags:
        raise ValueError(
            f"{source}:1 has a column {columns.label} and columns of 0 and 1, {list_names(sorted(flags))}: remove "
            f"them, or remove {columns.label}, so that each column except file and split is for a label"
        )
    if splits:
        raise ValueError(
            f"{source}:1 has no column split, but the column {min(splits)} holds names of splits: rename it to split"
        )
    root = os.path.commonpath([file.parent for file in images])
    names = {file: file.relative_to(root).as_posix() for file in images}
    return Table(source, images, names, missing, bool(columns.box), set() if columns.label else {*columns.others})


def column_name(title: str) -> str:
    """Return the title of a column in lower case, without blanks, dots, dashes and underscores."""
    return re.sub(r"[\s._-]", "", title.lower())


def choose_columns(titles: Sequence[str], source: Path) -> Columns:
    """Find the purpose of each column.

    If there is no class and no box, every column except file and split is for a label.
    """
    header = list(map(column_name, titles))
    file, label, split = (next((name for name in names if name in header), "") for names in COLUMNS)
    box = next((names for names in (*CORNERS, *SIDES) if set(names) <= set(header)), ())
    if of_labels := bool(file and not label and not box):
        header = [name if name in (file, split) else title for name, title in zip(header, titles)]
    others = [name for name in header if name not in (file, label, split, *box, "")]  # pandas' index has no name
    if not file or (not label and not (of_labels and len(others) > 1)):
        raise ValueError(
            f"{source}:1 has {'the columns ' + ', '.join(header) if any(header) else 'no columns'}: the first line "
            f"must name the columns, such as file,class for classes of images, file,labels or file,cat,dog for labels, "
            f"or file,class,xmin,ymin,xmax,ymax for boxes"
        )
    if wrong := [name for name in others if of_labels and (others.count(name) > 1 or {*name} & {*"|;"})]:
        raise ValueError(f"{source}:1 has the label {wrong[0]!r}: each label needs its own name, without | and ;")
    if not (of_labels or box) and len(some := {name for names in CORNERS for name in names if name in header}) > 1:
        raise ValueError(
            f"{source}:1 has only {', '.join(sorted(some))} of a box, which needs four columns: "
            f"{'; '.join(','.join(names) for names in (*CORNERS, *SIDES))}"
        )
    return Columns(header, file, label, split, box, others)


def read_row(cells: Sequence[str], columns: Columns, folder: Path, place: str) -> Row:
    """Read a line. Its image is in `folder` or in the subfolder images/."""
    if len(cells) != len(columns.names):
        raise ValueError(f"{place} has {len(cells)} columns, but the first line has {len(columns.names)}")
    values = dict(zip(columns.names, map(str.strip, cells)))
    name, label, split = (values[column] if column else "" for column in (columns.file, columns.label, columns.split))
    if not is_image(name):
        raise ValueError(f"{place} has the file {name!r}, which is not an image ({' '.join(IMG_EXTENSIONS)})")
    if not columns.label:
        if wrong := [column for column in columns.others if values[column] not in FLAGS]:
            raise ValueError(
                f"{place} has {values[wrong[0]]!r} in the column {wrong[0]}, but it must be 0 or 1: without a column "
                f"labels, each column except file and split is for a label"
            )
        label = "|".join(column for column in columns.others if FLAGS[values[column]])
    if split.lower() not in SPLITS:
        raise ValueError(f"{place} has the split {split!r}, but it must be train, val or test")
    paths = [Path(os.path.normpath(inside / name.replace("\\", "/"))) for inside in (folder, folder / "images")]
    file = next((path for path in paths if path.is_file()), paths[0])
    texts = [values[column] for column in columns.box]
    numbers = list(map(to_number, texts)) if label or any(texts) else []
    if numbers and not label:
        raise ValueError(f"{place} has a box, but no class")
    if wrong := [column for column, value in zip(columns.box, numbers) if not math.isfinite(value)]:
        raise ValueError(f"{place} has {values[wrong[0]]!r} in {wrong[0]}, where a number of pixels is needed")
    if numbers and columns.box not in CORNERS:
        numbers[2:] = numbers[0] + numbers[2], numbers[1] + numbers[3]
    return Row(place, file, label, SPLITS[split.lower()], tuple(numbers) or None)


def same_in_all(rows: Sequence[Row], field: str) -> Any:
    """Return the value of a field that all lines of an image share; raise ValueError if two lines differ."""
    first, *others = ((row.place, getattr(row, field)) for row in rows)
    for place, value in others:
        if value != first[1]:
            raise ValueError(f"{place} gives {rows[0].file} the {field} {value!r}, but {first[0]} gives {first[1]!r}")
    return first[1]


def open_label_table(root: Path, test_on: str, train_required: bool) -> tuple[FolderImages | None, FolderImages] | None:
    """Open labels.csv as a training and a test split.

    Its columns are file, optionally split, and labels or a column of 0 and 1 for each label. If no line is in a test
    split and `test_on` is empty, both splits hold all images. If there is only a test split, None stands for the
    training split; with `train_required`, this is an error. Return None if there is no labels.csv with labels.
    """
    file = root / LABELS
    if not file.exists() or not lists_labels(file):
        return None
    table = read_table(file)
    if table.missing:
        raise ValueError(f"{list_names(table.missing)}: the image is neither in {root} nor in its subfolder images/")
    listed = {Path(os.path.relpath(path, root)).as_posix() for path in table.images}
    folders = set(map(os.path.dirname, listed))  # other folders may hold thumbnails or masks
    below = (path for path in list_image_paths(root) if os.path.dirname(path) in folders)
    if unlisted := [path for path in below if path not in listed]:
        warn_once(log, f"images that {file} does not list are left out: {list_names(unlisted)}")
    by_split: dict[str, list[Row]] = defaultdict(list)
    for path in sorted(table.images, key=lambda path: natural_order(str(path))):
        row, *others = table.images[path]
        if others:
            raise ValueError(f"{others[0].place} names the image of {row.place} again: put all its labels on one line")
        by_split[row.split].append(row)
    if len(by_split) > 1 and (without := by_split.get("")):
        raise ValueError(f"{without[0].place} has no split, but other lines do: write train, val or test")
    names = table.labels | {name for rows in by_split.values() for row in rows for name in labels_of(row)}
    check_two(names, file)
    if len(names) > (most := min(MAX_CLASSES, MAX_ENTRIES // len(table.images))):
        raise ValueError(f"{file} has {len(names):,} labels: {len(table.images):,} images may have {most:,} at most")
    classes = tuple(sorted(names, key=natural_order))
    numbers = {name: number for number, name in enumerate(classes)}
    splits: dict[str, FolderImages] = {}
    for split, rows in by_split.items():
        paths = [Path(os.path.relpath(row.file, root)).as_posix() for row in rows]
        labels = torch.zeros(len(rows), len(classes))
        for each, row in zip(labels, rows):
            each[[numbers[name] for name in labels_of(row)]] = 1
        splits[split] = FolderImages(root, split, paths, labels, classes)
    tests = [split for split in splits if split not in ("", "train")]
    if not tests and not test_on:
        (images,) = splits.values()
        images.split = "test"
        return images, images
    test = splits[choose_test_split(tests, test_on, file)]
    if train_required and "train" not in splits:
        raise ValueError(f"{file} has no image to train on: write train in the split column")
    return splits.get("train"), test


def check_two(labels: Collection[str], source: Path) -> None:
    """Raise ValueError if there are fewer than two labels, too few for training; the message names `source`."""
    if len(labels) < 2:
        raise ValueError(f"{source} must have at least two different labels; found {', '.join(labels) or 'none'}")


def lists_labels(file: Path) -> bool:
    """Return whether the first two lines of a CSV file show a column for several labels, or columns of 0 and 1."""
    data = read_bytes(file)
    text = data.decode(encoding(data), "replace").lower()
    first, second, *_ = *re.split(r"\r\n?|\n", text, maxsplit=2), ""
    if not set(SEVERAL).isdisjoint(re.findall(r"\w+", first)):
        return True
    names, values = ([cell.strip(' "\r') for cell in re.split("[,;\t]", line)] for line in (first, second))
    has_file, has_class = (any(column_name(name) in accepted for name in names) for accepted in COLUMNS[:2])
    return len(names) > 2 and has_file and not has_class and any(value in (*FLAGS, *WORDS) for value in values)


def labels_of(row: Row) -> list[str]:
    """Split the labels of a line at | and ;."""
    return [name.strip() for name in re.split(r"[|;]", row.label) if name.strip()]
