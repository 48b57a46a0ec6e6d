"""Convert a CSV file of images and classes into class folders, and folders named after labels into a labels.csv."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from metamix.data.files import read_file
from metamix.data.formats.folder import LABELS, open_class_folders
from metamix.data.tables import SPLITS, check_two, read_table, same_in_all
from metamix.tasks.convert import LabelledImages, Sample
from metamix.utils.files import write_text
from metamix.utils.text import csv_text, plural


def read_classes(source: Path) -> LabelledImages | None:
    """Read a CSV file with a class for each image; return None if it has columns for boxes.

    Raises:
        ValueError: an image does not have exactly one class, a class cannot name a folder, or there is only one class.
    """
    table = read_table(source)
    if table.has_boxes:
        return None
    labels = LabelledImages(("--config", "finetune/tiny"))
    labels.notes["lines whose image does not exist were left out"] = table.missing
    for file, rows in table.images.items():
        label = same_in_all(rows, "label")
        if not label or label.startswith(".") or not {*"/|;"}.isdisjoint(label):
            raise ValueError(
                f"{rows[0].place} has the class {label!r}; it must not be empty, contain / | ; or begin with a dot. "
                f"If images have several labels, they need no conversion: metamix trains on a folder with a labels.csv"
            )
        labels.samples.append(Sample(file, f"{label}/{table.names[file]}", same_in_all(rows, "split"), label))
        labels.notes["lines that repeat another line were left out"] += [row.place for row in rows[1:]]
    check_two({sample.group for sample in labels.samples}, table.path)
    return labels


class SeveralLabels(LabelledImages):
    """Images with several labels. `Sample.label` lists the labels of an image."""

    def write(self, folder: Path, splits: Mapping[str, Sequence[Sample]]) -> str:
        rows = [(f"{split}/{s.name}", "|".join(s.label), split) for split, samples in splits.items() for s in samples]
        write_text(folder / LABELS, csv_text([("file", "labels", "split"), *rows]))
        return plural(len({label for sample in self.samples for label in sample.label}), "label")


def read_folders(source: Path) -> LabelledImages:
    """Read images from folders named after labels, which may be in folders named after splits.

    An image that is in several label folders of a split, under one name, gets the labels of all these folders. If
    `metamix convert` divides the images of each label into splits, an image with several labels counts only for its
    rarest label.

    Raises:
        ValueError: images with the same name differ, two files have the same split, label and name, a label contains
            | or ; or begins with = + - @, there are fewer than two labels, or `source` is a file.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is a file: give the folder that holds a folder for each label")
    labels = SeveralLabels(("--config", "finetune/tiny"))
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    splits = {path: SPLITS[path.name.lower()] for path in folders if path.name.lower() in SPLITS} or {source: ""}
    left_out = [str(path) for path in folders if splits.keys().isdisjoint((path, source))]
    labels.notes["folders beside the splits were left out"] += left_out
    images: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)  # files by split and name, then by label
    for root, split in splits.items():
        for path in open_class_folders(root).paths:
            label, _, name = path.partition("/")
            if not {*"|;"}.isdisjoint(label) or label[0] in "=+-@":  # spreadsheets read such text as a formula
                raise ValueError(f"{root} has the label {label!r}; it must not contain | or ; or begin with = + - @")
            if (file := images[split, name].setdefault(label, root / path)) != root / path:
                raise ValueError(f"{file} and {root / path} would become one image of {split}: rename one of them")
    counts = Counter(label for files in images.values() for label in files)
    check_two(counts, source)
    for (split, name), files in images.items():
        first, *others = files.values()
        if other := next((file for file in others if read_file(file) != read_file(first)), None):
            raise ValueError(
                f"{first} and {other} are different images with the same name, but an image with several labels must "
                f"be the same file in each folder: rename one of them; if each image has one label, train on {source}"
            )
        labels.samples.append(Sample(first, name, split, min(files, key=counts.__getitem__), list(files)))
    return labels


FORMATS = {"csv": read_classes, "folders": read_folders}
