"""Convert labels of other programs into a data set in COCO's format."""

from pathlib import Path

from metamix.data.tables import read_table, same_in_all

from .labels import Box, Boxes
from .voc import read_voc
from .yolo import read_yolo


def read_boxes(source: Path) -> Boxes | None:
    """Read a CSV file with a box on each line; return None if it has no columns for boxes.

    Raises:
        ValueError: a line cannot be used, or the boxes are not in pixels.
    """
    table = read_table(source)
    if not table.has_boxes:
        return None
    rows = [row for rows in table.images.values() for row in rows]
    if max((max(row.box) for row in rows if row.box), default=2) <= 1:
        raise ValueError(f"all coordinates in {source} are at most 1: boxes must be in pixels")
    labels = Boxes(sorted({row.label for row in rows if row.box}))
    labels.notes["lines whose image does not exist were left out"] += table.missing
    for file, lines in table.images.items():
        boxes = [Box(row.label, row.box, row.place) for row in lines if row.box]
        labels.add(table.names[file], file, boxes, same_in_all(lines, "split"))
    return labels.checked(source)


FORMATS = {"voc": read_voc, "yolo": read_yolo, "csv": read_boxes}
