"""Make the tables of docs/ablations.md from results/ablations.json and results/ceiling.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from benchmarks.paths import RESULTS

Row = Mapping[str, Any]

ABLATIONS, CEILING = RESULTS / "ablations.json", RESULTS / "ceiling.json"


def ablations_table() -> str:
    """Make the table of the ablations, one line for each run."""
    return lay_out(json.loads(ABLATIONS.read_text()))


def lay_out(rows: Sequence[Row]) -> str:
    """Make a table of runs, in the order given."""
    header = "variant", "change", "against", "held out, %", "gain", "mixer", "params", "MMACs", "epochs", "minutes"
    lines = []
    for row in rows:
        points = gain(row, rows)
        lines.append(
            [
                f"`{row['variant']}`" + (f" seed {row['seed']}" if row["seed"] else ""),
                row["about"],
                f"`{row['parent']}`" if row["parent"] else "",
                f"{row['holdout_top1']:.1f}",
                "" if points is None else f"{points:+.1f}",
                row["mixer"],
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['macs'] / 1e6:.1f}",
                f"{row['epochs']:.2f}",
                f"{row['minutes']:.1f}",
            ]
        )
    return table(header, lines)


def gain(row: Row, rows: Sequence[Row]) -> float | None:
    """Return the accuracy of a run minus that of its parent variant with the same mixer and seed, in points.

    It is None if the parent was not run.
    """
    for other in rows:
        if other["variant"] == row["parent"] and all(other[key] == row[key] for key in ("mixer", "seed")):
            return row["holdout_top1"] - other["holdout_top1"]
    return None


def ceiling_table() -> str:
    """Make the table of the dense-convolution net, one line for each run."""
    header = "scored on", "seed", "params", "MMACs", "epochs", "FLOPs", "minutes", "one view, %", "six views, %"
    return table(
        header,
        [
            [
                row["split"],
                row["seed"],
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['macs'] / 1e6:.0f}",
                row["epochs"],
                f"{row['flops']:.1e}",
                f"{row['minutes']:.0f}",
                f"{row['top1']:.2f}",
                f"{row['top1_six_views']:.2f}",
            ]
            for row in json.loads(CEILING.read_text())
        ],
    )
