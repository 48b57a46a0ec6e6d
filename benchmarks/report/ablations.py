"""Make the tables of docs/ablations.md from results/ablations.json and results/ceiling.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from benchmarks.paths import RESULTS
from metamix import list_models
from metamix.models.metaformer_family import NANO

Row = Mapping[str, Any]

ABLATIONS, CEILING = RESULTS / "ablations.json", RESULTS / "ceiling.json"

MIXERS = "nano"  # how the variants that compare mixers begin


def layout_table() -> str:
    """Make the table of the ablations of the layout, one line for each run."""
    return lay_out([row for row in json.loads(ABLATIONS.read_text()) if not row["variant"].startswith(MIXERS)])


def mixers_table() -> str:
    """Make the table of the mixers in the layout of the nano models, one line for each run."""
    return lay_out_mixers([row for row in json.loads(ABLATIONS.read_text()) if row["variant"].startswith(MIXERS)])


def lay_out_mixers(rows: Sequence[Row]) -> str:
    """Make a table of runs that differ in the mixer, with the gain over identity in the same variant and seed."""
    header = "variant", "mixer", "seed", "held out, %", "over identity", "params", "MMACs", "epochs", "CPU minutes"
    floors = {(row["variant"], row["seed"]): row["holdout_top1"] for row in rows if row["mixer"] == "identity"}
    lines = []
    for row in rows:
        floor = floors.get((row["variant"], row["seed"]))
        over = "" if floor is None or row["mixer"] == "identity" else f"{row['holdout_top1'] - floor:+.1f}"
        run = f"`{row['variant']}`", f"`{row['mixer']}`", row["seed"]
        lines.append([*run, f"{row['holdout_top1']:.1f}", over, *cost(row, "cpu_minutes")])
    return table(header, lines)


def lay_out(rows: Sequence[Row]) -> str:
    """Make a table of runs that differ in the layout, in the order given."""
    lines = []
    for row in rows:
        points = gain(row, rows)
        lines.append(
            [
                f"`{row['variant']}`" + (f" seed {row['seed']}" if row["seed"] else ""),
                row["about"],
                f"{row['holdout_top1']:.1f}",
                "" if points is None else f"{points:+.1f} on `{row['parent']}`",
                *cost(row),
            ]
        )
    return table(("variant", "change", "held out, %", "gain", "params", "MMACs", "epochs", "minutes"), lines)


def shares_table() -> str:
    """Make the table of what each mixer gets in the nano models, from the registered models."""
    lines = []
    for mixer, share in NANO.items():
        (model,) = list_models(f"metaformer_{mixer}_nano")
        options = []
        for name in share.stages[0]:
            values = [str(stage[name]) for stage in share.stages]
            options.append(f"`{name}` {', '.join(values if len(set(values)) > 1 else values[:1])}")
        sizes = f"{model.macs / 1e6:.1f}", f"{model.parameters / 1e6:.2f} M"
        lines.append([f"`{mixer}`", f"{share.mlp_ratio:g}", "; ".join(options), *sizes])
    return table(("mixer", "MLP ratio", "options, by stage where they differ", "MMACs", "params"), lines)


def cost(row: Row, minutes: str = "minutes") -> list[str]:
    """Format parameters, millions of multiply-adds, epochs and minutes of a run, which are in the field `minutes`."""
    sizes = f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e6:.1f}"
    return [*sizes, f"{row['epochs']:.2f}", f"{row[minutes]:.1f}"]


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
