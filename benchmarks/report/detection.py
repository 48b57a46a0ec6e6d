"""Make the tables of detectors, from results/detection.json and results/detection_memory.json."""

import json

from benchmarks.markdown import table, wrap
from benchmarks.measure.detection import FILE
from benchmarks.paths import RESULTS


def scores_table() -> str:
    return render(json.loads(FILE.read_text()))


def render(results: dict) -> str:
    """Make the table of COCO scores by mixer, with a note on the recipe."""
    rows, recipe = results["rows"], results["recipe"]
    classes, samples = list(rows[0]["classes"]), rows[0]["samples"]
    header = ["mixer", "AP", "AP50", "AP75", *(f"AP50 {name}" for name in classes), "parameters", "minutes"]
    cells = []
    for row in rows:
        scores = [row["AP"], row["AP50"], row["AP75"], *(row["classes"][name]["AP50"] for name in classes)]
        size, minutes = f"{row['parameters'] / 1e6:.2f} M", f"{row['seconds'] / 60:.0f}"
        cells.append([f"`{mixer_of(row['model'])}`", *(f"{score:.1f}" for score in scores), size, minutes])
    note = (
        f"RetinaNet on `metaformer_<mixer>_{rows[0]['model'].split('_')[-1]}`, trained from scratch on "
        f"{samples['train']} images and tested on {samples['test']}: {recipe['epochs']} epochs, one seed, "
        f"images of {recipe['max_size']}x{recipe['min_size']} pixels. COCO scores in percent; minutes of training."
    )
    return f"{table(header, cells)}\n\n{wrap(note)}"


def memory_table() -> str:
    """Make the table of RetinaNet's peak memory by mixer."""
    rows = json.loads((RESULTS / "detection_memory.json").read_text())["rows"]
    header = ["RetinaNet on s12 with", "before", "one image of 800x1216", "training step, two images of 640x480"]
    cells = [
        [f"`{row['mixer']}`", *(f"{row[f'{what}_gib']:.2f} GiB" for what in ("without", "eval", "train"))]
        for row in rows
    ]
    return table(header, cells)


def mixer_of(model: str) -> str:
    return model.split("_")[1]
