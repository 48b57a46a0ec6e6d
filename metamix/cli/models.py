"""`metamix models`: list models by glob with their sizes, costs and weights, as a table or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import metamix
from metamix.models import ModelInfo
from metamix.utils.text import exit_with_message, short_count


def main(argv: Sequence[str]) -> None:
    """Print the models whose names match. Exits with a message where none does."""
    parser = argparse.ArgumentParser(prog="metamix models", description="List models with their sizes and weights.")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", default=["*"], help="name with wildcards: '*raft*'")
    parser.add_argument("--pretrained", action="store_true", help="only models with weights")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="table or json (default: table)")
    options = parser.parse_args(argv)
    with exit_with_message(ValueError):
        models = metamix.list_models(options.patterns, pretrained=options.pretrained)
    print(json.dumps([dataclasses.asdict(m) for m in models], indent=2) if options.format == "json" else table(models))


def table(models: Sequence[ModelInfo]) -> str:
    """Return a line for each model and, indented below it, a line for each of its weights."""
    width = max([len(model.name) for model in models], default=0)
    lines = [f"{'model':<{width}}  {'parameters':>10}  {'MACs':>8}  {'images':>11}"]
    for model in models:
        channels, height, side = model.input_size
        size = f"{channels} x {height} x {side}"
        lines.append(
            f"{model.name:<{width}}  {short_count(model.parameters):>10}  {short_count(model.macs):>8}  {size:>11}"
        )
        for weights in model.weights:
            accuracy = f": top1 {weights.top1:.2f} %" if weights.top1 is not None else ""
            lines.append(f"  .{weights.tag}  {weights.data or weights.source}{accuracy}")
    return "\n".join(lines)
