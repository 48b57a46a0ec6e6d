"""Collect finished runs of the minimal attention variants in results/minattn.json.

    python -m benchmarks.measure.minattn runs/minattn-*

The runs are those of configs/mnist/minattn.yaml and configs/cifar10/minattn.yaml: one recipe for each data set.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import RESULTS
from benchmarks.runs import differences, read_run
from metamix.models.minattn import ROWS, variant
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

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
    found = results.setdefault(data, {"recipe": recipe, "rows": {}})
    if other := differences(found["recipe"], recipe).keys() - {"model"}:
        raise ValueError(
            f"{run} differs from the runs in {FILE.name} in {', '.join(sorted(other))}: train it with their recipe, "
            f"or remove {FILE.name} to begin a new comparison"
        )
    found["rows"][summary["model"]] = {key: summary[key] for key in KEPT}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    args = parser.parse_args(argv)
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    with exit_with_message(ValueError, OSError):
        for run in args.runs:
            add(results, run)
        write_text(FILE, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
