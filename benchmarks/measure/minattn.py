"""Collect finished runs of the minimal attention variants in results/minattn.json.

    python -m benchmarks.measure.minattn runs/minattn-*

The runs are those of configs/mnist/minattn.yaml and configs/cifar10/minattn.yaml: one recipe for each data set.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import RESULTS
from benchmarks.runs import collect_runs, differences, free_options, read_run
from metamix.models.minattn import ROWS, variant

FILE = RESULTS / "minattn.json"
DATA = {"mnist": "MNIST", "cifar": "CIFAR-10"}
KEPT = ("top1", "parameters", "seconds", "seed", "commit")


def add(results: dict, run: Path) -> None:
    """Add a run to `results`, or replace the earlier run of its model.

    Raises:
        ValueError: the run is not finished, trained another model, or followed another recipe than the others.
    """
    summary, recipe = read_run(run)
    data = summary["model"].rpartition("_")[2]
    if summary["model"] not in (variant(*row, data) for row in ROWS for data in DATA):
        raise ValueError(f"{run} trained {summary['model']}: give runs of configs/{{mnist,cifar10}}/minattn.yaml")
    recipe = {key: value for key, value in recipe.items() if key not in free_options("classification") | {"model"}}
    found = results.setdefault(data, {"recipe": recipe, "rows": {}})
    if other := differences(found["recipe"], recipe):
        raise ValueError(
            f"{run} differs from the runs in {FILE.name} in {', '.join(sorted(other))}: train it with their recipe, "
            f"or remove {FILE.name} to begin a new comparison"
        )
    found["rows"][summary["model"]] = {key: summary[key] for key in KEPT}


def main(argv: Sequence[str] | None = None) -> None:
    collect_runs(argv, __doc__, FILE, add)


if __name__ == "__main__":
    main()
