"""List models by glob with their sizes, costs and weights, as a table or as JSON: `metamix models`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from metamix.models import ImageModelInfo, ImageWeightsInfo, ModelInfo, WeightsInfo, list_all_models
from metamix.utils.options import Options, option, parse_command, positional
from metamix.utils.text import aligned, exit_with_message, short_count


@dataclass
class ModelsOptions(Options):
    """List models with their sizes and weights."""

    patterns: tuple[str, ...] = positional("names, or patterns such as '*raft*'", metavar="PATTERN", default=("*",))
    pretrained: bool = option(False, "list only models that have weights")
    format: Literal["table", "json"] = option("table", "format of the list")


def main(argv: Sequence[str]) -> None:
    """Print the models whose names match; exit with a message if a pattern matches nothing."""
    with exit_with_message(ValueError):
        options, _ = parse_command(argv, ModelsOptions, "metamix models")
        models = list_all_models(options.patterns, pretrained=options.pretrained)
    if options.format == "json":
        print(json.dumps([asdict(m) for m in models], indent=2))
    else:
        print(table(models) or "none of the matching models has weights")


def table(models: Sequence[ModelInfo | ImageModelInfo]) -> str:
    """Return a line for each model and, indented below it, a line for each set of its weights.

    Image restoration models come last, below their own header.
    """
    tables = []
    for kind, cost in (ModelInfo, "MACs"), (ImageModelInfo, "MACs per pixel"):
        models_of_kind = [model for model in models if isinstance(model, kind)]
        header, *rows = aligned([("model", "parameters", cost, "images"), *map(cells, models_of_kind)], right=(1, 2, 3))
        lines = [header]
        for model, row in zip(models_of_kind, rows):
            lines += [row, *map(weights_line, model.weights)]
        if rows:
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


def cells(model: ModelInfo | ImageModelInfo) -> tuple[str, str, str, str]:
    """Return the cells of a model's row: name, parameters, multiply-adds and shape of the images."""
    if isinstance(model, ImageModelInfo):
        images = f"{model.in_chans} x H x W" + (f", x{model.scale}" if model.scale > 1 else "")
        cost = model.macs_per_pixel
    else:
        images = " x ".join(map(str, model.input_size))
        cost = model.macs
    return model.name, short_count(model.parameters), short_count(cost), images


def weights_line(weights: WeightsInfo | ImageWeightsInfo) -> str:
    """Return a line about weights: the tag, the training data or else the source, and the score if it is known."""
    if isinstance(weights, ImageWeightsInfo):
        score = f": PSNR {weights.psnr:.2f} dB on {weights.test_data}" if weights.psnr is not None else ""
    else:
        score = f": top1 {weights.top1:.2f} %" if weights.top1 is not None else ""
    return f"  .{weights.tag}  {weights.data or weights.source}{score}"
