"""Export a trained model for an inference engine, and check that its outputs stay the same: `metamix export`.

    report = export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")

The graph is made from the fused model; see `metamix.deploy.fuse`. The files are written to a hidden folder inside the
output folder. They replace an earlier export there only after the model has met all limits.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from metamix.deploy.artifact import REPORT, Artifact, file_names
from metamix.deploy.formats import FORMATS, Graph, Run
from metamix.deploy.fuse import fuse
from metamix.deploy.quantize import quantize_file
from metamix.deploy.runtime import ExportedModel
from metamix.utils.extras import installed, need
from metamix.utils.files import LOCK, TEMPORARY, check_output_folder, lock_folder, make_output_folder, write_text
from metamix.utils.options import parse_command
from metamix.utils.system import processor, versions
from metamix.utils.text import exit_with_message, package_logger, plural, printable, speed_text
from metamix.utils.timing import interleaved
from metamix.weights.files import ARTIFACT

from .exportable import CalibratedExport, Exportable, ExportOptions
from .find import task_of
from .load import refuse_name
from .registry import find_task

HIDDEN = ".export-"  # start of the names of the folders that hold files until an export is complete

EXAMPLES = """examples:
  metamix export metaformer_raft_nano.cifar10 --format onnx --output raft-onnx
  metamix export metaformer_raft_nano.cifar10 --format openvino --precision int8 --data cifar10 --output raft-int8
  metamix export runs/scenes-semantic_fpn --format openvino --precision int8 --data-dir scenes --output street
  metamix predict --model raft-int8 photo.jpg"""


class ParityError(ValueError):
    """The outputs of the exported model differ from the outputs of the eager model by more than a limit."""


def main(argv: Sequence[str]) -> None:
    """Export a model; exit with a message if the input is invalid or a limit is exceeded."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(argv, ExportOptions, "metamix export", epilog=EXAMPLES)
        logging.basicConfig(format="%(message)s")
        package_logger("metamix.deploy").setLevel(logging.INFO)  # shows the search for layers to keep in fp32
        report = export(**vars(options))
    print(summary(report, options.output))


def export(source: str | Path, *, output: str | Path, **options: Any) -> dict[str, Any]:
    """Export a model to a folder and check it.

    Args:
        source: run folder, weight file, or NAME.TAG of shipped or published weights, of metamix or timm.
        output: folder to write: a new folder, or the folder of an earlier export.
        options: the other fields of `ExportOptions`, such as `format="openvino"` and `precision="int8"`.

    Returns:
        The content of report.json.

    Raises:
        ValueError: an option or the model is unsuitable, or int8 loses too much.
        ParityError: the outputs differ by more than a limit.
        FileNotFoundError: there are no such weights.
        ImportError: a package of the extra `deploy` is missing.
    """
    settings = ExportOptions(str(source), Path(output), **options)
    task, file = task_of(settings.source, settings.model)
    spec = find_task(task)
    if file is None or not spec.takes_names:
        refuse_name(settings.model, source)
    for package in FORMATS[settings.format].packages_for(settings.precision):
        need(package)
    folder = settings.output
    is_export = (folder / ARTIFACT).exists() or (folder / REPORT).exists()
    left = [path for path in folder.glob(f"{HIDDEN}*{TEMPORARY}") if path.is_dir()]  # folders of killed exports
    ours = {ARTIFACT, *file_names()} if is_export else set()
    check_output_folder(folder, {LOCK, *ours, *(path.name for path in left)})
    exportable = spec.part("export")(settings)
    if settings.precision == "int8":
        if not isinstance(exportable, CalibratedExport):
            raise ValueError(f"{source} is a model for {task}, which cannot be quantized: give another --precision")
        exportable.calibration_count(settings.calibration_images)  # raises ValueError before the work starts
    examples = exportable.examples(2)
    check_runs(exportable.model, examples)
    make_output_folder(folder)
    before = torch.get_num_threads()
    try:
        with lock_folder(folder):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            with TemporaryDirectory(TEMPORARY, HIDDEN, folder) as temporary:
                report = write_export(exportable, examples, Path(temporary), settings)
                replace_export(folder, Path(temporary))
        return report
    finally:
        torch.set_num_threads(before)  # engines and `measure` change it for the whole process


def write_export(exportable: Exportable, examples: Tensor, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a model to the folder and check it; return the content of report.json."""
    threads = options.threads or torch.get_num_threads()
    artifact = write_model(exportable, examples, folder, options)
    format, file = FORMATS[options.format], folder / artifact.file
    quantized = None
    if options.precision == "int8":
        quantized = quantize(cast(CalibratedExport, exportable), file, artifact, options)
    opened = file.with_name(format.compiled) if options.compile else file
    exported = ExportedModel(format.open(opened, threads, options.precision), artifact)
    comparison = exportable.compare(exported, options.precision)
    if comparison.problems:
        raise ParityError(
            f"{artifact.file} does not match {options.source}: {'; '.join(comparison.problems)}. Nothing is written to "
            f"{options.output}"
        )
    report = {
        "source": options.source,
        "format": options.format,
        "precision": options.precision,
        "parity": comparison.parity,
        "scores": comparison.scores,
        "quantization": quantized,
        "files": file_sizes(folder),
        "speed": measure(exportable, exported, threads, options.seconds) if options.seconds else {},
        "threads": threads,
        "machine": processor(),
        "versions": artifact.versions,
        "notes": exportable.notes,
    }
    write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    artifact.save(folder)
    return report


def replace_export(folder: Path, new: Path) -> None:
    """Move the files of the folder `new` into `folder`, and remove the other files of an earlier export there."""
    for name in {ARTIFACT} | file_names() - set(os.listdir(new)):
        (folder / name).unlink(missing_ok=True)
    # report.json is moved first, so that it marks the folder as ours if the move is interrupted. export.json is moved
    # last, since it marks the export as complete.
    for path in sorted(new.iterdir(), reverse=True):
        path.replace(folder / path.name)


def write_model(exportable: Exportable, examples: Tensor, folder: Path, options: ExportOptions) -> Artifact:
    """Write the model's files and return their description, without checksums."""
    written = FORMATS[options.format]
    model = fuse(exportable.model, None if options.dynamic else examples)
    graph = Graph(model, examples, exportable.outputs, options.dynamic, options.precision, options.compile)
    written.write(graph, folder / written.file)
    shape = (None, examples.shape[1], *((None, None) if options.dynamic else examples.shape[2:]))
    return Artifact(
        options.format,
        options.precision,
        exportable.metadata,
        shape,
        exportable.outputs,
        exportable.extra,
        versions() | installed(written.packages),
    )


@torch.inference_mode()
def check_runs(model: nn.Module, images: Tensor) -> None:
    """Raise ValueError if a model does not take these images, for example because it is made for one size."""
    try:
        model(images)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        shape = " x ".join(map(str, images.shape[1:]))
        raise ValueError(f"{type(model).__name__} does not take images of {shape}: {error}") from None


def quantize(exportable: CalibratedExport, file: Path, artifact: Artifact, options: ExportOptions) -> dict[str, Any]:
    """Quantize an fp32 file in place, and return the entries for the report."""
    count = exportable.calibration_count(options.calibration_images)
    max_drop = exportable.max_drop if options.max_drop is None else options.max_drop
    before = sum(file_sizes(file.parent).values())

    def score(run: Run) -> np.ndarray:
        return exportable.held_out_scores(ExportedModel(run, artifact), count)

    batches = list(exportable.calibration(count))
    figures = {"calibration_images": sum(map(len, batches)), "max_drop": max_drop, "unit": exportable.unit}
    format, minutes, unit = FORMATS[options.format], options.search_minutes, exportable.unit
    result = quantize_file(format, file, batches, score, max_drop=max_drop, minutes=minutes, unit=unit)
    return figures | {"drop": result.drop, "fp32_bytes": before} | asdict(result)


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file of the model in bytes, by name."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("model.*"))}


@torch.inference_mode()
def measure(exportable: Exportable, exported: ExportedModel, threads: int, seconds: float) -> dict[str, dict]:
    """Measure the latency of the eager and the exported model for batches of 1 and 8, and the throughput for 8.

    The eager model runs in channels_last. The models take turns for `seconds` in total, at least one turn each.
    """
    model = exportable.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_num_threads(threads)

    def eager(images: Tensor) -> Any:
        return model(images.to(memory_format=torch.channels_last))

    models: dict[str, Callable[[Tensor], Any]] = {"eager": eager, "exported": exported}
    batches = {n: exportable.examples(1).repeat(n, 1, 1, 1) for n in (1, 8)}
    steps = {(name, n): partial(run, batch) for name, run in models.items() for n, batch in batches.items()}
    medians = interleaved(steps, seconds, least=1)
    return {
        name: {
            "batch_1_ms": round(1000 * medians[name, 1], 3),
            "batch_8_ms": round(1000 * medians[name, 8], 3),
            "img_per_s": round(8 / medians[name, 8], 1),
        }
        for name in models
    }


def summary(report: dict[str, Any], folder: Path) -> str:
    """Format a report as the lines that the command prints."""
    lines = [f"note: {note}" for note in report["notes"]]
    lines.append(f"parity: {parity(report['parity'])}")
    for name, scores in report["scores"].items():
        listed = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
        lines.append(f"{name}: {listed or 'no score, since the images show no object'}")
    for name, figures in report["speed"].items():
        one, eight = (f"{float(f'{figures[key]:.3g}'):,g}" for key in ("batch_1_ms", "batch_8_ms"))
        lines.append(f"{name}: {one} ms for 1 image, {eight} ms for 8 ({speed_text(figures['img_per_s'])})")
    return "\n".join(map(printable, [*lines, gains(report), f"written: {folder}"]))


def gains(report: dict[str, Any]) -> str:
    """Say in one line how much smaller and faster the model became, and what it lost on held-out training images."""
    size, quantized = sum(report["files"].values()), report["quantization"]
    text = f"{report['format']} {report['precision']}: {size / 1e6:.1f} MB"
    if quantized:
        text += f", {quantized['fp32_bytes'] / size:.1f} times smaller than fp32"
    if speed := report["speed"]:
        times = speed["eager"]["batch_1_ms"] / speed["exported"]["batch_1_ms"]
        text += f"; one image runs {times:.1f} times as fast as in torch"
    if quantized:
        chance = "; the loss is within the noise" if quantized["drop"] > quantized["max_drop"] else ""
        drop = round(quantized["drop"], 2)
        text += f"; {'gained' if drop < 0 else 'lost'} {abs(drop):.2f} {quantized['unit']} on "
        text += f"{plural(quantized['images'], 'training image')} (limit {quantized['max_drop']:g}{chance}), "
        text += f"{len(quantized['kept'])} of {quantized['layers']} layers kept in fp32"
    return text


def parity(figures: dict[str, Any]) -> str:
    """Say in one line how close the outputs of both models are."""
    on = f"on {plural(figures['images'], 'image')} ({figures['on']})"
    if "largest_difference_px" in figures:
        return (
            f"{figures['objects'] - figures['unmatched']:,} of {figures['objects']:,} objects are found; their boxes "
            f"differ by up to {figures['largest_difference_px']:.2g} pixels, {on}"
        )
    same = f", same class for {figures['same_top1']:.2%}" if "same_top1" in figures else ""
    return f"outputs differ by at most {figures['of_the_deviation']:.1e} standard deviations{same}, {on}"
