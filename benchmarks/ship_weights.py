"""Add a trained model to weights/: its tensors, and a card that says how they were made.

    python -m benchmarks.ship_weights RUN --tag digits --spread RUN RUN RUN
    python -m benchmarks.ship_weights RUN --tag cifar10 --data-name "CIFAR-10, JPEG copy" --spread SHORT SHORT SHORT
    python -m benchmarks.ship_weights weights/NAME.TAG.json --spread SHORT SHORT SHORT

RUN is the folder of the run whose weights are shipped. `--spread` names runs of one recipe with different seeds; they
may be shorter than RUN, and the card says how they differ. The third form replaces the spread of weights that are
shipped already.

Tensors are stored in float16 if that changes the test accuracy by less than a tenth of its standard error, else in
float32. The accuracy on the card is that of the stored tensors, computed in float32. `benchmarks.measure.weights_speed`
adds speed and memory to the card, and `benchmarks.report.cards` makes its page. The card keeps the learning curve, so
the run folder is not needed afterwards.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.runs import differences, free_options, read_run
from benchmarks.scoring import score
from benchmarks.weight_cards import half, standard_error, write_card, write_weights
from metamix.classification.task import Classification, ClassificationOptions
from metamix.models.create import create_model
from metamix.models.timm_interface import shapes
from metamix.training.reports import read_metrics
from metamix.utils.text import exit_with_message
from metamix.weights.files import load_weights
from metamix.weights.find import weights_dir


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        help="folder of a finished run of train.py; or a card, to replace its spread",
    )
    parser.add_argument("--tag", help="short name of the data, such as digits or cifar10")
    parser.add_argument("--data-name", help="name of the data on the card; needed for --data folder")
    parser.add_argument(
        "--spread",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="runs of one recipe with different seeds",
    )
    args = parser.parse_args(argv)
    of_card = args.run.suffix == ".json"
    if of_card and (args.tag or args.data_name or not args.spread):
        parser.error(f"{args.run} is a card, which already has a tag and data: give only --spread RUN RUN ...")
    if not of_card and not args.tag:
        parser.error("give --tag, the short name of the data, such as digits or cifar10")
    with exit_with_message(ValueError, OSError):
        if of_card:
            print(add_spread(args.run, args.spread))
        else:
            print(ship(args.run, args.tag, args.data_name, args.spread))


def ship(run: Path, tag: str, data_name: str | None, spread: Sequence[Path]) -> str:
    """Write the weights and the card of a run.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: the run cannot be shipped.
    """
    summary, recipe = read_run(run)
    if recipe["task"] != "classification":
        raise ValueError(
            f"{run} is a run of --task {recipe['task']}: only runs of --task classification can be shipped"
        )
    if recipe["data"] == "folder" and not data_name:
        raise ValueError(
            f"{run} was trained on a folder, {summary['data']!r}: give --data-name with the name of the data, such as "
            f"'CIFAR-10, JPEG copy'"
        )
    seeds = measure_spread(run, spread or [run])
    tensors, about = load_weights(run)
    options = {key: value for key, value in recipe.items() if key in ClassificationOptions.__dataclass_fields__}
    options |= {"mean": about["mean"], "std": about["std"]}  # otherwise computed again, over all of train
    task = Classification(ClassificationOptions(**options))
    if not same_by_name(task, tensors):
        raise ValueError(
            f"{run} has model_args {recipe['model_args']}, but weights must load by the model's name alone: register "
            f"the model under a name of its own"
        )
    accuracy, stored = accuracy_of(task, tensors), accuracy_of(task, half(tensors))
    allowed = standard_error(accuracy, about["samples"]["test"]) / 10
    if is_half := abs(stored - accuracy) <= allowed:
        tensors, accuracy = half(tensors), stored
    card = {
        "name": f"{about['model'].partition('.')[0]}.{tag}",
        "task": about["task"],
        "data": data_name or about["data"],
        "samples": about["samples"],
        "top1": round(accuracy, 2),
        "spread": seeds,
        "weights": about["weights"],
        "stored_as": "float16" if is_half else "float32",
        "parameters": about["parameters"],
        "macs": about["macs"],
        "curve": read_curve(run, about["weights"]),
        "recipe": {key: value for key, value in recipe.items() if key not in free_options(recipe["task"])},
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
    replaced = weights_dir() / f"{card['name']}.json"
    if replaced.exists() and (cost := json.loads(replaced.read_text()).get("cost")):
        card["cost"] = cost  # does not depend on the weights
    return f"{write_weights(card, tensors, about | {'top1': card['top1']})}, top1 {card['top1']:.2f}"


def add_spread(card_path: Path, spread: Sequence[Path]) -> str:
    """Write the spread of these runs into a card, and return what was written in one line."""
    card = json.loads(card_path.read_text())
    card["spread"] = measure_spread(card_path, spread)
    write_card(card)
    return f"{card_path.name}: top1 {', '.join(f'{top1:.2f}' for top1 in card['spread']['top1'])} over seeds"


def read_curve(run: Path, weights: str) -> dict[str, list[float | None]]:
    """Read training loss and held-out accuracy in percent of each epoch; None for epochs that were not scored."""
    column = "holdout_ema_top1" if weights == "ema" else "holdout_top1"
    rows = read_metrics(run / "metrics.csv")
    scores = [float(row[column]) if row.get(column) else None for row in rows]
    return {"train_loss": [float(row["train_loss"]) for row in rows], "holdout_top1": scores}


def measure_spread(run: Path, spread: Sequence[Path]) -> dict:
    """Compute the spread of accuracy over seeds.

    Args:
        run: run folder or card that the spread belongs to.
        spread: runs of one recipe with different seeds.

    Returns:
        Seeds, accuracies, mean, standard deviation, epochs, and `changed`: the options in which those runs differ from
        `run`.

    Raises:
        ValueError: the runs differ in more than their seed, share a seed, or are of another model or data.
    """
    summaries, recipes = zip(*map(read_run, spread))
    main = read_run(run)[1]
    for folder, recipe in zip(spread, recipes):
        if more := sorted(differences(recipes[0], recipe)):
            raise ValueError(
                f"{spread[0]} and {folder} differ in more than their seed ({', '.join(more)}): the spread needs runs "
                f"of one recipe"
            )
    changed = differences(main, recipes[0])
    if other := sorted(changed.keys() & {"task", "model", "model_args", "data"}):
        raise ValueError(
            f"{spread[0]} differs from {run} in {', '.join(other)}: the spread needs the same model and data"
        )
    seeds = [recipe["seed"] for recipe in recipes]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs of the spread have the seeds {seeds}: each needs another seed")
    top1 = [summary["top1"] for summary in summaries]
    return {
        "seeds": seeds,
        "top1": top1,
        **({"mean": round(statistics.mean(top1), 2), "std": round(statistics.stdev(top1), 2)} if len(top1) > 1 else {}),
        "epochs": recipes[0]["epochs"],
        "changed": changed,
    }


def accuracy_of(task: Classification, tensors: dict[str, torch.Tensor]) -> float:
    """Return the top-1 accuracy on the test split, in percent, of the task's model with these tensors."""
    model = new_model(task, **task.options.model_args)
    model.load_state_dict(tensors)
    return score(task, model)[0]


def new_model(task: Classification, **model_args) -> nn.Module:
    """Build the task's model with these arguments, for the task's images and classes."""
    shape = {"num_classes": len(task.data.classes), "in_chans": task.data.splits.in_chans, "img_size": task.data.size}
    return create_model(task.options.model, **shape, **model_args)


def same_by_name(task: Classification, tensors: dict[str, torch.Tensor]) -> bool:
    """Check whether the model gives the same outputs when it is built only by its name."""
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
