"""Convert a CSV file of images and classes into class folders."""

from pathlib import Path

from metamix.data.tables import read_table, same_in_all
from metamix.tasks.convert import Labels, Sample


def read_classes(source: Path) -> Labels | None:
    """Read a CSV file with a class for each image; return None if it has columns for boxes.

    Raises:
        ValueError: an image has no class or several, or a class cannot name a folder.
    """
    table = read_table(source)
    if table.has_boxes:
        return None
    labels = Labels(("--data", "folder"))
    labels.notes["lines whose image does not exist were left out"] = table.missing
    for file, rows in table.images.items():
        label = same_in_all(rows, "label")
        if not label or label.startswith(".") or not {*"/|;"}.isdisjoint(label):
            raise ValueError(
                f"{rows[0].place} has the class {label!r}; the name of a folder holds no / | ; and begins with no dot. "
                f"Several labels of an image need no conversion: the folder of a file labels.csv is a data set"
            )
        labels.samples.append(Sample(file, f"{label}/{table.names[file]}", same_in_all(rows, "split"), label))
        labels.notes["lines that repeat another"] += [row.place for row in rows[1:]]
    return labels


FORMATS = {"csv": read_classes}
