"""Measure how fast models are in each engine: `benchmark`.

    result = benchmark(["metaformer_pooling_s12", "resnet18"], precisions=["fp32", "int8"])
    print(table(result))

All models and engines take turns in one process, with the same images and number of threads. ONNX Runtime and OpenVINO
run what `metamix export` writes; OpenVINO compiles it for the batch. All images are random, including those for int8's
calibration. Models given by name have random weights, since the speed does not depend on them. A `BenchmarkedModel` is
any other model, such as a trained detector.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from metamix.models.registry import create_model, timm_config
from metamix.utils.checks import check_choice
from metamix.utils.system import keep_freed_memory, processor, versions
from metamix.utils.text import aligned, message, plural
from metamix.utils.timing import interleaved

from .extras import installed, need
from .formats import FORMATS, PRECISIONS, Graph
from .formats.openvino import open_openvino
from .fuse import fuse
from .quantize import open_quantizer

ENGINES: dict[str, tuple[str, ...]] = {  # engine: its precisions
    "eager": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
FORMAT_OF = {"onnxruntime": "onnx", "openvino": "openvino"}  # engine: what it runs
CALIBRATION_IMAGES = 8
Cell = tuple[str, str]  # engine and precision
Step = Callable[[], object]


def benchmark(
    models: "Sequence[str | BenchmarkedModel]",
    *,
    engines: Sequence[str] = tuple(ENGINES),
    precisions: Sequence[str] = PRECISIONS,
    batch_sizes: Sequence[int] = (1, 8),
    img_size: int | None = None,
    threads: int | None = None,
    seconds: float = 1.0,
    runs: int = 1,
    reference: "str | BenchmarkedModel | None" = None,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Time models in several engines.

    Args:
        models: names of models of metamix or timm, or `BenchmarkedModel`s.
        engines: keys of `ENGINES`.
        precisions: "fp32", "bf16" and "int8"; each engine is timed in the precisions that it has.
        batch_sizes: images in a call.
        img_size: side of the images of named models in pixels; None for each model's own.
        threads: number of threads to compute with; None for torch's number.
        seconds: time for each model, engine, precision and batch in each run; at least five calls are made.
        runs: number of repetitions; the medians over them are reported.
        reference: model whose speed in eager fp32 the others are compared with; None for the first one that is not
            exported. If all are exported, "reference" and the speedups are None.
        folder: where converted models are kept, so that they are not converted again. None keeps no models.

    Returns:
        {"machine", "threads", "versions", "measured", "runs", "reference", "rows", "failed"}. A row has "model",
        "engine", "precision", "img_size", "batch", "ms" (median of a call), "img_per_s", "speedup" (times as fast as
        the reference in eager fp32 at the same batch), and the smallest and largest speedup of the runs as "from" and
        "to". `failed` says which cells could not be built and why.

    Raises:
        ValueError: an unknown model, engine or precision, nothing to time, or a reference that is an export.
        ImportError: a package of the extra `deploy` is missing.
    """
    cells = cells_of(engines, precisions)
    chosen = {name_of(model): model for model in models}
    if not models or not batch_sizes or min(batch_sizes) < 1 or runs < 1:
        raise ValueError(f"models are {list(models)}, batch sizes {list(batch_sizes)}, runs {runs}: give one of each")
    if isinstance(reference, BenchmarkedModel) and reference.cell:
        raise ValueError(
            f"reference is {reference.name}, an export, which has no speed in eager fp32: give a model's name, a run "
            f"folder or a weight file"
        )
    reference = reference or next((m for m in chosen.values() if isinstance(m, str) or not m.cell), None)
    base_name = reference and name_of(reference)
    software = versions() | installed(package for cell in cells for package in packages(*cell))
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    try:
        with TemporaryDirectory() as temporary, torch._dynamo.config.patch(recompile_limit=64):  # one forward for all
            timed = ({base_name: reference} if reference else {}) | chosen
            subjects = [random_model(model, img_size) if isinstance(model, str) else model for model in timed.values()]
            place = Path(folder or temporary)
            place.mkdir(parents=True, exist_ok=True)
            for batch in batch_sizes:
                steps: dict[tuple[BenchmarkedModel, Cell], Step] = {}
                for subject in subjects:
                    base = [("eager", "fp32")] if subject.name == base_name else []
                    wanted = [*base, *(cells if subject.name in chosen else [])]
                    for cell in [subject.cell] if subject.cell else dict.fromkeys(wanted):
                        try:
                            step = subject.step(*cell, batch, place)
                            step()
                            steps[subject, cell] = step
                        except Exception as error:  # each engine has its own types
                            failed[" ".join((subject.name, *cell))] = str(error).partition("\n")[0]
                timings = [interleaved(steps, seconds * len(steps)) for _ in range(runs)]
                compared = [run.get((subjects[0], ("eager", "fp32"))) for run in timings]
                for subject, cell in steps:
                    rows.append(subject.row(cell, batch, [run[subject, cell] for run in timings], compared))
    finally:
        torch.set_num_threads(before)
    return {
        "machine": processor(),
        "threads": threads or before,
        "versions": software,
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "runs": runs,
        "reference": base_name,
        "rows": rows,
        "failed": failed,
    }


def cells_of(engines: Sequence[str], precisions: Sequence[str]) -> list[Cell]:
    """Return the pairs of engine and precision to time; refuse unknown names, and engines whose package is missing."""
    for what, words, accepted in (("engine", engines, ENGINES), ("precision", precisions, PRECISIONS)):
        for word in words:
            check_choice(what, word, accepted)
    cells = [(engine, p) for engine in engines for p in ENGINES[engine] if p in precisions]
    if not cells:
        pairs = "; ".join(f"{engine} has {', '.join(names)}" for engine, names in ENGINES.items())
        raise ValueError(f"{', '.join(engines)} cannot compute in {', '.join(precisions)}: {pairs}")
    for cell in cells:
        for package in packages(*cell):
            need(package)
    return cells


def packages(engine: str, precision: str) -> tuple[str, ...]:
    """Return the packages that an engine needs beyond torch."""
    return FORMATS[FORMAT_OF[engine]].packages_for(precision) if engine in FORMAT_OF else ()


def name_of(model: "str | BenchmarkedModel") -> str:
    """Return the name of a model that is to be timed."""
    return model if isinstance(model, str) else model.name


def random_model(name: str, img_size: int | None) -> "BenchmarkedModel":
    """Build a timm model with random weights, for square images of `img_size`; None for its own size."""
    arguments: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    model: Any = create_model(name, **arguments)
    channels, height, width = timm_config(model)["input_size"]
    height, width = (height, width) if img_size is None else (img_size, img_size)
    shape = CALIBRATION_IMAGES, channels, height, width
    return BenchmarkedModel(name, model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


class BenchmarkedModel:
    """A model to time, with `CALIBRATION_IMAGES`, its outputs' names and, for an export, its engine and precision."""

    def __init__(
        self, name: str, model: Any, images: Tensor, outputs: Sequence[str] = ("logits",), cell: Cell | None = None
    ):
        self.name, self.images, self.outputs, self.cell = name, images, outputs, cell
        self.model = model.eval().to(memory_format=torch.channels_last)

    def step(self, engine: str, precision: str, batch: int, folder: Path) -> Step:
        """Return a function that runs the model on `batch` images in an engine and precision; it writes to `folder`."""
        images = self.images[torch.arange(batch) % len(self.images)]
        if self.cell:
            return lambda: self.model(images)
        if engine in ("eager", "compile"):
            images = images.to(memory_format=torch.channels_last)
            call: Any = torch.compile(self.model, dynamic=False) if engine == "compile" else self.model

            @torch.inference_mode()
            def step() -> object:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    return call(images)

            return step
        file, array, threads = self.file(engine, precision, folder), images.numpy(), torch.get_num_threads()
        if engine == "onnxruntime":
            run = FORMATS["onnx"].open(file, threads, precision)
        else:
            graph = need("openvino").Core().read_model(str(file))
            graph.reshape(list(images.shape))
            run = open_openvino(graph, threads, precision)
        return lambda: run(array)

    def file(self, engine: str, precision: str, folder: Path) -> Path:
        """Write the model for ONNX Runtime or OpenVINO, unless its file exists, and return the file."""
        format = FORMATS[FORMAT_OF[engine]]
        suffix = Path(format.file).suffix
        stem = f"{self.name.replace('/', '%2F')}-{self.size}"  # runs/a and runs-a are different models
        file = folder / f"{stem}-fp32{suffix}"
        if not file.exists():
            example = self.images[:2]
            format.write(Graph(fuse(self.model, example), example, self.outputs), file)
        if precision != "int8":
            return file
        quantized = folder / f"{stem}-int8{suffix}"
        if not quantized.exists():
            open_quantizer(file, folder).quantize(quantized, [*self.images.numpy()[:, None]])  # saves memory
        return quantized

    @property
    def size(self) -> int | str:
        """Return the side of the images in pixels; "HxW" if they are not square."""
        height, width = self.images.shape[-2:]
        return width if height == width else f"{height}x{width}"

    def row(self, cell: Cell, batch: int, seconds: Sequence[float], base: Sequence[float | None]) -> dict[str, Any]:
        """Make a row of the result from the seconds of a call in each run; `base` has the reference's seconds."""
        spent = median(seconds)
        speedups = [round(b / s, 2) for s, b in zip(seconds, base) if b is not None]
        return {
            "model": self.name,
            "engine": cell[0],
            "precision": cell[1],
            "img_size": self.size,
            "batch": batch,
            "ms": round(1000 * spent, 2),
            "img_per_s": round(batch / spent, 1),
            "speedup": round(median(speedups), 2) if speedups else None,
            "from": min(speedups, default=None),
            "to": max(speedups, default=None),
        }


def table(result: Mapping[str, Any]) -> str:
    """Write a result of `benchmark` as text: where it was measured, a line for each row, and what failed."""
    machine = result["machine"]
    software = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if name != "metamix")
    lines = [f"{machine['cpu']}, {plural(result['threads'], 'thread')}, {result['measured']}; {software}"]
    if result["reference"]:
        lines.append(message(f"speedup: times as fast as {result['reference']} in eager fp32 at the same batch"))
    lines.append("")
    header = ("model", "engine", "precision", "pixels", "batch", "ms", "images/s", "speedup")
    keys = ("model", "engine", "precision", "img_size", "batch", "ms", "img_per_s", "speedup")
    rows = [["-" if row[key] is None else f"{row[key]}" for key in keys] for row in result["rows"]]
    lines += aligned([header, *rows], right=range(3, len(header)))
    return "\n".join([*lines, *(message(f"{cell} failed: {why}") for cell, why in result["failed"].items())])
