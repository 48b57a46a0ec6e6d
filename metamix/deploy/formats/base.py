"""Define a format of exported models (`Format`), and trace a model with torch.export."""

import logging
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram

from metamix.utils.files import reason

INPUT = "images"  # name of the graph's input
SCALES = 1, 2, 4, 8, 16  # factors for the example's sides, tried in turn to trace a graph for images of any size

Run = Callable[..., list[np.ndarray]]  # (images) -> outputs
Batches = Sequence[np.ndarray]  # prepared images, (n, C, H, W) float32 each


@dataclass(frozen=True)
class Graph:
    """A model to export, and how to trace its graph."""

    model: nn.Module  # in evaluation mode, fused
    images: Tensor  # example images, (2 or more, C, H, W); the batch size may always vary
    outputs: Sequence[str]  # names of the outputs
    dynamic: bool = False  # whether height and width may vary
    precision: str = "fp32"  # precision of the export; int8 is made from a graph in fp32
    compile: bool = False  # whether the graph is also compiled for this CPU, if the format supports it


class Quantizer(Protocol):
    """Quantize a model file."""

    layers: list[str]  # names of the convolutions and matrix products in the file

    def quantize(self, output: Path, batches: Batches, keep: Collection[str] = ()) -> None:
        """Calibrate on the batches and write the int8 model to `output`; the layers in `keep` stay in fp32."""

    def open_mixed(self, quantized: Path) -> Run:
        """Open a model (images, switches) -> outputs, which runs a layer in int8 if its switch is true, else in fp32.

        `quantized` is the int8 file. `switches` is a bool array with an entry for each of `layers`.
        """


@dataclass(frozen=True)
class Format:
    """A format of exported models."""

    file: str  # name of its main file: "model" with a suffix that no other format has
    write: Callable[[Graph, Path], None]  # writes the main file
    # (file, threads=None, precision="fp32", shape=None) -> run. threads is None for all cores or, in the format torch,
    # torch's current number. If all images have the shape (n, C, H, W), an engine may prepare for it.
    open: Callable[..., Run]
    # Name of the engine in `metamix benchmark`; "" if the format is not timed there. For bf16, the engine runs the fp32
    # file.
    engine: str = ""
    more_files: tuple[str, ...] = ()  # names of files that `write` may add beside the main file
    compiled: str = ""  # name of the file that `Graph.compile` adds, which `open` takes in place of the main file
    runs_code: str = ""  # why opening a file can run code inside it; "" if it cannot run code
    packages: tuple[str, ...] = ()  # packages that writing and running need besides torch
    refused: Mapping[str, str] = field(default_factory=dict)  # unsupported precision -> error message
    quantizer: Any = None  # (file, temporary folder) -> Quantizer; None if `refused` has int8
    int8_packages: tuple[str, ...] = ()  # further packages that quantization needs

    def packages_for(self, precision: str) -> tuple[str, ...]:
        """Return the packages that the format needs for a precision, besides torch."""
        return self.packages + (self.int8_packages if precision == "int8" else ())


@torch.no_grad()
def to_program(model: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """Trace a model with torch.export; raise ValueError if that fails. See `Graph` for the arguments.

    torch.export turns the size of a 1 x 1 feature map into a constant. A graph with such a constant is wrong for larger
    images, and ONNX Runtime and OpenVINO do not check the size. So if the sides may vary, the model is traced with
    larger and larger images until the graph takes images of twice their size.
    """
    problem = "torch.export cannot trace the model"
    free = {0: Dim.DYNAMIC, 2: Dim.AUTO, 3: Dim.AUTO} if dynamic else {0: Dim.DYNAMIC}
    for scale in SCALES if dynamic else (1,):
        example = images.repeat(1, 1, scale, scale)
        with quiet(), as_value_error(problem):
            program = torch.export.export(model, (example,), dynamic_shapes=(free,))
        larger = *example.shape[:2], *(2 * side for side in example.shape[2:])
        refused = refusal(program, larger) if dynamic else None
        if not refused:
            return program
        problem = f"--dynamic needs a model that also takes images of {larger[2]} x {larger[3]}"
    raise ValueError(f"torch.export fixes the sides of the images ({refused}): give a larger --img-size")


def refusal(program: ExportedProgram, shape: Sequence[int]) -> str | None:
    """Return why a program does not take images of this shape, or None if it takes them. Only shapes are computed."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            program.module()(torch.empty(shape))
    except (AssertionError, RuntimeError) as error:  # torch.export: "Guard failed: images.size()[2] <= 32"
        return str(error).partition("\n")[0]
    return None


@contextmanager
def as_value_error(problem: str) -> Iterator[None]:
    """Turn an exporter's error, of whatever type, into a ValueError whose message begins with `problem`."""
    try:
        yield
    except Exception as error:
        lines = [*filter(None, map(str.strip, str(error).splitlines())), type(error).__name__]
        # Lines that end with a colon only announce the reason, and OpenVINO lists operators after "-- ".
        first = next(i for i, line in enumerate(lines) if not line.endswith(":"))
        reasons = lines[: first + 1] + [line for line in lines if line.startswith("-- ")][:1]
        raise ValueError(f"{problem}: {' '.join(reasons)}") from error


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn an OSError or RuntimeError of an engine that writes a file into an OSError that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(file.parent).free / 1e6
        raise OSError(f"{file} could not be written ({reason(error)}; {free:,.1f} MB are free on the disk)") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which warn about their own deprecated calls and log their progress."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def sums_saturate(instructions: Collection[str]) -> bool:
    """Return whether int8 kernels can overflow on a processor with these instructions.

    On x86 without VNNI, the engines add pairs of 8-bit products in 16 bits, which can overflow. Weights of 7 bits avoid
    this, and give the same results on processors with VNNI.
    """
    return "avx2" in instructions and not any(name.endswith(("vnni", "amx_int8")) for name in instructions)
