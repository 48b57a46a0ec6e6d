"""Make the table of segmenters, from results/segmentation.json."""

import json
from collections.abc import Sequence

from benchmarks.markdown import table
from benchmarks.measure.segmentation import FILE


def scores_table() -> str:
    return lay_out(json.loads(FILE.read_text())["rows"])


def lay_out(rows: Sequence[dict]) -> str:
    """Make a table of runs, in the order given."""
    measures = ("mean IoU", "pixel accuracy", "mean accuracy", "boundary F")
    header = ("backbone", "head", *measures, "params", "GMACs of a crop", "epochs")
    lines = []
    for row in rows:
        scores = [f"{row[key]:.1f}" for key in ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")]
        cost = f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.1f}", row["epochs"]
        lines.append([f"`{row['model']}`", row["head"], *scores, *cost])
    return table(header, lines)
