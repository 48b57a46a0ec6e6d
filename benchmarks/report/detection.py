"""Make the tables of detectors, from results/detection.json and results/detection_memory.json."""

import json
from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.markdown import table, wrap
from benchmarks.measure.detection import FILE
from benchmarks.paths import RESULTS


def scores_table() -> str:
    return render(json.loads(FILE.read_text()))


def render(results: dict) -> str:
    """Make the table of COCO scores, a line for each backbone and its weights, with a note on the recipe."""
    rows, recipe = results["rows"], results["recipe"]
    classes, samples = list(rows[0]["classes"]), rows[0]["samples"]
    header = ["backbone", "AP", "AP50", "AP75", *(f"AP50 {name}" for name in classes), "params", "seeds"]
    by_model: dict[str, list[dict]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    lines = []
    for model, runs in sorted(by_model.items(), key=lambda item: -mean(row["AP"] for row in item[1])):
        scores = [[row[name] for row in runs] for name in ("AP", "AP50", "AP75")]
        scores += [[row["classes"][name]["AP50"] for row in runs] for name in classes]
        lines.append([f"`{model}`", *map(over_seeds, scores), f"{runs[0]['parameters'] / 1e6:.2f} M", len(runs)])
    note = (
        f"Trained on {samples['train']} images and tested on {samples['test']}: {recipe['epochs']} epochs, "
        f"images of {recipe['min_size']}x{recipe['max_size']} pixels. A backbone starts from scratch, or from the "
        f"weights that its tag names. COCO scores in percent, sorted by AP; with several seeds mean and standard "
        f"deviation."
    )
    return f"{table(header, lines)}\n\n{wrap(note)}"


def over_seeds(scores: Sequence[float]) -> str:
    """Format the mean of scores, and their standard deviation if there are several."""
    return f"{mean(scores):.1f}" + (f" ± {stdev(scores):.1f}" if len(scores) > 1 else "")


def memory_table() -> str:
    """Make the table of RetinaNet's peak memory by mixer."""
    rows = json.loads((RESULTS / "detection_memory.json").read_text())["rows"]
    header = ["RetinaNet on s12 with", "before", "one image of 800x1216", "training step, two images of 480x640"]
    cells = [
        [f"`{row['mixer']}`", *(f"{row[f'{what}_gib']:.2f} GiB" for what in ("without", "eval", "train"))]
        for row in rows
    ]
    return table(header, cells)
