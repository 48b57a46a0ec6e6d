"""Write a page for each card in weights/, beside it, in the format of Hugging Face's model cards.

    python -m benchmarks.report.cards            write weights/<name>.<tag>.md for every card
    python -m benchmarks.report.cards --check    write nothing; exit with 1 if a page is stale, missing or has no card

To change a page, edit its card and run this again. Edits to the page itself are overwritten.
"""

import argparse
import re
import shlex
import statistics
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData  # installed with timm

from benchmarks.markdown import wrap
from benchmarks.measure.accuracy import IMAGE_SIZES
from benchmarks.paths import ROOT, read_json
from benchmarks.report.models import arxiv_link, arxiv_of, image_arxiv_of
from benchmarks.report.tasks import per_pixel
from benchmarks.weight_cards import commit_in_words, image_size, load_cards, model_of, standard_error
from metamix.tasks.registry import find_task
from metamix.training.recipe import RecipeReader
from metamix.utils.options import read_yaml
from metamix.utils.text import short_count
from metamix.weights.find import weights_dir

CONFIGS = ROOT / "configs"
JOBS = {
    "noise": "removes Gaussian noise of sigma {value} from {colour} images",
    "downscale": "enlarges images {value} times; it restores the luminance, and the colours are only upsampled",
    "jpeg": "removes artifacts of JPEG compression at quality {value} from {colour} images",
}
COLOURS = {"rgb": "colour", "grey": "grey", "y": "luminance"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 unless all pages are current")
    if parser.parse_args(argv).check:
        if names := stale():
            raise SystemExit(f"error: run `python -m benchmarks.report.cards` for the stale pages {', '.join(names)}")
        return
    fresh = pages()
    for path in set(weights_dir().glob("*.*.md")) - fresh.keys():
        path.unlink()  # its card was deleted
    for path, text in fresh.items():
        path.write_text(text)
    print(f"{len(fresh)} pages written to {weights_dir()}")


def pages() -> dict[Path, str]:
    """Make the pages of all cards."""
    cards = [*load_cards(), *load_cards(task="restoration")]
    return {weights_dir() / f"{card['name']}.md": page(card) for card in cards}


def stale() -> list[str]:
    """List the pages that differ from their cards, are missing, or have no card."""
    fresh, there = pages(), {path: path.read_text() for path in weights_dir().glob("*.*.md")}
    return sorted(path.name for path in fresh.keys() | there.keys() if fresh.get(path) != there.get(path))


def page(card: dict) -> str:
    """Make the page of a card: header and text."""
    parts = {"classification": classifier, "restoration": restorer}[card["task"]](card)
    rows = [
        *parts["rows"],
        ("versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
        ("commit", commit_in_words(card["commit"])),
        ("license", f"{card['license'].capitalize()} for these weights; the {parts['owned']} have their own terms"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    limits = [textwrap.fill(line, 120, initial_indent="- ", subsequent_indent="  ") for line in parts["limits"]]
    return f"""---
{header(card, parts)}
---

# {card["name"]}

{wrap(parts["intro"])}

## Use

{parts["use"]}

## Results

| | |
|---|---|
{table}

## Recipe

From a clone of metamix:

{command(card)}{parts["test"]}

## Limits

{chr(10).join(limits)}
"""


def header(card: dict, parts: dict) -> str:
    """Make the YAML block that Hugging Face reads, without its fences."""
    results = [
        EvalResult(
            task_type=parts["kind"],
            dataset_type=slug(parts["scored_on"]),
            dataset_name=parts["scored_on"],
            dataset_split=split_of(card),
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )
        for metric, name, value in parts["scores"]
    ]
    return ModelCardData(
        license=card["license"],
        library_name=parts["library"],
        tags=[parts["kind"], "metamix", f"arxiv:{parts['arxiv']}"],
        datasets=parts["datasets"],
        metrics=[metric for metric, *_ in parts["scores"]],
        model_name=card["name"],
        eval_results=results,
    ).to_yaml()


def slug(data: str) -> str:
    """Return the name of a data set in lower case, with hyphens: "CIFAR-10, JPEG copy" becomes "cifar-10"."""
    return data.partition(",")[0].replace(" ", "-").lower()


def classifier(card: dict) -> dict[str, Any]:
    """Return the content of the page of a classifier."""
    name, model, cfg = card["name"], model_of(card), card["pretrained_cfg"]
    mode, colour = ("L", "grey") if cfg["input_size"][0] == 1 else ("RGB", "colour")
    what, arxiv = describe(model)
    test = [f"--model {model}", f"--checkpoint weights/{name}.safetensors", f"--data {card['recipe']['data']}"]
    split = split_of(card)
    first = card["recipe"]["checkpoint"] or card["recipe"]["teacher_checkpoint"]
    start = f"\n\ndocs/transfer.md has the command that made `{first}`." if first else ""
    return {
        "kind": "image-classification",
        "library": "timm",
        "arxiv": arxiv,
        "datasets": [slug(card["data"])],
        "scored_on": card["data"],
        "scores": [("accuracy", "top-1 accuracy, %", card["top1"])],
        "owned": "data",
        "intro": f"An image classifier: {what} (arXiv {arxiv_link(arxiv)}), trained at {image_size(card)} pixels on "
        f"{card['data']}: {card['samples']['train']:,} {colour} images in {cfg['num_classes']} classes.",
        "use": f"""```python
import metamix, timm

model = timm.create_model("{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def classify(image):  # a PIL image
    scores = model(transform(image.convert("{mode}"))[None])
    return model.pretrained_cfg["label_names"][scores.argmax()]
```

`num_classes=N` gives a new head for fine-tuning, and `features_only=True` gives the feature maps.""",
        "rows": [
            (
                f"{split} accuracy",
                f"{card['top1']:.2f} % of {card['samples']['test']:,} images, with {kind_of_weights(card)}",
            ),
            *size_rows(card),
            ("accuracy over seeds", seeds_in_words(card["seeds"])),
            ("parameters", f"{card['parameters']:,}, stored as {card['stored_as']}"),
            ("multiply-adds", f"{short_count(card['macs'])} for one image of {image_size(card)}"),
            *cost_rows(card),
        ],
        "test": f"""

Training scored the {split} split once, at its end. The accuracy above was measured with the stored weights, in float32:

{command_block("python eval.py", *test, *data_dir(card), "--amp none")}{start}""",
        "limits": limits(card),
    }


def restorer(card: dict) -> dict[str, Any]:
    """Return the content of the page of an image restoration model."""
    name, arxiv = card["name"], image_arxiv_of(model_of(card))
    kind, _, value = card["degradation"].partition(":")
    job = JOBS[kind].format(value=value.replace("-", " to "), colour=COLOURS[card["channels"]])
    takes = f"The model takes images (B, {card['in_chans']}, H, W) of any size, with values from 0 to 1"
    if (times := card["enlarge"]) > 1:
        takes += f". Enlarge them {times} times with `metamix.restoration.inference.enlarge`; `predict` does so itself"
    return {
        "kind": "image-to-image",
        "library": "metamix",
        "arxiv": arxiv,
        "datasets": None,
        "scored_on": card["test_data"],
        "scores": [(metric, metric.upper(), card[metric]) for metric in ("psnr", "ssim")],
        "owned": "photographs",
        "intro": f"{model_of(card)} (arXiv {arxiv_link(arxiv)}) {job}. It was trained on {card['data']}.",
        "use": f"""    metamix predict photos --task restoration --model {name} --pretrained --output restored

```python
import metamix

model = metamix.create_image_model("{name}", pretrained=True).eval()
```

{wrap(takes + ".")}""",
        "rows": [
            ("PSNR", f"{card['psnr']:.2f} dB, mean over {card['test_data']}, with {kind_of_weights(card)}"),
            ("SSIM", f"{card['ssim']:.4f}"),
            ("before restoration", f"PSNR {card['input_psnr']:.2f} dB, SSIM {card['input_ssim']:.4f}"),
            ("measured", card["measured"]),
            ("parameters", f"{card['parameters']:,}, stored as {card['stored_as']}"),
            ("float16", f"changes the PSNR by {card['float16_changes_psnr']:.5f} dB"),
            ("multiply-adds", f"{per_pixel(card):,.0f} for each pixel of the result"),
            ("training", f"{card['seconds'] / 60:.0f} minutes"),
        ],
        "test": "",
        "limits": [
            *card["limits"],
            *["The model takes only grey images: `predict` leaves out colour images."] * (card["channels"] == "grey"),
            "The model was trained for this degradation only, and does not remove other noise, blur or compression.",
            "Only one seed was used.",
        ],
    }


def split_of(card: dict) -> str:
    """Return the name of the scored split: validation for Tiny-ImageNet, whose test images have no public labels."""
    return "validation" if card["recipe"].get("data") == "tiny_imagenet" else "test"


def size_rows(card: dict) -> list[tuple[str, str]]:
    """Return the row with the accuracy of models made for images of other sizes, if that was measured."""
    name, tag = card["name"], card["name"].partition(".")[2]
    sizes = read_json(IMAGE_SIZES).get(tag, {"sizes": {}})["sizes"].get(name, {"made": {}})["made"]
    side = str(card["pretrained_cfg"]["input_size"][1])
    others = ", ".join(f"{top1:.1f} % at {size} pixels" for size, top1 in sizes.items() if size != side)
    return [("with another `img_size`", others)] if others else []


def kind_of_weights(card: dict) -> str:
    """Say whether the card describes the moving average of the weights or the weights of the last step."""
    return {"ema": "the moving average of the weights", "last": "the weights of the last step"}[card["weights"]]


def describe(model: str) -> tuple[str, str]:
    """Return a description of the model and the arXiv number of its paper."""
    if match := re.fullmatch(r"metaformer_([a-z]+)_(\w+)", model):
        mixer, size = match.groups()
        text = import_module(f"metamix.mixers.{mixer}").__doc__
        return f"the MetaFormer skeleton of size {size} with the mixer `{mixer}`", re.search(r"\d{4}\.\d{5}", text)[0]
    return f"`{model}`", arxiv_of(model)


def seeds_in_words(seeds: dict[str, float]) -> str:
    """Describe the mean and the standard deviation of the accuracy over the seeds."""
    if len(seeds) == 1:
        return "unknown; only one seed was used"
    mean, deviation = statistics.mean(seeds.values()), statistics.stdev(seeds.values())
    return f"{mean:.2f} ± {deviation:.2f} %, mean and standard deviation of seeds {', '.join(seeds)}"


def cost_rows(card: dict) -> list[tuple[str, str]]:
    if "cost" not in card:
        return [("speed", "not measured")]
    cost = card["cost"]
    where = f"{cost['cpu']}, {cost['threads']} threads, {cost['precision']}, batches of {cost['batch_size']}"
    rows = []
    for mode, key in (("training", "train"), ("inference", "infer")):
        speed, memory = f"{cost[f'{key}_img_per_s']:,.0f} img/s", f"{cost[f'{key}_mib']:,} MiB of memory"
        rows.append((mode, f"{speed}, {memory} in addition to torch and the model ({where})"))
    return rows


def limits(card: dict) -> list[str]:
    """List what the model cannot do and what its accuracy does not show."""
    classes, n = card["pretrained_cfg"]["label_names"], card["samples"]["test"]
    lines = [
        *card.get("limits", ()),
        f"The model has {len(classes)} classes: {', '.join(classes)}.",
        f"With {n:,} {split_of(card)} images, two standard errors of the accuracy are "
        f"{2 * standard_error(card['top1'], n):.2f} points. The error of a difference between two models is larger.",
        "The model was tested on images like its training images, not on corrupted images or images from other "
        "sources.",
    ]
    if len(card["seeds"]) == 1:
        lines.append("Only one seed was used, so the spread over seeds is unknown.")
    return lines


def command(card: dict) -> str:
    """Make the training command of a card: the nearest recipe of configs/ and the options that differ."""
    candidates = {
        path: {key: value for key, value in card["recipe"].items() if value != recipe.get(key)}
        for path, recipe in read_recipes(card["task"]).items()
    }
    path, changes = min(candidates.items(), key=lambda candidate: len(candidate[1]))
    flags = [f"--config {path.relative_to(CONFIGS.parent)}", *(flag(key, value) for key, value in changes.items())]
    return command_block("python train.py", *flags, *data_dir(card))


@cache
def read_recipes(task: str) -> dict[Path, dict]:
    """Return all options of each recipe in configs/ for a task."""
    options, recipes = find_task(task).part("task").Options, {}
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if read_yaml(path).get("task", "classification") == task:
            reader = RecipeReader([task], lambda name: options, lambda values: task)
            recipes[path] = reader.read(path, None, {}).flat()
    return recipes


def data_dir(card: dict) -> list[str]:
    if card["task"] == "restoration":
        return []  # the recipe names the folders
    return [] if card["recipe"]["data"] == "digits" else ["--data-dir DIR"]


def flag(key: str, value) -> str:
    """Format an option for the command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, dict):
        value = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    return f"--{name} {shlex.quote('none' if value is None else str(value))}"


def command_block(*parts: str) -> str:
    """Format a command as an indented block, with line breaks between its parts."""
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) > 108:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(f"    {line}" for line in lines)


if __name__ == "__main__":
    main()
