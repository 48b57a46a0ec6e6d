"""Writes a page for each card in weights/, beside it, in the format of Hugging Face's model cards.

python benchmarks/model_cards.py            write weights/<name>.<tag>.md for every card
python benchmarks/model_cards.py --check    exit 1 where a page is stale, missing or of no card, and write nothing
"""

import json
import math
import re
import shlex
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData  # timm brings it

from benchmarks.paths import ROOT
from benchmarks.report.models import FAMILIES, short
from metamix.cli.tasks import find_task
from metamix.models.weights import weights_dir
from metamix.training.recipe import parse, read_yaml

CONFIGS = ROOT / "configs"


def main() -> None:
    if "--check" in sys.argv[1:]:
        sys.exit(f"stale, run `python benchmarks/model_cards.py`: {', '.join(stale())}" if stale() else 0)
    fresh = pages()
    for path in set(weights_dir().glob("*.*.md")) - fresh.keys():
        path.unlink()  # of a card that is gone
    for path, text in fresh.items():
        path.write_text(text)
    print(f"{len(fresh)} pages written to {weights_dir()}")


def pages() -> dict[Path, str]:
    return {weights_dir() / f"{card['name']}.md": page(card) for card in load_cards()}


def stale() -> list[str]:
    """Names of pages that are not what the cards say, are missing, or have no card."""
    fresh, there = pages(), {path: path.read_text() for path in weights_dir().glob("*.*.md")}
    return sorted(path.name for path in fresh.keys() | there.keys() if fresh.get(path) != there.get(path))


def load_cards(tag: str = "*") -> list[dict]:
    """The cards in weights/, all or those of one tag."""
    return [json.loads(path.read_text()) for path in sorted(weights_dir().glob(f"*.{tag}.json"))]


def page(card: dict) -> str:
    """Header and text of one card."""
    name, model, cfg = card["name"], card["recipe"]["model"], card["pretrained_cfg"]
    channels, height, width = cfg["input_size"]
    mode, colour = ("L", "grey") if channels == 1 else ("RGB", "colour")
    what, arxiv = source(model)
    intro = (
        f"An image classifier: {what} ([arXiv {arxiv}](https://arxiv.org/abs/{arxiv})), trained on {card['data']}: "
        f"{card['samples']['train']:,} {colour} images of {height}x{width} pixels in {cfg['num_classes']} classes. "
        f"Made with metamix, loaded through timm."
    )
    test = [
        "python eval.py",
        f"--model {model}",
        f"--checkpoint weights/{name}.safetensors",
        f"--data {card['recipe']['data']}",
    ]
    return f"""---
{header(card, arxiv)}
---

# {name}

{textwrap.fill(intro, 120, break_on_hyphens=False)}

## Use

```python
import metamix, timm

model = timm.create_model("{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def classify(image):  # a PIL image
    scores = model(transform(image.convert("{mode}"))[None])
    return model.pretrained_cfg["label_names"][scores.argmax()]
```

Images of other sizes are taken too, at less accuracy.
`num_classes=N` makes a new head for fine-tuning, `features_only=True` gives the maps.

## Numbers

| | |
|---|---|
{table(card)}

## Recipe

From a clone of metamix:

{command(card)}

The run scored the test split once, at its end. The accuracy above is that of the stored tensors, in float32:

{broken(*test, *data_dir(card), "--amp none")}

## Limits

{limits(card)}
"""


def header(card: dict, arxiv: str) -> str:
    """The YAML block that Hugging Face reads, without its fences."""
    tag = card["name"].split(".")[1]
    result = EvalResult(
        task_type="image-classification",
        dataset_type=tag,
        dataset_name=card["data"],
        dataset_split="test",
        metric_type="accuracy",
        metric_name="top-1 accuracy, %",
        metric_value=card["top1"],
    )
    return ModelCardData(
        license=card["license"],
        library_name="timm",
        tags=["image-classification", "metamix", f"arxiv:{arxiv}"],
        datasets=[tag],
        metrics=["accuracy"],
        model_name=card["name"],
        eval_results=[result],
    ).to_yaml()


def source(model: str) -> tuple[str, str]:
    """What the model is, in words, and the arXiv number of its paper."""
    if match := re.fullmatch(r"metaformer_(\w+)_(\w+)", model):
        mixer, size = match.groups()
        text = import_module(f"metamix.mixers.{mixer}").__doc__
        return f"the MetaFormer skeleton of size {size} with the mixer `{mixer}`", re.search(
            r"arXiv (\d{4}\.\d{5})", text
        )[1]
    return f"`{model}`", next(arxiv for pattern, arxiv, *_ in FAMILIES if re.match(pattern.replace("*", r"\w+"), model))


def table(card: dict) -> str:
    weights = {"ema": "the moving average of the weights", "last": "the last weights"}[card["weights"]]
    rows = [
        ("test accuracy", f"{card['top1']:.2f} % of {card['samples']['test']:,} images, with {weights}"),
        ("over seeds", in_words(card["spread"])),
        ("parameters", f"{card['parameters']:,}, stored as {card['stored_as']}"),
        (
            "multiply-adds",
            f"{short(card['macs'])} for one image of {'x'.join(map(str, card['pretrained_cfg']['input_size'][1:]))}",
        ),
        *cost_rows(card),
        ("made with", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
        ("commit", commit(card["commit"])),
        ("license", "Apache-2.0, for these weights; the data have terms of their own"),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def in_words(spread: dict) -> str:
    """Mean, deviation and seeds, and what was changed for those runs."""
    if "mean" not in spread:
        return "not known, one seed was trained"
    numbers = ", ".join(map(str, spread["seeds"]))
    seeds = f"{spread['mean']:.2f} ± {spread['std']:.2f} %, mean and standard deviation of seeds {numbers}"
    changed = ", ".join(f"{key} {value}" for key, value in spread["changed"].items())
    return f"{seeds}, in runs of their own with {changed}" if changed else seeds


def cost_rows(card: dict) -> list[tuple[str, str]]:
    if "cost" not in card:
        return [("speed", "not measured yet")]
    cost = card["cost"]
    where = f"{cost['cpu']}, {cost['threads']} threads, {cost['precision']}, batches of {cost['batch_size']}"
    return [
        (
            what,
            f"{cost[f'{key}_img_per_s']:,.0f} img/s, {cost[f'{key}_mib']:,} MiB beyond torch and the model ({where})",
        )
        for what, key in (("training", "train"), ("inference", "infer"))
    ]


def commit(commit: str | None) -> str:
    if commit is None:
        return "not known"
    return f"{commit.rstrip('+')}{' with uncommitted changes' if commit.endswith('+') else ''}"


def standard_error(top1: float, images: int) -> float:
    """Of an accuracy on a number of test images, both in percent, from that number alone."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def limits(card: dict) -> str:
    classes, test = card["pretrained_cfg"]["label_names"], card["samples"]["test"]
    lines = [
        f"It knows {len(classes)} classes and no other: {', '.join(classes)}.",
        f"The {test:,} test images leave the accuracy uncertain by {2 * standard_error(card['top1'], test):.2f} points "
        f"(two standard errors), and one image is {100 / test:.2g} points. Smaller differences between models say "
        f"nothing.",
        "It was tested on images like those that it was trained on, not on corrupted ones or on those of another "
        "origin. docs/results.md says how it does at other image sizes, where that was tried.",
    ]
    if "mean" not in card["spread"]:
        lines.append("One seed was trained, so how much luck is in its accuracy is not known.")
    elif card["spread"]["changed"]:
        lines.append("The deviation over seeds is that of other runs than the one that ships: see the table.")
    return "\n".join(textwrap.fill(line, 120, initial_indent="- ", subsequent_indent="  ") for line in lines)


def command(card: dict) -> str:
    """The command of train.py that has the card's recipe: the nearest of the recipes in configs/, and what differs."""
    task, candidates = card["task"], []
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if read_yaml(path).get("task", "classification") == task:
            words = ["--config", str(path)]
            known = parse(words, {task: lambda: find_task(task).Options}, default_task=task, description="").flat()
            changes = {key: value for key, value in card["recipe"].items() if value != known[key]}
            candidates.append((path.relative_to(CONFIGS.parent), changes))
    config, changes = min(candidates, key=lambda candidate: len(candidate[1]))
    flags = [f"--config {config}", *(flag(key, value) for key, value in changes.items())]
    return broken("python train.py", *flags, *data_dir(card))


def data_dir(card: dict) -> list[str]:
    return [] if card["recipe"]["data"] == "digits" else ["--data-dir DIR"]


def flag(key: str, value) -> str:
    """An option as it stands on the command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, dict):
        value = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    return f"--{name} {shlex.quote('none' if value is None else str(value))}"


def broken(*parts: str) -> str:
    """A command as an indented block, broken between its parts where a line would be too long."""
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) > 108:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(f"    {line}" for line in lines)


if __name__ == "__main__":
    main()
