"""`metamix benchmark`: measure how fast models are in each engine on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import metamix  # noqa: F401 - registers the models with timm
from metamix.deploy.benchmark import ENGINES, benchmark, table
from metamix.deploy.formats import PRECISIONS
from metamix.utils.files import write_text
from metamix.utils.options import Options, option, parse_command, positional
from metamix.utils.rules import Count, NotNegative
from metamix.utils.text import exit_with_message
from metamix.weights.metadata import Side

EXAMPLES = """examples:
  metamix benchmark metaformer_pooling_s12 resnet18
  metamix benchmark metaformer_raft_s12 --engines eager,openvino --precisions fp32,int8 --batch-sizes 1 --threads 1"""


@dataclass
class BenchmarkOptions(Options):
    """Options of `metamix benchmark`."""

    models: tuple[str, ...] = positional("names of models of metamix or timm", metavar="MODEL")
    engines: tuple[str, ...] = option(tuple(ENGINES), "engines to time")
    precisions: tuple[str, ...] = option(PRECISIONS, "precisions to time; an engine skips those that it lacks")
    batch_sizes: tuple[Count, ...] = option((1, 8), "images in a call")
    img_size: Side | None = option(None, "side of the images in pixels; by default the model's")
    threads: Count | None = option(None, "number of threads; by default torch's")
    seconds: NotNegative = option(1.0, "seconds for each row of the table")
    reference: str | None = option(None, "model that speedups are relative to; by default the first", metavar="MODEL")
    json: Path | None = option(None, "file to which the result is also written, as JSON", metavar="FILE")


def main(argv: Sequence[str]) -> None:
    """Print the table and write the JSON; exit with a message if the input is invalid."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(
            argv,
            BenchmarkOptions,
            prog="metamix benchmark",
            description="Time models in several engines, in turns. Weights and images are random.",
            epilog=EXAMPLES,
        )
        settings = vars(options)
        file = settings.pop("json")
        if file:  # refuse a wrong path before the measurement
            if file.is_dir():
                raise ValueError(f"--json {file} is a folder: give a file")
            file.parent.mkdir(parents=True, exist_ok=True)
        result = benchmark(**settings)
        print(table(result))
        if file:
            write_text(file, json.dumps(result, indent=1) + "\n")
