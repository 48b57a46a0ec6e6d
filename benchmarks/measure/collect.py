"""Collect finished runs of one comparison in results/detection.json, segmentation.json, transfer.json or minattn.json.

    python -m benchmarks.measure.collect detection runs/bccd-retinanet-*
    python -m benchmarks.measure.collect transfer runs/camvid-tiny runs/grocery-tiny
    python -m benchmarks.measure.collect segmentation runs/camvid-semantic_fpn-*
    python -m benchmarks.measure.collect minattn runs/minattn-*

For detection, the test images of the run with the best AP50 are also saved as docs/images/detection.jpg. Detection
runs must follow one recipe: they may differ only in the model, the seed, `--pretrained` and options that do not affect
the result. Segmentation runs may follow any recipe, but must have the same images. Transfer runs on the same data must
follow one recipe, but may train different models and start from different weights. The runs of minattn, the minimal
attention variants, follow configs/mnist/minattn.yaml and configs/cifar10/minattn.yaml: one recipe for each data set.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timm.models import get_pretrained_cfg

from benchmarks.paths import IMAGES, RESULTS, read_json, write_json
from benchmarks.runs import differences, free_options, read_run
from metamix.models.minattn import ROWS, variant
from metamix.utils.text import exit_with_message

DETECTION, SEGMENTATION, TRANSFER, MINATTN = (
    RESULTS / f"{name}.json" for name in ("detection", "segmentation", "transfer", "minattn")
)
PICTURE = IMAGES / "detection.jpg"
RUN_KEYS = ("seconds", "weights", "seed", "commit", "versions")
DETECTION_KEYS = ("model", "data", "AP", "AP50", "AP75", "parameters", "samples", "epochs", "steps", *RUN_KEYS)
SEGMENTATION_KEYS = ("model", "head", "data", "test_split", "measured", "miou", "pixel_accuracy", "mean_accuracy")
SEGMENTATION_KEYS += ("boundary_f", "parameters", "macs", "samples", "epochs", "steps", *RUN_KEYS)
TRANSFER_KEYS = ("data", "parameters", "macs", "samples", "epochs", "seconds", "seed", "commit", "versions")
SCORES = {"classification": "top1", "detection": "AP", "segmentation": "miou"}
MINATTN_KEYS = ("top1", "parameters", "seconds", "seed", "commit")
MINATTN_DATA = {"mnist": "MNIST", "cifar": "CIFAR-10"}
# Options in which runs on the same data may differ. The numbers of epochs and samples are compared instead of
# `iterations` and `test_on`.
STARTS = {"model", "pretrained", "checkpoint", "linear_probe", "mean", "std", "head_args", "iterations", "test_on"}


def add_detection(results: dict, run: Path) -> Image.Image | None:
    """Add a run to `results`, or replace the earlier run of its model and seed.

    Return the picture of the test images, if no run has a higher AP50. Raise ValueError if the run is not finished, if
    it has only a tag or only --pretrained, or if the other runs have another recipe or other images.
    """
    summary, recipe = read_run(run)
    pretrained = recipe.get("pretrained", False)
    if pretrained != ("." in summary["model"]):
        raise ValueError(
            f"{run} trained {summary['model']} with pretrained {pretrained}: give both a tag and "
            f"--pretrained, as in --model NAME.TAG --pretrained, or neither"
        )
    shared = without(recipe, free_options("detection") | {"model", "seed", "pretrained"})
    check_recipe(run, results.setdefault("recipe", shared), shared, DETECTION)
    row = {key: summary[key] for key in DETECTION_KEYS} | {"classes": read_json(run / "test_scores.json")["classes"]}
    put(results, row, ("model", "seed"), order=lambda row: -row["AP50"])
    check_images(run, results["rows"])
    return Image.open(run / "test_images.png").convert("RGB") if results["rows"][0] is row else None


def add_segmentation(results: dict, run: Path) -> None:
    """Add the scores, cost and recipe of a run to `results`, or replace the earlier run of the same recipe and seed.

    Raises:
        ValueError: the run is not finished, or the other runs have other images.
    """
    summary, recipe = read_run(run)
    row = {key: summary[key] for key in SEGMENTATION_KEYS}
    row["recipe"] = without(recipe, free_options("segmentation"))
    put(results, row, ("recipe",), order=lambda row: -row["miou"])
    check_images(run, results["rows"])


def add_transfer(results: dict, run: Path) -> None:
    """Add a run of a backbone on another data set, or replace the earlier run of its model, weights, data and seed.

    Raises:
        ValueError: the run is not finished, or the other runs on these data have another recipe or other images.
    """
    summary, recipe = read_run(run)
    task = recipe.get("task", "classification")
    model, _, tag = recipe["model"].partition(".")
    weights = recipe["checkpoint"] or "none"
    start = tag or get_pretrained_cfg(model).tag if recipe["pretrained"] else Path(weights).stem
    start += ", linear probe" if recipe.get("linear_probe") else ""
    row = {"model": model, "start": start, "task": task, "score": summary[SCORES[task]]}
    row |= {key: summary.get(key) for key in TRANSFER_KEYS} | {"recipe": without(recipe, free_options(task))}
    put(results, row, ("model", "start", "data", "seed"), order=lambda row: (row["task"], row["data"], -row["score"]))
    others = [other for other in results["rows"] if other["data"] == row["data"]]
    check_images(run, others)
    for other in others:
        check_recipe(run, *(without(r["recipe"] | {"epochs": r["epochs"]}, STARTS) for r in (other, row)), TRANSFER)


def add_minattn(results: dict, run: Path) -> None:
    """Add a run to `results`, or replace the earlier run of its model.

    Raises:
        ValueError: the run is not finished, trained a model that is not in the minattn recipes, or has a recipe that
            differs from the recipe of the other runs on its data.
    """
    summary, recipe = read_run(run)
    data = summary["model"].rpartition("_")[2]
    if summary["model"] not in (variant(*row, data) for row in ROWS for data in MINATTN_DATA):
        raise ValueError(f"{run} trained {summary['model']}: give runs of configs/{{mnist,cifar10}}/minattn.yaml")
    shared = without(recipe, free_options("classification") | {"model"})
    part = results.setdefault(data, {"recipe": shared, "rows": {}})
    check_recipe(run, part["recipe"], shared, MINATTN)
    part["rows"][summary["model"]] = {key: summary[key] for key in MINATTN_KEYS}


def put(results: dict, row: dict, identity: Sequence[str], order: Callable[[dict], Any]) -> None:
    """Add a row to the sorted rows of `results`. It replaces the row with equal values of the `identity` keys."""
    others = [other for other in results.get("rows", ()) if any(other[key] != row[key] for key in identity)]
    results["rows"] = sorted([*others, row], key=order)


def check_images(run: Path, rows: Sequence[dict]) -> None:
    """Raise ValueError unless all rows have the same data set and numbers of images in the splits."""
    if len(images := {f"{row['data']} {row['samples']}" for row in rows}) > 1:
        raise ValueError(f"{run}: the runs train on or score different images: {', '.join(sorted(images))}")


def without(recipe: dict, ignored: set[str]) -> dict:
    """Return the options of a recipe that are not ignored."""
    return {key: value for key, value in recipe.items() if key not in ignored}


def check_recipe(run: Path, recipe: dict, other: dict, file: Path) -> None:
    """Raise ValueError unless a run followed the recipe of the runs in a result file."""
    if changed := differences(recipe, other):
        expected = differences(other, recipe)
        options = ", ".join(f"{key} {value} and not {expected.get(key)}" for key, value in changed.items())
        raise ValueError(
            f"the recipe of {run} differs from the recipe of the runs in {file.name}: {options}; leave this run out, "
            f"or remove {file.name} to begin a new comparison"
        )


def main(argv: Sequence[str] | None = None) -> None:
    kinds = dict(detection=(DETECTION, add_detection), segmentation=(SEGMENTATION, add_segmentation))
    kinds |= dict(transfer=(TRANSFER, add_transfer), minattn=(MINATTN, add_minattn))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=kinds, help="comparison that the runs belong to")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    args = parser.parse_args(argv)
    file, add = kinds[args.kind]
    results = read_json(file, {})
    with exit_with_message(ValueError, OSError):
        pictures = [picture for run in args.runs if (picture := add(results, run))]
        write_json(file, results)
        if pictures:
            pictures[-1].save(PICTURE, quality=80, optimize=True)


if __name__ == "__main__":
    main()
