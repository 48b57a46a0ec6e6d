"""Export a model to a folder, compare it with the eager model and measure it: `export`.

    report = export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")

The graph is made from the fused model, see `fuse`. The folder becomes a valid export, with its export.json, only once
the model in it has met its limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from metamix.deploy.artifact import COMPILED, FORMATS, REPORT, Artifact, check_format_and_precision
from metamix.deploy.extras import PACKAGES, installed, need
from metamix.deploy.fuse import fuse
from metamix.deploy.graphs import (
    Bfloat16,
    compile_torch,
    to_openvino,
    to_program,
    write_onnx,
    write_openvino,
    write_torch,
)
from metamix.deploy.openvino_form import to_openvino_form
from metamix.deploy.quantize import quantize_file
from metamix.deploy.report import speeds
from metamix.deploy.runtime import ExportedModel, Run, open_file
from metamix.utils.files import write_text
from metamix.utils.system import processor, versions
from metamix.weights.files import ARTIFACT

from .exportable import Exportable, Quantizable, Request, weight_path

CALIBRATION_BATCH = 50
MAX_DROP = 0.3  # points of accuracy
OPENERS = {  # task: the function in the module of its name that loads models; a task may need extras of its own
    "classification": "open_classifier",
    "detection": "open_detector",
    "restoration": "open_restorer",
    "segmentation": "open_segmenter",
}


class ParityError(ValueError):
    """The exported model does not compute what the eager one does, or is less accurate than allowed."""


@contextmanager
def same_threads() -> Iterator[None]:
    """Restore torch's number of threads at the end: it is one number for the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@same_threads()
def export(
    source: str,
    *,
    output: str | Path,
    model: str | None = None,
    format: str = "onnx",
    precision: str = "fp32",
    img_size: int | tuple[int, int] | None = None,
    dynamic: bool = False,
    compiled: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    images: int | None = None,
    max_drop: float | None = None,
    calibration_images: int = 500,
    threads: int | None = None,
    seconds: float = 4.0,
) -> dict[str, Any]:
    """Export a model to a folder and check it.

    Args:
        source: a model of metamix or timm, NAME.TAG for its weights; a run folder or a weight file.
        output: the folder; a new one, or one that was exported to before.
        model: name of the model, for a file that does not name it.
        format: "torch", "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8".
        img_size: side of the images in pixels, or (height, width); None: as in training.
        dynamic: let height and width vary. The batch always may.
        compiled: torch: also compile the graph for this CPU with AOTInductor, which needs a C++ compiler and minutes.
        data: data set to compare on (its test split) and to calibrate int8 on (its training split).
        data_dir: folder of the data set.
        images: most images to compare on; None for the whole test split.
        max_drop: points that int8 may lose, of top-1 accuracy, on training images that calibration did not see; None
            for `MAX_DROP`.
        calibration_images: training images that int8 is calibrated on.
        threads: to measure the speed with; None for torch's number.
        seconds: for measuring the speed; 0 to measure none.

    Returns:
        The content of report.json.

    Raises:
        ValueError: something does not fit; a `ParityError` if the exported model misses a limit.
        ImportError: a package of the extra `deploy` is missing.
    """
    request = Request(source, img_size, data, data_dir, images, dynamic, format, model)
    check_request(request, precision, compiled, max_drop)
    folder = check_output(Path(output))
    threads = threads or torch.get_num_threads()
    exportable = open_model(request)
    artifact = write_model(exportable, folder, format, precision, dynamic, compiled)
    file = folder / artifact.file
    quantized = None
    if precision == "int8":
        most = MAX_DROP if max_drop is None else max_drop
        quantized = quantize(cast(Quantizable, exportable), file, most, calibration_images)
    exported = ExportedModel(open_file(file, threads=threads, hints=artifact.hints), artifact)
    comparison = exportable.compare(exported, precision)
    report = {
        "source": source,
        "format": format,
        "precision": precision,
        "parity": comparison.parity,
        "scores": comparison.scores,
        "quantization": quantized,
        "files": {path.name: path.stat().st_size for path in sorted(folder.glob("model.*"))},
        "speed": measure(exportable, exported, threads, seconds) if seconds else {},
        "threads": threads,
        "machine": processor(),
        "versions": artifact.versions,
        "notes": exportable.notes,
    }
    write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    if comparison.problems:
        raise ParityError(
            f"{file} does not compute what {source} does: {'; '.join(comparison.problems)}. The folder is not a "
            f"valid export; see {folder / REPORT}"
        )
    artifact.save(folder)
    return report


def check_request(request: Request, precision: str, compiled: bool, max_drop: float | None) -> None:
    """Refuse what cannot be exported before any work; arguments as in `export`.

    Raises:
        ValueError: it cannot.
        ImportError: a package is missing.
    """
    format = request.format
    check_format_and_precision(format, precision)
    if compiled and format != "torch":
        raise ValueError(f"AOTInductor compiles only torch.export, not {format}: leave --compile out")
    for package in PACKAGES.get(format, ()):
        need(package)
    task = request.task
    if precision == "int8":
        if task != "classification":
            raise ValueError(
                f"int8 is only written for classifiers, not for {request.source}: take --precision fp32 or bf16"
            )
        if format == "openvino":
            need("nncf")
        if not request.data:
            raise ValueError(
                "int8 is calibrated on images of the training split: say which, --data NAME (and --data-dir DIR)"
            )
        if max_drop is not None and not max_drop >= 0:
            raise ValueError(f"max_drop is {max_drop}: give the points that int8 may lose, 0 or more, such as 0.3")
    elif max_drop is not None:
        raise ValueError(f"max_drop is {max_drop}, but it only limits int8: leave it out, or give --precision int8")
    if request.model and (weight_path(request.source) is None or task not in ("classification", "restoration")):
        raise ValueError(f"model is {request.model}, but {request.source} says what model it is: leave --model out")
    if request.data == "digits" and request.data_dir:
        raise ValueError(f"data_dir is {request.data_dir}, but digits are part of scikit-learn: leave --data-dir out")
    if task == "classification" and request.data_dir and not request.data:
        raise ValueError(f"data_dir is {request.data_dir}: say what it holds too, --data NAME, such as --data folder")
    if (task == "detection" and request.data not in (None, "coco")) or (task == "restoration" and request.data):
        raise ValueError(f"data is {request.data}, but {task} reads one layout of folders: give only --data-dir DIR")
    if task != "classification" and request.data and not request.data_dir:
        raise ValueError(f"data is {request.data}: give its folder, --data-dir DIR, to compare {request.source} on it")
    if request.images and not (request.data or request.data_dir):
        raise ValueError(f"images is {request.images}, but there are none to compare on: give --data and --data-dir")


def open_model(request: Request) -> Exportable:
    """Load the model that the user asks for.

    Raises:
        ValueError: there is no such model, or it cannot be exported.
        FileNotFoundError: there is no such file.
    """
    if request.task not in OPENERS:
        raise ValueError(f"{request.source} is a model of {request.task}; export takes models of {', '.join(OPENERS)}.")
    return getattr(import_module(f"{__package__}.{request.task}"), OPENERS[request.task])(request)


def check_output(folder: Path) -> Path:
    """Return the folder if it can be written to.

    Raises:
        ValueError: it is a file, or holds something else than an export.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to export to")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = names if names.isdisjoint({ARTIFACT, REPORT}) else names - known_files()
    if others:
        raise ValueError(
            f"{folder} holds other files ({', '.join(sorted(others)[:3])}): give a new folder to export to"
        )
    return folder


def known_files() -> set[str]:
    """Return the names of all files that an export may have."""
    return {ARTIFACT, REPORT, "model.bin", COMPILED, *FORMATS.values()}


def write_model(
    exportable: Exportable, folder: Path, format: str, precision: str, dynamic: bool, compiled: bool
) -> Artifact:
    """Write the model's files and return what to say about them."""
    examples = exportable.examples(2)
    check_runs(exportable.model, examples)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text("")  # marks the folder as ours, so that an export that fails can be repeated
    for name in known_files() - {REPORT}:  # of an earlier export
        (folder / name).unlink(missing_ok=True)
    file = folder / FORMATS[format]
    model = fuse(exportable.model, None if dynamic else examples)
    if format == "onnx":
        write_onnx(model, examples, file, dynamic, exportable.outputs)
    elif format == "openvino":
        graph = to_openvino(to_program(to_openvino_form(model), examples, dynamic), exportable.outputs)
        write_openvino(graph, file)
    else:
        program = to_program(Bfloat16(model) if precision == "bf16" else model, examples, dynamic)
        write_torch(program, file)
        if compiled:
            compile_torch(program, folder / COMPILED)
    shape = (None, examples.shape[1], *((None, None) if dynamic else examples.shape[2:]))
    return Artifact(
        format,
        precision,
        exportable.metadata,
        shape,
        exportable.outputs,
        exportable.extra,
        versions() | installed(PACKAGES.get(format, ())),
    )


@torch.inference_mode()
def check_runs(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Raise ValueError if a model does not take these images, such as one that is only made for another size."""
    try:
        model(images)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        shape = " x ".join(map(str, images.shape[1:]))
        raise ValueError(f"{type(model).__name__} does not take images of {shape}: {error}") from None


def quantize(exportable: Quantizable, file: Path, max_drop: float, count: int) -> dict[str, Any]:
    """Quantize a model file in place, and return what the report says of it.

    Args:
        exportable: gives the images and the score.
        file: in fp32.
        max_drop: see `export`.
        count: images to calibrate on, fewer if the training split is small.
    """
    count = exportable.calibration_count(count)

    def score(run: Run) -> float:
        return exportable.held_out_score(lambda images: torch.from_numpy(run(images.numpy())[0]), count)

    found = quantize_file(file, exportable.calibration(count, CALIBRATION_BATCH), score, max_drop=max_drop)
    return {"calibration_images": count, "max_drop": max_drop, "drop": found.drop} | asdict(found)


@same_threads()
@torch.inference_mode()
def measure(exportable: Exportable, exported: ExportedModel, threads: int, seconds: float) -> dict[str, dict]:
    """Measure the eager model, in channels_last, and the exported one, see `speeds`."""
    model = exportable.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_num_threads(threads)

    def eager(images: torch.Tensor) -> Any:
        return model(images.to(memory_format=torch.channels_last))

    return speeds({"eager": eager, "exported": exported}, exportable.examples(1), seconds)
