"""Measure how fast models are in each engine: `benchmark`.

    result = benchmark(["metaformer_pooling_s12", "resnet18"], precisions=["fp32", "int8"])
    print(table(result))

All models and engines take turns in one process, with the same number of threads. ONNX Runtime and OpenVINO run models
as `metamix export` writes them; OpenVINO compiles each model for the batch size. All images are random, including the
images that calibrate int8. Models given by name have random weights, since the speed does not depend on them. Wrap any
other model, such as a trained detector, in a `BenchmarkedModel`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from metamix.models.registry import create_model, timm_config
from metamix.utils.checks import check_choice
from metamix.utils.extras import installed, need
from metamix.utils.system import keep_freed_memory, processor, versions
from metamix.utils.text import aligned, message, plural
from metamix.utils.timing import interleaved

from .formats import FORMATS, PRECISIONS, Graph
from .fuse import fuse

FORMAT_OF = {format.engine: format for format in FORMATS.values() if format.engine}  # engine: format that it runs
ENGINES = dict.fromkeys(("eager", "compile"), ("fp32", "bf16")) | {  # engine: precisions that it supports
    engine: tuple(p for p in PRECISIONS if p not in format.refused) for engine, format in FORMAT_OF.items()
}
CALIBRATION_IMAGES = 8
Cell = tuple[str, str]  # engine and precision
BASELINE: Cell = "eager", "fp32"  # engine and precision in which the reference is timed
Models = Sequence["str | BenchmarkedModel"]
Case = tuple["BenchmarkedModel", Cell]  # what is timed
Step = Callable[[], object]


def benchmark(
    models: Models,
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
        precisions: "fp32", "bf16" and "int8"; each engine is timed in the precisions that it supports.
        batch_sizes: numbers of images per call.
        img_size: side in pixels of the square images for models given by name; None for each model's default.
        threads: number of threads to compute with; None for torch's current number.
        seconds: average number of seconds for each row in each run; at least five calls are made.
        runs: number of repetitions; the medians over them are reported.
        reference: model whose speed in eager fp32 is the baseline; None for the first model that is not exported. If
            all models are exported, there is no baseline, and "reference" in the result is None. Without a baseline,
            the speedups are None.
        folder: folder that keeps converted models for later calls, by name and image size: choose an empty one after a
            model has changed. None for a temporary folder.

    Returns:
        {"machine", "threads", "versions", "measured", "runs", "reference", "rows", "failed"}. A row has "model",
        "engine", "precision", "img_size", "batch", "ms" (median time of a call), "img_per_s", "speedup" (how many
        times as fast as the reference in eager fp32 at the same batch size), and the smallest and largest speedup of
        the runs as "from" and "to". "failed" maps each case that failed at any batch size, such as "resnet18 compile
        bf16", to the reason.

    Raises:
        ValueError: an unknown model, engine or precision, nothing to time, a batch size or `runs` below 1, an exported
            reference, or two models with the same name.
        ImportError: a model that is not exported needs a package of the extra `deploy` that is missing.
    """
    cells = cells_of(engines, precisions)
    exported = [model.cell for model in models if isinstance(model, BenchmarkedModel) and model.cell]
    if len(exported) == len(models):
        cells = []  # exported models are timed only in their own engines
    check_request(models, cells, batch_sizes, runs, reference)
    opened = open_models(models if reference is None else [reference, *models], img_size)
    chosen = [opened[model] for model in models]
    base = opened[reference] if reference else next((model for model in chosen if not model.cell), None)
    cases: list[Case] = []
    for subject in opened.values():
        wanted = [BASELINE] if subject is base else []
        wanted += cells if subject in chosen else []
        cases += [(subject, cell) for cell in ([subject.cell] if subject.cell else dict.fromkeys(wanted))]
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    try:
        # torch limits how often it compiles one function, and models of one class share their `forward`.
        with TemporaryDirectory() as temporary, torch._dynamo.config.patch(recompile_limit=64):
            place = Path(folder or temporary)
            place.mkdir(parents=True, exist_ok=True)
            for batch in batch_sizes:
                rows += timed_rows(open_steps(cases, batch, place, failed), batch, base, seconds, runs)
    finally:
        torch.set_num_threads(before)
    return {
        "machine": processor(),
        "threads": threads or before,
        "versions": versions() | installed(package for cell in [*cells, *exported] for package in packages(*cell)),
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "runs": runs,
        "reference": base and base.name,
        "rows": rows,
        "failed": failed,
    }


def cells_of(engines: Sequence[str], precisions: Sequence[str]) -> list[Cell]:
    """Return the supported pairs of engine and precision.

    Raise ValueError for an unknown name, or if there is no such pair.
    """
    for what, words, accepted in (("engine", engines, ENGINES), ("precision", precisions, PRECISIONS)):
        for word in words:
            check_choice(what, word, accepted)
    cells = [(engine, p) for engine in engines for p in ENGINES[engine] if p in precisions]
    if not cells:
        pairs = "; ".join(f"{engine} supports {', '.join(names)}" for engine, names in ENGINES.items())
        raise ValueError(f"{', '.join(engines)} cannot compute in {', '.join(precisions)}: {pairs}")
    return cells


def check_request(models: Models, cells: Sequence[Cell], batch_sizes: Sequence[int], runs: int, reference: Any) -> None:
    """Check arguments of `benchmark` before any model is built; raise ImportError or ValueError if they are wrong."""
    for cell in cells:
        for package in packages(*cell):
            need(package)
    if not models or not batch_sizes or min(batch_sizes) < 1 or runs < 1:
        raise ValueError(
            f"models are {list(models)}, batch sizes {list(batch_sizes)}, runs {runs}: give at least one model and one "
            f"batch size, and batch sizes and runs of at least 1"
        )
    if isinstance(reference, BenchmarkedModel) and reference.cell:
        raise ValueError(
            f"reference is {reference.name}, an export, which does not run in eager fp32: give a model "
            f"that is not exported"
        )


def packages(engine: str, precision: str) -> tuple[str, ...]:
    """Return the packages that an engine needs for a precision, besides torch."""
    return FORMAT_OF[engine].packages_for(precision) if engine in FORMAT_OF else ()


def open_models(models: Models, img_size: int | None) -> "dict[str | BenchmarkedModel, BenchmarkedModel]":
    """Build the models that are given by name; raise ValueError if two models have the same name."""
    opened = {m: random_model(m, img_size) if isinstance(m, str) else m for m in dict.fromkeys(models)}
    names = [model.name for model in opened.values()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several models have the name {repeated[0]}: give each model a different name")
    return opened


def random_model(name: str, img_size: int | None) -> "BenchmarkedModel":
    """Build a timm model with random weights for images of side `img_size`; None means the model's default size."""
    arguments: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    model: Any = create_model(name, **arguments)
    channels, height, width = timm_config(model)["input_size"]
    height, width = (height, width) if img_size is None else (img_size, img_size)
    shape = CALIBRATION_IMAGES, channels, height, width
    return BenchmarkedModel(name, model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def open_steps(cases: Iterable[Case], batch: int, folder: Path, failed: dict[str, str]) -> dict[Case, Step]:
    """Open models in engines for `batch` images, and run each once; add to `failed` why a case fails."""
    steps: dict[Case, Step] = {}
    for subject, cell in cases:
        try:
            step = subject.step(*cell, batch, folder)
            step()
            steps[subject, cell] = step
        except Exception as error:  # each engine has its own error types
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            failed[" ".join((subject.name, *cell))] = why
    return steps


def timed_rows(
    steps: Mapping[Case, Step], batch: int, base: "BenchmarkedModel | None", seconds: float, runs: int
) -> list[dict[str, Any]]:
    """Time the steps interleaved, in several runs, and return a row for each; `base` is the reference."""
    timings = [interleaved(steps, seconds * len(steps)) for _ in range(runs)]
    compared = [run.get((base, BASELINE)) if base else None for run in timings]
    return [subject.row(cell, batch, [run[subject, cell] for run in timings], compared) for subject, cell in steps]


class BenchmarkedModel:
    """A model to time on `images`, (CALIBRATION_IMAGES, C, H, W).

    `outputs` names its outputs. `cell` is the engine and the precision of an exported model; None for other models.
    """

    def __init__(
        self, name: str, model: Any, images: Tensor, outputs: Sequence[str] = ("logits",), cell: Cell | None = None
    ):
        self.name, self.images, self.outputs, self.cell = name, images, outputs, cell
        self.model = model.eval().to(memory_format=torch.channels_last)

    def step(self, engine: str, precision: str, batch: int, folder: Path) -> Step:
        """Return a function that runs the model on `batch` images; converted files go to `folder`."""
        images = self.images[torch.arange(batch) % len(self.images)]
        if self.cell:
            return lambda: self.model(images)
        if engine in FORMAT_OF:
            file, array, threads = self.file(engine, precision, folder), images.numpy(), torch.get_num_threads()
            run = FORMAT_OF[engine].open(file, threads, precision, images.shape)
            return lambda: run(array)
        images = images.to(memory_format=torch.channels_last)
        call: Any = torch.compile(self.model, dynamic=False) if engine == "compile" else self.model

        @torch.inference_mode()
        def step() -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return call(images)

        return step

    def file(self, engine: str, precision: str, folder: Path) -> Path:
        """Write the model in the format of an engine, unless its file exists, and return the file."""
        format = FORMAT_OF[engine]
        suffix = Path(format.file).suffix
        stem = f"{self.name.replace('/', '%2F')}-{self.size}"  # keeps runs/a and runs-a apart
        file = folder / f"{stem}-fp32{suffix}"
        if not file.exists():
            example = self.images[:2]
            format.write(Graph(fuse(self.model, example), example, self.outputs), file)
        if precision != "int8":
            return file
        quantized = folder / f"{stem}-int8{suffix}"
        if not quantized.exists():
            # Batches of one image save memory.
            format.quantizer(file, folder).quantize(quantized, [*self.images.numpy()[:, None]])
        return quantized

    @property
    def size(self) -> int | str:
        """Return the side of the images in pixels; "HxW" if they are not square."""
        height, width = self.images.shape[-2:]
        return width if height == width else f"{height}x{width}"

    def row(self, cell: Cell, batch: int, seconds: Sequence[float], base: Sequence[float | None]) -> dict[str, Any]:
        """Make a row; `seconds` and `base` are the seconds per call in each run, of this model and of the reference."""
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
    """Format a result of `benchmark`: the machine, a line for each row, and the cases that failed."""
    machine = result["machine"]
    software = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if name != "metamix")
    lines = [f"{machine['cpu']}, {plural(result['threads'], 'thread')}, {result['measured']}; {software}"]
    if base := result["reference"]:
        lines.append(message(f"speedup: how many times as fast as {base} in eager fp32 at the same batch size"))
    lines.append("")
    header = ("model", "engine", "precision", "pixels", "batch", "ms", "images/s", "speedup")
    keys = ("model", "engine", "precision", "img_size", "batch", "ms", "img_per_s", "speedup")
    rows = [["-" if row[key] is None else f"{row[key]}" for key in keys] for row in result["rows"]]
    lines += aligned([header, *rows], right=range(3, len(header)))
    return "\n".join([*lines, *(message(f"{cell} failed: {why}") for cell, why in result["failed"].items())])
