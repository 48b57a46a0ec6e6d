"""Detectors of each mixer side by side: docs/detection.json, the tables in README.md and the picture of the best.

    python benchmarks/detection_results.py RUN...     adds the results of run folders of train.py --task detection
    python benchmarks/detection_results.py            writes the tables anew
    python benchmarks/detection_results.py --check    exit 1 where those in README.md are stale

All runs follow one recipe: one that differs in more than its model, and in what changes no number, is refused. The
table of memory is that of docs/detection_memory.json, which benchmarks/detection_memory.py measures.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.measure.timing import table
from benchmarks.paths import IMAGES, ROOT
from benchmarks.paths import RESULTS as FOLDER
from benchmarks.report.markers import refresh
from metamix.detection.task import DetectionOptions
from metamix.training.recipe import EngineOptions
from metamix.utils.files import write_text

RESULTS, MEMORY, PICTURE = FOLDER / "detection.json", FOLDER / "detection_memory.json", IMAGES / "detection.jpg"
KEPT = "model data AP AP50 AP75 parameters samples epochs steps seconds weights seed commit versions".split()
FREE = {
    f.name
    for options in (EngineOptions, DetectionOptions)
    for f in fields(options)
    if f.metadata["on_resume"] == "free"
} | {"model"}


def add(results: dict, folder: Path) -> None:
    """Puts the row of a finished run into `results`; ValueError where it followed another recipe."""
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder} has no summary.json: give a finished run of train.py --task detection")
    recipe = {
        key: value for key, value in yaml.safe_load((folder / "recipe.yaml").read_text()).items() if key not in FREE
    }
    known = results.setdefault("recipe", recipe)
    differ = [
        f"{key} {recipe.get(key)} and not {known.get(key)}"
        for key in sorted(known.keys() | recipe.keys())
        if recipe.get(key) != known.get(key)
    ]
    if differ:
        raise ValueError(
            f"{folder} followed another recipe than the runs in {RESULTS.name}: {', '.join(differ)}; take it "
            f"out, or begin anew without {RESULTS.name}"
        )
    summary, scores = (json.loads((folder / name).read_text()) for name in ("summary.json", "test_scores.json"))
    row = {key: summary[key] for key in KEPT} | {"classes": scores["classes"]}
    results["rows"] = [other for other in results.get("rows", ()) if other["model"] != row["model"]] + [row]
    results["rows"].sort(key=lambda row: -row["AP50"])
    if results["rows"][0] is row:
        Image.open(folder / "test_images.png").convert("RGB").save(PICTURE, quality=80, optimize=True)


def mixer_of(model: str) -> str:
    return model.split("_")[1]


def results_table(results: dict) -> list[str]:
    rows, recipe = results["rows"], results["recipe"]
    classes = list(rows[0]["classes"])
    samples = rows[0]["samples"]
    header = ["mixer", "AP", "AP50", "AP75", *(f"AP50 {name}" for name in classes), "parameters", "minutes"]
    cells = []
    for row in rows:
        scores = [row["AP"], row["AP50"], row["AP75"], *(row["classes"][name]["AP50"] for name in classes)]
        size, minutes = f"{row['parameters'] / 1e6:.2f} M", f"{row['seconds'] / 60:.0f}"
        cells.append([mixer_of(row["model"]), *(f"{score:.1f}" for score in scores), size, minutes])
    size = rows[0]["model"].split("_")[-1]
    return [
        f"{sum(samples.values())} images of blood cells ({rows[0]['data'].upper()}), trained from scratch:",
        "",
        table(header, cells),
        "",
        f"RetinaNet on `metaformer_<mixer>_{size}`, {samples['train']} images to train on and "
        f"{samples['test']} to test on, {recipe['epochs']} epochs, one seed; images of {recipe['max_size']}x"
        f"{recipe['min_size']}, as `configs/bccd/retinanet.yaml` has it. Scores are COCO's, in percent; "
        f"minutes are those of training.",
    ]


def memory_table(rows: Sequence[dict]) -> str:
    return table(
        ["RetinaNet on s12 with", "before", "one image of 800x1216", "a training step on two of 640x480"],
        [[row["mixer"], *(f"{row[f'{what}_gib']:.2f} GiB" for what in ("without", "eval", "train"))] for row in rows],
    )


def tables(results: dict) -> str:
    lines = []
    if results.get("rows"):
        picture, best = PICTURE.relative_to(ROOT), results["rows"][0]["model"]
        lines += [
            *results_table(results),
            "",
            f"![The best and the worst test images, truth beside what `{best}` found]({picture})",
            "",
        ]
    lines += [
        "Peak memory in float32, torch and weights included; the training step is AdamW's. Before: torch and weights "
        "alone.",
        "",
        memory_table(json.loads(MEMORY.read_text())["rows"]),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where README.md is stale")
    options = parser.parse_args(argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    try:
        for folder in options.runs:
            add(results, folder)
    except ValueError as error:
        parser.error(str(error))
    if options.runs:
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    refresh("detection", "detection_results.py", tables(results), check=options.check)


if __name__ == "__main__":
    main()
