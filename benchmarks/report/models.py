"""Writes the model tables of the README, between its markers: parameters and MACs of every registered name, and the
weights that ship, from their cards.

    python benchmarks/model_table.py            rewrite README.md
    python benchmarks/model_table.py --check    exit 1 where README.md is stale, and write nothing
"""

import json
import sys

import timm

import metamix
from benchmarks.measure.timing import table
from benchmarks.report.markers import refresh
from metamix.models import count_macs
from metamix.models.weights import weights_dir

SIZES = ("nano", "s12", "s24", "s36", "m36", "m48")
# Where a family comes from, whether its spatial weights belong to one size, and what the suite holds it against.
FAMILIES = (
    ("raftmlp_*", "2108.04384", "resized", "authors' tensors, counts"),
    ("wavemix_*", "2205.14375", "any", "authors' tensors, counts"),
    ("wavemixlite_*", "2205.14375", "any", "published counts"),
    ("ninformer_*", "2403.02411", "resized", "author's tensors, count"),
    ("minattn_*", "2410.13732", "any", "a third party's tensors, counts"),
)


def cost(name: str) -> tuple[str, str, str]:
    """(parameters, MACs at the native size, native size) in words."""
    model = timm.create_model(name, device="meta")
    size = model.default_cfg["input_size"]
    parameters, macs = sum(p.numel() for p in model.parameters()), count_macs(model, size)
    return short(parameters), short(macs), f"{size[1]}"


def short(number: float) -> str:
    """Three digits: 1.37 M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return str(number)


def tables() -> str:
    family = []
    for mixer in metamix.list_mixers():
        costs = [cost(f"metaformer_{mixer}_{size}") for size in SIZES]
        family.append([mixer, *(f"{parameters}, {macs}" for parameters, macs, _ in costs)])
    papers = [
        [f"`{name}`", *cost(name), sizes, source, against]
        for pattern, source, sizes, against in FAMILIES
        for name in timm.list_models(pattern)
    ]
    cards = [json.loads(path.read_text()) for path in sorted(weights_dir().glob("*.json"))]
    weights = [
        [f"[`{card['name']}`](weights/{card['name']}.md)", f"{card['top1']:.2f}", card["recipe"]["epochs"]]
        for card in cards
    ]
    return "\n\n".join(
        [
            "Parameters and multiply-adds of `metaformer_<mixer>_<size>`, at 32 pixels for nano and at 224 for the "
            "others:",
            table(["mixer", *SIZES], family),
            "`metaformer_pooling_s12` to `_m48` are PoolFormer's (2111.11418), held against its authors' tensors and "
            "counts, and `pretrained=True` downloads its weights (tag `sail_in1k`); the others are this zoo's, their "
            "mixers held against the papers' formulas. Other sizes: see the mixers above.",
            "The papers' own models:",
            table(["name", "parameters", "MACs", "pixels", "other sizes", "arXiv", "held against"], papers),
            "Weights that ship, loaded by `timm.create_model(name, pretrained=True)` without a network:",
            table(["name", "test accuracy, %", "epochs"], weights),
        ]
    )


if __name__ == "__main__":
    refresh("models", "model_table.py", tables(), check="--check" in sys.argv[1:])
