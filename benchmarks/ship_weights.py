"""Puts a trained model into weights/: the tensors at 16 bits, and a card that says how they came about.

    python benchmarks/ship.py RUN --tag digits --spread RUN RUN RUN
    python benchmarks/ship.py RUN --tag cifar10 --data-name "CIFAR-10, JPEG copy" --spread SHORT SHORT SHORT
    python benchmarks/ship.py weights/NAME.TAG.json --spread SHORT SHORT SHORT        of a weight that ships already

RUN is the folder of the run whose weights ship. The spread is that of the runs named after it, one recipe with several
seeds; they may be shorter than RUN, and the card says in what they differ from it.

The tensors are stored in float16 where that moves the test accuracy by less than a tenth of its standard error, else in
float32; the accuracy on the card is the stored tensors', computed in float32. Speed and memory come later, from
`python benchmarks/compare.py --tag TAG --measure`, and the page from `python benchmarks/model_cards.py`. The card keeps
the run's learning curve, so that it can be drawn when the run's folder is gone.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.report.cards import standard_error
from metamix.classification.load import create_model
from metamix.classification.task import Classification, ClassificationOptions
from metamix.models.timm_interface import shapes
from metamix.models.weights import weights_dir
from metamix.training.evaluation import evaluate
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import EngineOptions
from metamix.utils.files import write_text
from metamix.utils.tensor_files import load_weights, save_weights
from metamix.utils.text import exit_with_message

# Where and how a run went, and not what was trained.
NOT_IN_CARD = {
    field.name
    for options in (EngineOptions, ClassificationOptions)
    for field in fields(options)
    if field.metadata["on_resume"] == "free"
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "run",
        type=Path,
        help="folder of a finished run of train.py, whose weights ship; or a card, to give it a spread",
    )
    parser.add_argument("--tag", help="what the weight was trained on, such as digits or cifar10")
    parser.add_argument("--data-name", help="the data's name on the card; needed where they lie in a folder")
    parser.add_argument(
        "--spread",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="runs that differ from each other in their seed alone",
    )
    args = parser.parse_args(argv)
    of_card = args.run.suffix == ".json"
    if of_card and (args.tag or args.data_name or not args.spread):
        parser.error(f"{args.run} is a card, which has its tag and data: give --spread RUN RUN ... alone")
    if not of_card and not args.tag:
        parser.error("give --tag, what the weight was trained on, such as digits or cifar10")
    with exit_with_message(ValueError, OSError):
        if of_card:
            print(add_spread(args.run, args.spread))
        else:
            print(ship(args.run, args.tag, args.data_name, args.spread))


def ship(run: Path, tag: str, data_name: str | None, spread: Sequence[Path]) -> str:
    """Writes the weight and the card of `run`; returns what was written, in one line."""
    summary, recipe = read_run(run)
    if recipe["task"] != "classification":
        raise ValueError(
            f"{run} is a run of --task {recipe['task']}: give one of --task classification, which can ship"
        )
    if recipe["data"] == "folder" and not data_name:
        raise ValueError(
            f"{run} was trained on a folder, {summary['data']!r}: give --data-name with the name that the card is to "
            f"print, such as 'CIFAR-10, JPEG copy'"
        )
    seeds = measure_spread(run, spread or [run])
    tensors, about = load_weights(run)
    options = {key: value for key, value in recipe.items() if key in ClassificationOptions.__dataclass_fields__}
    options |= {"mean": about["mean"], "std": about["std"]}  # or they would be counted again, over all of train
    task = Classification(ClassificationOptions(**options))
    if not same_by_name(task, tensors):
        raise ValueError(
            f"{run} has model_args {recipe['model_args']}, and a weight must load by its model's name alone: register "
            f"the model under a name of its own"
        )
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    accuracy, stored = score(task, tensors), score(task, half)
    allowed = standard_error(accuracy, about["samples"]["test"]) / 10
    kept, dtype = (half, "float16") if abs(stored - accuracy) <= allowed else (tensors, "float32")
    card = {
        "name": f"{about['model'].partition('.')[0]}.{tag}",
        "task": about["task"],
        "data": data_name or about["data"],
        "samples": about["samples"],
        "top1": round(stored if kept is half else accuracy, 2),
        "spread": seeds,
        "weights": about["weights"],
        "stored_as": dtype,
        "parameters": about["parameters"],
        "macs": about["macs"],
        "curve": read_curve(run, about["weights"]),
        "recipe": {key: value for key, value in recipe.items() if key not in NOT_IN_CARD},
        "versions": summary["versions"],
        "commit": summary["commit"],
        "license": "apache-2.0",
        "pretrained_cfg": {
            "input_size": [about["in_chans"], about["img_size"], about["img_size"]],
            "num_classes": about["num_classes"],
            "label_names": about["classes"],
            "mean": about["mean"],
            "std": about["std"],
            "interpolation": about["interpolation"],
            "crop_pct": about["crop_pct"],
        },
    }
    path = weights_dir() / f"{card['name']}.safetensors"
    page = path.with_suffix(".json")
    if page.exists() and (cost := json.loads(page.read_text()).get("cost")):
        card["cost"] = cost  # of the model, whichever weights it has
    save_weights(path, kept, about | {"top1": card["top1"]})
    write_text(page, json.dumps(card, indent=1) + "\n")
    return f"{path.name}: top1 {card['top1']:.2f}, {dtype}, {path.stat().st_size / 1e6:.2f} MB"


def add_spread(page: Path, spread: Sequence[Path]) -> str:
    """Writes the spread of these runs into a card; returns what was written, in one line."""
    card = json.loads(page.read_text())
    card["spread"] = measure_spread(page, spread)
    write_text(page, json.dumps(card, indent=1) + "\n")
    return f"{page.name}: top1 {', '.join(f'{top1:.2f}' for top1 in card['spread']['top1'])} over seeds"


def read_run(run: Path) -> tuple[dict, dict]:
    """(summary, recipe) of a finished run of train.py, or of one that a card tells of."""
    if run.suffix == ".json":
        card = json.loads(run.read_text())
        return card, card["recipe"]
    if not (run / "summary.json").is_file():
        raise ValueError(f"{run} has no summary.json: give the folder of a run of train.py that went to its end")
    return json.loads((run / "summary.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())


def read_curve(run: Path, weights: str) -> dict[str, list[float | None]]:
    """Training loss and held-out accuracy in percent after each epoch; None where an epoch was not scored."""
    column = "holdout_ema_top1" if weights == "ema" else "holdout_top1"
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row[column]) if row.get(column) else None for row in rows]
    return {"train_loss": [float(row["train_loss"]) for row in rows], "holdout_top1": scores}


def measure_spread(run: Path, spread: Sequence[Path]) -> dict:
    """Accuracy over the seeds of `spread`, and `changed`: the options in which those runs differ from `run`.

    ValueError where they differ among themselves in more than their seed, repeat one, or train something else.
    """
    summaries, recipes = zip(*map(read_run, spread))
    main = read_run(run)[1]
    for folder, recipe in zip(spread, recipes):
        if more := sorted(differences(recipes[0], recipe)):
            raise ValueError(
                f"{spread[0]} and {folder} differ in more than their seed ({', '.join(more)}): the spread is that of "
                f"one recipe"
            )
    changed = differences(main, recipes[0])
    if other := sorted(changed.keys() & {"task", "model", "model_args", "data"}):
        raise ValueError(
            f"{spread[0]} differs from {run} in {', '.join(other)}: the spread is that of one model and data"
        )
    seeds = [recipe["seed"] for recipe in recipes]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs of the spread have the seeds {seeds}: each must have its own")
    top1 = [summary["top1"] for summary in summaries]
    return {
        "seeds": seeds,
        "top1": top1,
        **({"mean": round(statistics.mean(top1), 2), "std": round(statistics.stdev(top1), 2)} if len(top1) > 1 else {}),
        "epochs": recipes[0]["epochs"],
        "changed": changed,
    }


def differences(recipe: dict, other: dict) -> dict:
    """The options that `other` has otherwise than `recipe`, with its values; not the seed, nor where it ran."""
    return {
        key: value for key, value in other.items() if key not in NOT_IN_CARD | {"seed"} and value != recipe.get(key)
    }


def score(task: Classification, tensors: dict[str, torch.Tensor]) -> float:
    """Top-1 on the test split, in percent, of the task's model with these tensors."""
    model = new_model(task, **task.options.model_args)
    model.load_state_dict(tensors)
    model.to(memory_format=torch.channels_last)
    loader = task.data.eval_loaders(256, 0, 1)["test"]
    return evaluate(task.metric, model, loader, ProcessGroup.start("cpu"), None, torch.channels_last)[0]["top1"]


def new_model(task: Classification, **model_args) -> nn.Module:
    """The task's model with these arguments, for the task's images and classes."""
    shape = {"num_classes": len(task.data.classes), "in_chans": task.data.splits.in_chans, "img_size": task.data.size}
    return create_model(task.options.model, **shape, **model_args)


def same_by_name(task: Classification, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the task's model computes the same, with these tensors, where it is made by its name alone."""
    models = [new_model(task, **arguments).eval() for arguments in (task.options.model_args, {})]
    if shapes(models[0]) != shapes(models[1]):
        return False
    for model in models:
        model.load_state_dict(tensors)
    images = torch.randn(8, task.data.splits.in_chans, task.data.size, task.data.size)
    with torch.no_grad():
        return torch.equal(*(model(images) for model in models))


if __name__ == "__main__":
    main()
