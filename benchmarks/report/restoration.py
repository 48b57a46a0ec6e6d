"""Make the tables of docs/restoration.md from results/ and the cards in weights/."""

import json

from benchmarks.markdown import table, wrap
from benchmarks.measure import restoration_memory
from benchmarks.measure.restoration import FILE, SIDE
from benchmarks.weight_cards import load_cards
from metamix.utils.text import plural, short_count

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
