"""Add a trained model to weights/: its tensors in float16, and a card that says how they were made.

    python -m benchmarks.ship_weights RUN --tag digits
    python -m benchmarks.ship_weights RUN --tag noise25 --data-name "400 photographs of BSD500" --test-name BSD68

RUN is the folder of a classification or restoration run. Its data must still be where the run read them. On the card
of a classifier, `seeds` maps the seed of the run to its accuracy. Add the accuracy of other seeds of the same recipe by
hand.

The main scores on the card are computed in float32, with the stored tensors. A run is refused if float16 changes its
accuracy by more than a standard error, or its PSNR by more than 0.01 dB.

`benchmarks.measure.weights_speed` adds speed and memory to the card of a classifier,
`benchmarks.measure.restoration` scores restoration weights on more images, and `benchmarks.report.cards` makes the
pages. The card keeps the learning curve, so the run folder is not needed afterwards.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.paths import read_json
from benchmarks.report.cards import JOBS
from benchmarks.runs import free_options, read_run
from benchmarks.scoring import score, score_restoration
from benchmarks.weight_cards import half, standard_error, write_weights
from metamix.classification.task import Classification
from metamix.data import LocationOptions
from metamix.models.registry import create_model
from metamix.restoration.options import RestorationDataOptions
from metamix.restoration.task import Restoration
from metamix.training.reports import read_metrics
from metamix.utils.text import exit_with_message
from metamix.weights.files import load_weights
from metamix.weights.find import weights_dir

ALLOWED = 0.01  # largest allowed change of the PSNR by float16, in dB
COPIED = ("in_chans", "channels", "enlarge", "degradation", "scale", "samples", "measured", "seconds")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--tag", required=True, help="short name of the data or of the job, such as digits or noise25")
    parser.add_argument("--data-name", help="name of the training data on the card; needed for folders")
    parser.add_argument("--test-name", help="restoration: name of the scored images on the card, such as BSD68")
    parser.add_argument("--limit", help="sentence for the card about what the weights cannot do")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        print(ship(args))


def ship(args: argparse.Namespace) -> str:
    """Write the weights and card of a run, and return a line about them; raise ValueError if it cannot be shipped."""
    summary, recipe = read_run(args.run)
    describe = {"classification": describe_classifier, "restoration": describe_restorer}.get(recipe["task"])
    if describe is None:
        raise ValueError(f"{args.run} is a run of --task {recipe['task']}: give a classification or a restoration run")
    tensors, about = load_weights(args.run)
    card = {
        "name": f"{about['model'].partition('.')[0]}.{args.tag}",
        "task": recipe["task"],
        **describe(args, summary, recipe, tensors, about),
        "weights": about["weights"],
        "stored_as": "float16",
        "parameters": about["parameters"],
        "macs": about["macs"],
        "recipe": {key: value for key, value in recipe.items() if key not in free_options(recipe["task"])},
        "versions": summary["versions"],
        "commit": summary["commit"],
        "license": "apache-2.0",
    }
    replaced = read_json(weights_dir() / f"{card['name']}.json", {})
    if "cost" in replaced:
        card["cost"] = replaced["cost"]  # speed and memory stay valid with new weights
    metric = "psnr" if card["task"] == "restoration" else "top1"
    return f"{write_weights(card, half(tensors), about | {metric: card[metric]})}, {metric} {card[metric]:.2f}"


def describe_classifier(
    args: argparse.Namespace, summary: dict, recipe: dict, tensors: dict[str, torch.Tensor], about: dict
) -> dict[str, Any]:
    """Return the entries of a classifier's card that depend on its task."""
    if recipe["data"] == "folder" and not args.data_name:
        raise ValueError(
            f"{args.run} was trained on a folder, {summary['data']!r}: give --data-name with the name of the data, "
            f"such as 'CIFAR-10, JPEG copy'"
        )
    task, model = trained(Classification, args.run, recipe, LocationOptions)
    if not same_by_name(task, model):
        raise ValueError(
            f"{args.run} has model_args {task.options.model_args}, but weights must load by the model's name alone: "
            f"register a model with these arguments under a new name"
        )
    accuracy = score(task, model)[0]
    model.load_state_dict(half(tensors))
    stored = score(task, model)[0]
    check_half(args.run, "accuracy", accuracy, stored, standard_error(accuracy, about["samples"]["test"]))
    column = "holdout_ema_top1" if about["weights"] == "ema" else "holdout_top1"
    rows = read_metrics(args.run / "metrics.csv")
    return {
        "data": args.data_name or about["data"],
        "samples": about["samples"],
        "top1": round(stored, 2),
        "limits": [args.limit] if args.limit else [],
        "seeds": {str(recipe["seed"]): summary["top1"]},
        "curve": {
            "train_loss": [row["train_loss"] for row in rows],
            "holdout_top1": [row.get(column) for row in rows],  # None in epochs without an evaluation
        },
        "pretrained_cfg": {
            "input_size": [about["in_chans"], about["img_size"], about["img_size"]],
            "num_classes": about["num_classes"],
            "label_names": about["classes"],
            **{key: about[key] for key in ("mean", "std", "interpolation", "crop_pct")},
        },
    }


def describe_restorer(
    args: argparse.Namespace, summary: dict, recipe: dict, tensors: dict[str, torch.Tensor], about: dict
) -> dict[str, Any]:
    """Return the entries of an image restoration model's card that depend on its task."""
    if not (args.data_name and args.test_name):
        raise ValueError(f"{args.run} was trained on folders: give --data-name and --test-name to name the images")
    if (kind := summary["degradation"].partition(":")[0]) not in JOBS:
        raise ValueError(f"{args.run} has the degradation {kind}: describe it in JOBS of benchmarks/report/cards.py")
    task, model = trained(Restoration, args.run, recipe, RestorationDataOptions)
    scores = score_restoration(task, model)
    model.load_state_dict(half(tensors))
    stored = score_restoration(task, model)
    check_half(args.run, "PSNR", scores["psnr"], stored["psnr"], ALLOWED)
    return {
        "data": args.data_name,
        "test_data": args.test_name,
        **{name: round(stored[name], 4) for name in ("psnr", "ssim", "input_psnr", "input_ssim")},
        "float16_changes_psnr": round(stored["psnr"] - scores["psnr"], 5),
        **{name: summary[name] for name in COPIED},
        "crop": recipe["crop"],
        "curve": {"train_loss": [row["train_loss"] for row in read_metrics(args.run / "metrics.csv")]},
        "limits": [args.limit] if args.limit else [],
        "pretrained_cfg": {},  # timm does not build image restoration models
    }


def trained(task: Any, run: Path, recipe: dict, options: type) -> tuple[Any, nn.Module]:
    """Load a run for scoring; return the task and the model.

    `options` is a class of data options; their values come from the recipe.
    """
    places = {field.name: recipe[field.name] for field in fields(options) if field.name in recipe}
    return task.for_evaluation(task.EvalOptions(**places, checkpoint=str(run)))[:2]


def check_half(run: Path, metric: str, trained: float, stored: float, allowed: float) -> None:
    """Raise ValueError if float16 changes a score by more than `allowed`."""
    if abs(stored - trained) > allowed:
        raise ValueError(
            f"{run} has the {metric} {trained:.3f}, and {stored:.3f} in float16: weights/ takes only models that "
            f"keep their {metric} within {allowed:.3f}"
        )


def same_by_name(task: Classification, model: nn.Module) -> bool:
    """Return whether the model gives the same outputs if it is built by its name alone."""
    channels, size = task.data.in_chans, task.data.size
    other = create_model(task.options.model, num_classes=len(task.data.classes), in_chans=channels, img_size=size)
    theirs, ours = ({name: t.shape for name, t in each.state_dict().items()} for each in (other, model))
    if theirs != ours:
        return False
    other.load_state_dict(model.state_dict())
    images = torch.randn(8, channels, size, size)
    with torch.no_grad():
        return torch.equal(*(each.eval()(images) for each in (model, other)))


if __name__ == "__main__":
    main()
