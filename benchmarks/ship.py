"""Puts a trained model into weights/: the tensors at 16 bits, and a card that says how they came about.

    python benchmarks/ship.py RUN [RUN ...] --tag digits

The first run folder is shipped. All of them are the same recipe with other seeds, and make the spread on the card. The
tensors are stored in float16 where that leaves the test accuracy as it is to the printed digit, else in float32; the
accuracy on the card is the stored tensors', computed in float32.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import yaml

import metamix  # noqa: F401 - registers the models with timm
from metamix.models.build import weights_dir
from metamix.tasks import find_task
from metamix.tasks.classification import create_model
from metamix.training.checkpoint import load_weights, save_weights, write_text
from metamix.training.engine import evaluate
from metamix.training.ranks import Ranks

NOT_IN_CARD = ("output", "resume", "device", "dry_run", "tensorboard", "data_dir", "download", "workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of train.py, the one to ship first")
    parser.add_argument("--tag", required=True, help="what the weight was trained on, such as digits or cifar10")
    args = parser.parse_args()
    summaries = [json.loads((run / "summary.json").read_text()) for run in args.runs]
    if len({(s["model"], s["data"], s["epochs"]) for s in summaries}) > 1 or len({s["seed"] for s in summaries}) < len(summaries):
        raise SystemExit("error: the runs differ in more than their seed, or repeat one: give one model, data and length.")
    print(ship(args.runs[0], args.tag, summaries))


def ship(run: Path, tag: str, summaries: list[dict]) -> str:
    """Writes the weight and the card of `run`; returns what was written, in one line."""
    tensors, about = load_weights(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    accuracy, stored = score(recipe, tensors), score(recipe, half)
    kept, dtype = (half, "float16") if round(stored, 2) == round(accuracy, 2) else (tensors, "float32")
    top1 = [s["top1"] for s in summaries]
    card = {
        "name": f"{about['model']}.{tag}",
        "task": about["task"],
        "data": about["data"],
        "top1": round(accuracy, 2),
        "spread": {"seeds": [s["seed"] for s in summaries], "top1": top1}
        | ({"mean": round(statistics.mean(top1), 2), "std": round(statistics.stdev(top1), 2)} if len(top1) > 1 else {}),
        "weights": about["weights"],
        "stored_as": dtype,
        "parameters": about["parameters"],
        "macs": about["macs"],
        "train_img_per_s": summaries[0]["img_per_s"],
        "train_seconds": summaries[0]["seconds"],
        "recipe": {key: value for key, value in recipe.items() if key not in NOT_IN_CARD},
        "versions": summaries[0]["versions"],
        "commit": summaries[0]["commit"],
        "license": "apache-2.0",
        "pretrained_cfg": {
            "input_size": [about["in_chans"], about["img_size"], about["img_size"]],
            "num_classes": about["num_classes"],
            "label_names": about["classes"],
            "mean": about["mean"],
            "std": about["std"],
            "interpolation": about["interpolation"],
            "crop_pct": 1.0 if recipe["memory"] != "no" else about["crop_pct"],
        },
    }
    path = weights_dir() / f"{card['name']}.safetensors"
    save_weights(path, kept, about | {"top1": card["top1"]})
    write_text(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    return f"{path.name}: top1 {card['top1']:.2f}, {dtype}, {path.stat().st_size / 1e6:.2f} MB"


def score(recipe: dict, tensors: dict[str, torch.Tensor]) -> float:
    """Top-1 on the test split, in percent, of the recipe's model with these tensors."""
    task_class = find_task(recipe["task"])
    fields = task_class.Options.__dataclass_fields__
    task = task_class(task_class.Options(**{key: value for key, value in recipe.items() if key in fields}))
    shape = {"num_classes": len(task.classes), "in_chans": task.splits.in_chans, "img_size": task.size}
    model = create_model(recipe["model"], **shape, **recipe["model_args"])
    model.load_state_dict(tensors)
    model.to(memory_format=torch.channels_last)
    loader = task.eval_loaders(256, 0, 1)["test"]
    return evaluate(task, model, loader, Ranks.start("cpu"), None, torch.channels_last)[0]["top1"]


if __name__ == "__main__":
    main()
