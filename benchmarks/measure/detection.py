"""Collect finished detection runs in results/detection.json, and the picture of the best run.

    python -m benchmarks.measure.detection runs/bccd-retinanet-*

All runs must follow one recipe: a run that differs in more than its model, its seed and `--pretrained` is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.paths import IMAGES, RESULTS
from benchmarks.runs import collect_runs, differences, free_options, read_run

FILE, PICTURE = RESULTS / "detection.json", IMAGES / "detection.jpg"
KEPT = ("model", "data", "AP", "AP50", "AP75", "parameters", "samples", "epochs", "steps", "seconds")
KEPT += ("weights", "seed", "commit", "versions")


def add(results: dict, run: Path) -> None:
    """Add a run to `results`, or replace the earlier run of its model and seed.

    Raises:
        ValueError: the run is not finished, or it followed another recipe than the others.
    """
    summary, recipe = read_run(run)
    pretrained = recipe.get("pretrained", False)
    if pretrained != ("." in summary["model"]):
        raise ValueError(
            f"{run} trained {summary['model']} with pretrained {pretrained}: name the weights by their tag, "
            f"--model NAME.TAG --pretrained, or give neither"
        )
    ignored = free_options("detection") | {"model", "seed", "pretrained"}
    recipe = {key: value for key, value in recipe.items() if key not in ignored}
    known = results.setdefault("recipe", recipe)
    if found := differences(known, recipe):
        said = ", ".join(f"{key} {value} and not {known.get(key)}" for key, value in found.items())
        raise ValueError(
            f"{run} followed another recipe than the runs in {FILE.name}: {said}; leave it out, or remove {FILE.name} "
            f"to begin a new comparison"
        )
    scores = json.loads((run / "test_scores.json").read_text())
    row = {key: summary[key] for key in KEPT} | {"classes": scores["classes"]}
    others = [other for other in results.get("rows", ()) if any(other[key] != row[key] for key in ("model", "seed"))]
    results["rows"] = sorted([*others, row], key=lambda row: -row["AP50"])
    if results["rows"][0] is row:
        Image.open(run / "test_images.png").convert("RGB").save(PICTURE, quality=80, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    collect_runs(argv, __doc__, FILE, add)


if __name__ == "__main__":
    main()
