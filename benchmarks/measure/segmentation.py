"""Collect finished segmentation runs in results/segmentation.json.

    python -m benchmarks.measure.segmentation runs/camvid-semantic_fpn-*

Each row has the run's scores on the test split, its cost and its recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import RESULTS
from benchmarks.runs import collect_runs, free_options, read_run

FILE = RESULTS / "segmentation.json"
KEPT = ("model", "head", "data", "test_split", "measured", "miou", "pixel_accuracy", "mean_accuracy", "boundary_f")
KEPT += ("parameters", "macs", "samples", "epochs", "steps", "seconds", "weights", "seed", "commit", "versions")


def add(results: dict, run: Path) -> None:
    """Add a run to `results`, or replace the earlier run of the same recipe and seed.

    Raises:
        ValueError: the run is not finished.
    """
    summary, recipe = read_run(run)
    ignored = free_options("segmentation")
    row = {key: summary[key] for key in KEPT}
    row["recipe"] = {key: value for key, value in recipe.items() if key not in ignored}
    rows = [other for other in results.get("rows", ()) if other["recipe"] != row["recipe"]]
    results["rows"] = sorted([*rows, row], key=lambda row: -row["miou"])


def main(argv: Sequence[str] | None = None) -> None:
    collect_runs(argv, __doc__, FILE, add)


if __name__ == "__main__":
    main()
