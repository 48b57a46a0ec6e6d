"""What a format of exported models is: `Format`; and how a model becomes a program of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

INPUT = "images"  # name of the graph's input

Run = Callable[[np.ndarray], list[np.ndarray]]


class GraphError(ValueError):
    """A model cannot be written as a graph."""


@dataclass(frozen=True)
class Graph:
    """What to write: a model, and how its graph is recorded."""

    model: nn.Module  # in evaluation mode, fused
    images: Tensor  # an example, (2 or more, C, H, W); the batch may always vary
    outputs: Sequence[str]  # names of the outputs
    dynamic: bool = False  # whether height and width may vary
    precision: str = "fp32"  # "fp32" or "bf16"
    compile: bool = False  # whether the graph is also compiled for this CPU, in a format that can


class Quantizer(Protocol):
    """A model file that can be quantized."""

    layers: list[str]  # names of its convolutions and matrix products

    def quantize(self, output: Path, batches: Sequence[np.ndarray], keep: Collection[str] = ()) -> None:
        """Write the int8 model to `output`; the layers in `keep` stay in fp32.

        The batches are calibration images, prepared, (n, C, H, W) float32 each.
        """


@dataclass(frozen=True)
class Format:
    """A format of exported models."""

    file: str  # name of its main file
    write: Callable[[Graph, Path], None]  # writes that file
    open: Callable[[Path, int | None, str], Run]  # (file, threads, precision); None for the engine's own threads
    packages: tuple[str, ...] = ()  # that writing and running need beyond torch
    refused: Mapping[str, str] = field(default_factory=dict)  # precisions it is not written in: what to do instead
    quantizer: Callable[[Path, Path], Quantizer] | None = None  # (file, folder for temporary files)
    int8_packages: tuple[str, ...] = ()  # that quantization needs besides

    def packages_for(self, precision: str) -> tuple[str, ...]:
        """Return the packages that a precision needs beyond torch."""
        return self.packages + (self.int8_packages if precision == "int8" else ())


@torch.no_grad()
def to_program(model: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """Record a model with torch.export; arguments as in `Graph`. Raises `GraphError` if it cannot be recorded."""
    with quiet(), as_graph_error("torch.export cannot record the model"):
        return torch.export.export(model, (images,), dynamic_shapes=(free_sides(dynamic),))


def free_sides(dynamic: bool) -> dict[int, Any]:
    """Return the sides of the images that may vary, as torch.export takes them."""
    return {0: Dim.DYNAMIC, 2: Dim.AUTO, 3: Dim.AUTO} if dynamic else {0: Dim.DYNAMIC}


@contextmanager
def as_graph_error(problem: str) -> Iterator[None]:
    """Turn what an exporter raises into a `GraphError` that begins with `problem`; exporters raise many types."""
    try:
        yield
    except Exception as error:
        lines = [*filter(None, map(str.strip, str(error).splitlines())), type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # a first line may only announce the reason
        raise GraphError(f"{problem}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: they warn of their own deprecated calls and log their progress."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def sums_saturate(instructions: Collection[str]) -> bool:
    """Return whether the engines' kernels for a processor add pairs of products of 8 bits in 16 bits, which overflow.

    They do so on x86 without VNNI. Weights of 7 bits avoid it, and run the same on processors with VNNI.
    """
    return "avx2" in instructions and not any(name.endswith(("vnni", "amx_int8")) for name in instructions)
