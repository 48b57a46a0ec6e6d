"""What each reduction of minimal attention costs: docs/minattn.json, and its table in docs/results.md.

    python benchmarks/minattn_results.py RUN...     adds the results of run folders
    python benchmarks/minattn_results.py            writes the table anew
    python benchmarks/minattn_results.py --check    exit 1 where docs/results.md is stale

The runs are those of configs/mnist/minattn.yaml and configs/cifar10/minattn.yaml, one recipe for each data set.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.timing import table
from benchmarks.paths import RESULTS as FOLDER
from benchmarks.report.comparison import PAGE, wrap
from benchmarks.report.markers import refresh
from benchmarks.ship_weights import differences, read_run
from metamix.models.minattn import ROWS, variant
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

RESULTS = FOLDER / "minattn.json"
DATA = {"mnist": "MNIST", "cifar": "CIFAR-10"}
# Of a third party's reproduction: similarity, MLP, heads -> accuracy in % on MNIST and CIFAR-10.
REPRODUCTION = {
    ("full", True, 1): (98.33, 68.19),
    ("full", True, 4): (98.73, 67.72),
    ("collapsed", True, 1): (98.39, None),
    ("minimal", True, 1): (98.22, 65.14),
    ("full", False, 1): (97.55, 57.08),
    ("full", False, 4): (98.24, 61.37),
    ("symmetric", False, 1): (82.02, 9.84),
    ("symmetric", False, 4): (97.49, 46.84),
    ("collapsed", False, 1): (97.69, 56.19),
    ("minimal", False, 1): (94.45, 47.44),
}


def add(results: dict, run: Path) -> None:
    """Puts the result of a finished run into `results`; ValueError where it is of another model, or another recipe."""
    summary, recipe = read_run(run)
    data = summary["model"].rpartition("_")[2]
    if summary["model"] not in (variant(*row, data) for row in ROWS for data in DATA):
        raise ValueError(f"{run} trained {summary['model']}: give runs of configs/{{mnist,cifar10}}/minattn.yaml")
    found = results.setdefault(data, {"recipe": recipe, "rows": {}})
    if other := differences(found["recipe"], recipe).keys() - {"model"}:
        raise ValueError(
            f"{run} differs from the runs in {RESULTS.name} in {', '.join(sorted(other))}: the table is that of one "
            f"recipe; train it with theirs, or begin anew without {RESULTS.name}"
        )
    found["rows"][summary["model"]] = {key: summary[key] for key in ("top1", "parameters", "seconds", "seed", "commit")}


def text(results: dict) -> str:
    """The table, and how its numbers came about."""
    rows = []
    for row in ROWS:
        similarity, mlp, heads = row
        cells = [similarity, "yes" if mlp else "no", heads]
        for data, theirs in zip(DATA, REPRODUCTION[row]):
            ours = results.get(data, {"rows": {}})["rows"].get(variant(*row, data))
            cells += [f"{ours['parameters']:,}", f"{ours['top1']:.2f}"] if ours else ["", "not trained yet"]
            cells.append("" if theirs is None else f"{theirs:.2f}")
        rows.append(cells)
    columns = [f"{title}{what}" for title in DATA.values() for what in (": parameters", ", %", ", theirs, %")]
    said = [
        "Test accuracy after the last epoch, one seed. The similarity: full has a query, a key, a value and a "
        "projection; collapsed has query and key in one matrix; minimal has neither value nor projection besides; "
        "symmetric has a Cholesky factor in place of both query and key. Theirs is a third party's reproduction "
        "(post-norm, a class token, 100 epochs of Adam at 1e-3, batches of 64, no augmentation)."
    ]
    for data, found in results.items():
        recipe = found["recipe"]
        copy = ", as a JPEG copy" if recipe["data"] == "folder" else ""
        said.append(
            f"Ours on {DATA[data]}{copy}: a norm before each half and the mean over tokens, {recipe['epochs']} epochs "
            f"of {recipe['optimizer']} at {recipe['lr']:g}, batches of {recipe['batch_size']}, {augmentation(recipe)}."
        )
    return "\n\n".join(
        [
            "## Minimal attention, reduction by reduction",
            table(["similarity", "MLP", "heads", *columns], rows),
            wrap(" ".join(said)),
        ]
    )


def augmentation(recipe: dict) -> str:
    used = [key for key in ("flip", "padding", "cutmix", "mixup", "cutout", "erase") if recipe[key]]
    used += [recipe["auto_augment"]] * (recipe["auto_augment"] != "none")
    return f"augmented by {' and '.join(used)}" if used else "no augmentation"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where docs/results.md is stale")
    options = parser.parse_args(argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with exit_with_message(ValueError):
        for run in options.runs:
            add(results, run)
    if options.runs:
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    refresh("minattn", "minattn_results.py", text(results), options.check, PAGE)


if __name__ == "__main__":
    main()
