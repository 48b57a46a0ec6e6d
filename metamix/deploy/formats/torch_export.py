"""Write and run torch.export programs, which AOTInductor can compile for this CPU."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metamix.utils.checks import DoesNotFit
from metamix.utils.files import atomic_write
from metamix.utils.text import package_logger

from .base import Format, Graph, Run, as_value_error, quiet, refusal, to_program

PROGRAM, COMPILED = "model.pt2", "model.compiled.pt2"

log = package_logger(__name__)


class Bfloat16(nn.Module):
    """Run a model in bf16, with images and outputs in float32. The model is converted in place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Any:
        outputs = self.model(images.to(torch.bfloat16))
        return tree_map(lambda x: x.float() if x.is_floating_point() else x, outputs)


def write(graph: Graph, file: Path) -> None:
    """Write the program of a graph as .pt2 and, if `graph.compile` is true, a compiled package next to it."""
    model = Bfloat16(graph.model) if graph.precision == "bf16" else graph.model
    program = to_program(model, graph.images, graph.dynamic)
    # A program that was traced with larger images may refuse images of the requested size.
    if graph.dynamic and (refused := refusal(program, graph.images.shape)):
        height, width = graph.images.shape[2:]
        raise ValueError(
            f"torch.export cannot record one program for images of {height} x {width} and for larger ones ({refused}): "
            f"give a larger --img-size, or --format onnx or openvino"
        )
    content = io.BytesIO()  # torch 2.13 may crash if it writes to a full disk itself
    with quiet():
        torch.export.save(program, content)
    with atomic_write(file) as opened:
        opened.write(content.getbuffer())
    if graph.compile:
        from torch._inductor import aoti_compile_and_package  # takes seconds to import

        with quiet(), as_value_error("AOTInductor cannot compile the model"):  # there may be no C++ compiler
            aoti_compile_and_package(program, package_path=str(file.with_name(COMPILED)))


def open_program(file: Path, threads: int | None = None, precision: str = "fp32", shape: Any = None) -> Run:
    """Load a program or a compiled package.

    If this machine cannot load the package, load the program next to it instead.
    """
    if threads:
        torch.set_num_threads(threads)
    package = load_compiled(file) if file.name == COMPILED else None
    if file.name == COMPILED and package is None:
        file = file.with_name(PROGRAM)
    program = package or torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = program(torch.from_numpy(images))
        except AssertionError as error:  # torch.export: "Guard failed: images.size()[2] >= 65"
            height, width = images.shape[2:]
            raise DoesNotFit(
                f"{file} does not take images of {height} x {width} ({error}): resize them, or export to ONNX"
            ) from error
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [output.numpy() for output in outputs]

    return run


def load_compiled(file: Path) -> Callable[[Tensor], Any] | None:
    """Load an AOTInductor package; warn and return None if it cannot be loaded, for example on another CPU."""
    from torch._inductor import aoti_load_package  # takes seconds to import

    try:
        return aoti_load_package(str(file))
    except (RuntimeError, OSError) as error:
        log.warning("%s cannot be loaded here (%s): using the uncompiled program", file, str(error).partition("\n")[0])
        return None


FORMAT = Format(
    PROGRAM,
    write,
    open_program,
    more_files=(COMPILED,),
    compiled=COMPILED,
    runs_code="loading a torch.export program unpickles parts of it, which can run any code",
    refused={"int8": "--format torch does not support int8: use --format openvino or onnx, which are also faster."},
)
