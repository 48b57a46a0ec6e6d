"""Make the tables of docs/ablations.md from result files and registered models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.measure import ablate, ceiling
from benchmarks.paths import RESULTS, read_json
from metamix import list_models
from metamix.models.metaformer_family import EQUAL_COST

Row = Mapping[str, Any]
COST = "params", "MMACs", "epochs"
LAYOUT = "nano"  # its runs compare mixers; runs of other variants compare design choices
TINY_BUDGET = 8e12  # multiply-adds of each run that compares layouts of the size tiny


def choices_table() -> str:
    """Make the table of the gain or loss from each design choice, one line for each run."""
    return lay_out_choices(load_rows())


def tiny_table() -> str:
    """Make the table of the runs with different layouts of the size tiny."""
    return lay_out_choices([row for row in load_rows(RESULTS / "tiny.json") if row.get("budget") == TINY_BUDGET])


def mixers_table() -> str:
    """Make the table of the mixers in the layout of the nano models, one line for each run."""
    return lay_out_mixers([row for row in load_rows() if row["variant"] == LAYOUT])


def load_rows(file: Path = ablate.FILE) -> list[Row]:
    """Read the runs of a result file, grouped by variant."""
    rows = read_json(file)
    order = list(dict.fromkeys(row["variant"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["variant"]))


def lay_out_mixers(rows: Sequence[Row]) -> str:
    """Make a table of runs with different mixers, best first, with the gain over the identity run of the same seed."""
    floors = {row["seed"]: row["holdout_top1"] for row in rows if row["mixer"] == "identity"}
    lines = []
    for row in sorted(rows, key=lambda row: -row["holdout_top1"]):
        floor = None if row["mixer"] == "identity" else floors.get(row["seed"])
        over = "" if floor is None else f"{row['holdout_top1'] - floor:+.1f}"
        lines.append([f"`{row['mixer']}`{seed_of(row)}", f"{row['holdout_top1']:.1f}", over, *cost(row)])
    return table(("mixer", "held-out accuracy, %", "points over identity", *COST), lines)


def lay_out_choices(rows: Sequence[Row]) -> str:
    """Make a table of the runs of all variants except `nano`, in the order of `rows`, with the gain over the parent."""
    lines = []
    for row in rows:
        if row["variant"] == LAYOUT:
            continue
        points = gain(row, rows)
        mixers = ", ".join(row["model_args"].get("mixer", [row["mixer"]]))
        hybrid = f" with {row['mixer']}" if mixers != row["mixer"] else ""
        gained = "" if points is None else f"{points:+.1f} over `{row['parent']}`{hybrid}"
        run = f"`{row['variant']}`{seed_of(row)}", row["about"], mixers
        lines.append([*run, f"{row['holdout_top1']:.1f}", gained, *cost(row)])
    return table(("variant", "change", "mixer", "held-out accuracy, %", "gain", *COST), lines)


def seed_of(row: Row) -> str:
    """Name the seed of a run if it is not 0."""
    return f" seed {row['seed']}" if row["seed"] else ""


def shares_table(size: str) -> str:
    """Make the table of each mixer's options, MLP ratio and cost, for the models of a size."""
    lines = []
    for mixer, share in EQUAL_COST[size].items():
        (model,) = list_models(f"metaformer_{mixer}_{size}")
        options = []
        for name in share.stages[0]:
            values = [str(stage[name]) for stage in share.stages]
            options.append(f"`{name}` {', '.join(values if len(set(values)) > 1 else values[:1])}")
        sizes = f"{model.macs / 1e6:.1f}", f"{model.parameters / 1e6:.2f} M"
        lines.append([f"`{mixer}`", f"{share.mlp_ratio:g}", "; ".join(options), *sizes])
    return table(("mixer", "MLP ratio", "options, by stage where they differ", "MMACs", "params"), lines)


def cost(row: Row) -> list[str]:
    """Format the parameters and multiply-adds of a run, both in millions, and its epochs."""
    return [f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e6:.1f}", f"{row['epochs']:.2f}"]


def gain(row: Row, rows: Sequence[Row]) -> float | None:
    """Return the accuracy of a run minus its parent variant's accuracy with the same mixer and seed, in points.

    It is None if there is no parent, or if the parent has no run with this mixer and seed.
    """
    for other in rows:
        if other["variant"] == row["parent"] and all(other[key] == row[key] for key in ("mixer", "seed")):
            return row["holdout_top1"] - other["holdout_top1"]
    return None


def ceiling_table() -> str:
    """Make the table of the dense-convolution net, one line for each run."""
    header = "scored on", "seed", *COST, "FLOPs", "minutes", "accuracy from one view, %", "from six views, %"
    rows = []
    for row in read_json(ceiling.FILE):
        size = f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e6:.0f}"
        spent = row["epochs"], f"{row['flops']:.1e}", f"{row['minutes']:.0f}"
        rows.append([row["split"], row["seed"], *size, *spent, f"{row['top1']:.2f}", f"{row['top1_six_views']:.2f}"])
    return table(header, rows)
