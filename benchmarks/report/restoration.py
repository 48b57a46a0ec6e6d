"""Make the pages of the restoration weights, and the tables of docs/restoration.md from results/."""

import json

from huggingface_hub import EvalResult, ModelCardData  # installed with timm

from benchmarks.markdown import table, wrap
from benchmarks.measure import restoration_memory
from benchmarks.measure.restoration import FILE, SIDE
from benchmarks.report.models import arxiv_link, image_arxiv_of
from benchmarks.weight_cards import commit_in_words, load_cards, model_of
from metamix.utils.text import plural, short_count

JOBS = {
    "noise": "removes Gaussian noise of sigma {value} from {colour} images",
    "downscale": "enlarges images {value} times; it takes the luminance, and the colours are only upsampled",
    "jpeg": "removes artifacts of JPEG of quality {value} from {colour} images",
}
COLOURS = {"rgb": "colour", "grey": "grey", "y": "luminance"}
NAMES = {"bsd68": "BSD68", "set12": "Set12", "set5/hr": "Set5", "set14": "Set14"}
# Means over the images as the papers print them. Their PSNR may differ in rounding.
REFERENCES = {
    "bsd68": "BM3D 28.57, DnCNN-S 29.23",
    "set12": "BM3D 29.97, DnCNN-S 30.43",
    "set5/hr": "bicubic 33.66, SRCNN 36.66, VDSR 37.53",
    "set14": "bicubic 30.24, SRCNN 32.45, VDSR 33.03",
}


def scores_table() -> str:
    """Make the table of scores by weights and set, with what was compared."""
    rows, cards = json.loads(FILE.read_text())["rows"], {card["name"]: card for card in load_cards(task="restoration")}
    scored = [row for row in rows if row["set"] in NAMES]
    cells = [
        [
            f"`{row['name']}`",
            NAMES[row["set"]],
            f"{row['input_psnr']:.2f}",
            f"{row['psnr']:.2f}",
            f"{row['psnr_x8']:.2f}" if "psnr_x8" in row else "",
            f"{row['ssim']:.4f}",
            REFERENCES[row["set"]],
        ]
        for row in scored
    ]
    cells += [
        [
            f"`{name}`",
            card["test_data"],
            f"{card['input_psnr']:.2f}",
            f"{card['psnr']:.2f}",
            "",
            f"{card['ssim']:.4f}",
            "",
        ]
        for name, card in cards.items()
        if name not in {row["name"] for row in scored}
    ]
    header = ["weights", "images", "PSNR of the input", "PSNR", "PSNR, x8 ensemble", "SSIM", "published PSNR"]
    names: dict[str, list[str]] = {}
    for row in scored:
        names.setdefault(row["measured"], []).append(NAMES[row["set"]])
    notes = [f"{', '.join(dict.fromkeys(sets))}: {measured}." for measured, sets in names.items()]
    note = f"{' '.join(notes)} Published numbers: BM3D and DnCNN (arXiv 1608.03981), SRCNN and VDSR (1511.04587)."
    return f"{table(header, cells)}\n\n{wrap(note)}"


def cost_table() -> str:
    """Make the table of sizes and costs."""
    found = json.loads(FILE.read_text())
    ms = {row["name"]: row["ms"] for row in found["rows"] if row["set"] == "speed"}
    cells = [
        [
            f"`{card['name']}`",
            short_count(card["parameters"]),
            f"{per_pixel(card) / 1000:.0f} k",
            f"{ms[card['name']]:.0f}" if card["name"] in ms else "not measured",
            f"{card['seconds'] / 60:.0f}",
        ]
        for card in load_cards(task="restoration")
    ]
    result = f"ms for a result of {SIDE} x {SIDE}"
    header = ["weights", "parameters", "multiply-adds per pixel of the result", result, "minutes of training"]
    note = f"Inference in float32 on {cpu(found['machine'])}."
    return f"{table(header, cells)}\n\n{wrap(note)}"


def memory_table() -> str:
    """Make the table of time and memory by image size."""
    found = json.loads(restoration_memory.FILE.read_text())
    cells = [
        [
            f"`{row['model']}`",
            f"{row['width']:,} x {row['height']:,}",
            f"of {row['tile']}" if row["tile"] else "none",
            f"{row['seconds']:,.2f}" if row["seconds"] < 10 else f"{row['seconds']:,.0f}",
            f"{1e6 * row['seconds'] / (row['width'] * row['height']):.2f}",
            f"{row['adds_mib']:,}",
        ]
        for row in found["rows"]
    ]
    header = ["model", "pixels of the input", "tiles", "seconds", "microseconds a pixel", "memory, MiB"]
    note = f"One image in float32 on {cpu(found['machine'])}. Memory: what the pass adds to torch, weights and image."
    return f"{table(header, cells)}\n\n{wrap(note)}"


def cpu(machine: dict) -> str:
    """Name the processor and the number of threads."""
    return f"{plural(machine['threads'], 'thread')} of an {machine['cpu']}"


def per_pixel(card: dict) -> float:
    """Return the multiply-adds for each pixel of the restored image."""
    return card["macs"] / card["crop"] ** 2


def page(card: dict, command: str) -> str:
    """Make the page of a card: header and text.

    Args:
        command: that trained the weights, as an indented block.
    """
    name, arxiv = card["name"], image_arxiv_of(model_of(card))
    kind, _, value = card["degradation"].partition(":")
    job = JOBS[kind].format(value=value.replace("-", " to "), colour=COLOURS[card["channels"]])
    weights = {"ema": "the moving average of the weights", "last": "the weights of the last step"}[card["weights"]]
    rows = [
        ("PSNR", f"{card['psnr']:.2f} dB, mean over {card['test_data']}, with {weights}"),
        ("SSIM", f"{card['ssim']:.4f}"),
        ("of the input", f"PSNR {card['input_psnr']:.2f} dB, SSIM {card['input_ssim']:.4f}"),
        ("compared", card["measured"]),
        ("parameters", f"{card['parameters']:,}, stored as {card['stored_as']}"),
        ("float16", f"changes the PSNR by {card['float16_changes_psnr']:.5f} dB"),
        ("multiply-adds", f"{per_pixel(card):,.0f} for each pixel of the result"),
        ("training", f"{card['seconds'] / 60:.0f} minutes"),
        ("versions", ", ".join(f"{package} {version}" for package, version in card["versions"].items())),
        ("commit", commit_in_words(card["commit"])),
        ("license", "Apache-2.0 for these weights; the photographs have their own terms"),
    ]
    intro = f"{model_of(card)} (arXiv {arxiv_link(arxiv)}) {job}. Trained on {card['data']}."
    takes = f"The model takes images (B, {card['in_chans']}, H, W) of any size, with values from 0 to 1"
    if card["enlarge"] > 1:
        takes += f", enlarged {card['enlarge']} times: `predict` does that, `metamix.restoration.inference.enlarge` too"
    limits = [
        *card["limits"],
        *["It takes grey files only: `predict` leaves out those in colour."] * (card["channels"] == "grey"),
        "It knows only this degradation. Other noise, blur or compression of real photographs is another job.",
        "One seed was trained.",
    ]
    return f"""---
{header(card, arxiv)}
---

# {name}

{wrap(intro)}

## Use

    metamix predict photos --task restoration --model {name} --pretrained --output restored

```python
import metamix

model = metamix.create_image_model("{name}", pretrained=True).eval()
```

{wrap(takes + ".")}

## Results

| | |
|---|---|
{chr(10).join(f"| {key} | {value} |" for key, value in rows)}

## Recipe

From a clone of metamix:

{command}

## Limits

{chr(10).join(f"- {line}" for line in limits)}
"""


def header(card: dict, arxiv: str) -> str:
    """Make the YAML block that Hugging Face reads, without its fences."""
    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type=card["name"].partition(".")[2],
            dataset_name=card["test_data"],
            dataset_split="test",
            metric_type=metric,
            metric_name=metric.upper(),
            metric_value=card[metric],
        )
        for metric in ("psnr", "ssim")
    ]
    return ModelCardData(
        license=card["license"],
        library_name="metamix",
        tags=["image-to-image", "metamix", f"arxiv:{arxiv}"],
        metrics=["psnr", "ssim"],
        model_name=card["name"],
        eval_results=results,
    ).to_yaml()
