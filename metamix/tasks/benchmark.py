"""Measure how fast models are in each engine on this machine: `metamix benchmark`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metamix.deploy.benchmark import CALIBRATION_IMAGES, ENGINES, BenchmarkedModel, benchmark, table
from metamix.deploy.formats import FORMATS, PRECISIONS
from metamix.deploy.runtime import load_exported
from metamix.utils.checks import parse_size
from metamix.utils.files import write_text
from metamix.utils.options import Options, option, parse_command, positional
from metamix.utils.rules import Count, NotNegative
from metamix.utils.text import exit_with_message
from metamix.weights.metadata import Side

from .exportable import ExportOptions
from .find import check_trust, is_exported, task_of
from .registry import DEFAULT, find_task

EXAMPLES = """examples:
  metamix benchmark metaformer_pooling_s12 resnet18
  metamix benchmark runs/cells-retinanet runs/scenes-semantic_fpn --engines eager,openvino
  metamix benchmark metaformer_raft_s12 --engines eager,openvino --precisions fp32,int8 --batch-sizes 1 --threads 1"""


@dataclass
class BenchmarkOptions(Options):
    """Time models in several engines, in interleaved runs.

    Images are random. A classifier that is given by its name has random weights, unless the name has a tag of shipped
    weights. Exported models are timed in their own engine and precision.
    """

    models: tuple[str, ...] = positional(
        "names of models of metamix or timm; run folders or weight files of any task; folders of metamix export",
        metavar="MODEL",
    )
    engines: tuple[str, ...] = option(tuple(ENGINES), "engines to time")
    precisions: tuple[str, ...] = option(PRECISIONS, "precisions to time; an engine skips precisions that it lacks")
    batch_sizes: tuple[Count, ...] = option((1, 8), "numbers of images per call")
    img_size: Side | None = option(None, "side of the images in pixels; by default each model's image size")
    threads: Count | None = option(None, "number of threads; by default as many as torch uses")
    seconds: NotNegative = option(1.0, "average number of seconds to spend on each row of the table")
    reference: str | None = option(
        None, "baseline of the speedups; by default the first model that is not exported", metavar="MODEL"
    )
    trust: bool = option(False, "load a model that was exported with --format torch; its files can run code")
    json: Path | None = option(None, "file to which the result is also written, as JSON", metavar="FILE")


def main(argv: Sequence[str]) -> None:
    """Print the table and write JSON; exit with a message if the input is invalid or no model could be timed."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(argv, BenchmarkOptions, "metamix benchmark", epilog=EXAMPLES)
        settings = vars(options)
        file, trust = settings.pop("json"), settings.pop("trust")
        if file:  # refuse a wrong path before the measurement
            if file.is_dir():
                raise ValueError(f"--json {file} is a folder: give a file")
            file.parent.mkdir(parents=True, exist_ok=True)
        names = dict.fromkeys([*options.models, *filter(None, [options.reference])])
        check_trust(trust, names)
        opened = {name: open_model(name, options.img_size, options.threads, trust) for name in names}
        settings["models"] = [opened[name] for name in options.models]
        settings["reference"] = opened.get(options.reference or "")
        result = benchmark(**settings)
        print(table(result))
        if file:
            write_text(file, json.dumps(result, indent=1) + "\n")
        if not result["rows"]:
            raise ValueError("no model could be timed: the lines above say why")


def open_model(source: str, img_size: int | None, threads: int | None, trust: bool) -> str | BenchmarkedModel:
    """Open trained weights of any task, or an exported model; return other names unchanged."""
    if is_exported(source):
        # With None, ONNX Runtime and OpenVINO would use all cores.
        exported = load_exported(source, threads=threads or torch.get_num_threads(), trust=trust)
        artifact = exported.artifact
        if img_size and artifact.size and artifact.size != (img_size, img_size):
            height, width = artifact.size
            raise ValueError(f"img_size is {img_size}, but {source} takes {height} x {width} pixels: leave it out")
        cell = FORMATS[artifact.format].engine or artifact.format, artifact.precision
        size: Any = artifact.size or img_size or artifact.model.img_size
        images = torch.randn(CALIBRATION_IMAGES, artifact.input_shape[1] or 3, *parse_size("img_size", size))
        return BenchmarkedModel(source, exported, images, artifact.outputs, cell)
    task, file = task_of(source)
    if file is None and task == DEFAULT:
        return source
    options = ExportOptions(source, Path(), img_size=img_size)  # type: ignore[arg-type]  # one side is accepted
    exportable = find_task(task).part("export")(options)
    return BenchmarkedModel(source, exportable.model, exportable.examples(CALIBRATION_IMAGES), exportable.outputs)
