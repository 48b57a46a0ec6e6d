"""Write a model as a graph: torch.export, ONNX, OpenVINO IR.

The batch may always vary, height and width only if `dynamic`. The input is called `images`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from .extras import need

INPUT = "images"


class GraphError(ValueError):
    """A model cannot be written as a graph."""


class Bfloat16(nn.Module):
    """Compute a model in bf16, with images and outputs in float32. The model is converted in place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Any:
        outputs = self.model(images.to(torch.bfloat16))
        return tree_map(lambda x: x.float() if x.is_floating_point() else x, outputs)


@torch.no_grad()
def to_program(model: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """Record a model with torch.export.

    Args:
        model: in evaluation mode.
        images: an example, (2 or more, C, H, W).
        dynamic: whether height and width may vary.

    Raises:
        GraphError: torch.export cannot record it.
    """
    with quiet(), as_graph_error("torch.export cannot record the model"):
        return torch.export.export(model, (images,), dynamic_shapes=(free_sides(dynamic),))


def free_sides(dynamic: bool) -> dict[int, Any]:
    """Return the sides of the images that may vary, as torch.export takes them."""
    return {0: Dim.DYNAMIC, 2: Dim.AUTO, 3: Dim.AUTO} if dynamic else {0: Dim.DYNAMIC}


def write_torch(program: ExportedProgram, file: Path) -> None:
    """Write the program of `to_program` as .pt2."""
    with quiet():
        torch.export.save(program, file)


def compile_torch(program: ExportedProgram, file: Path) -> None:
    """Compile the program of `to_program` for this CPU with AOTInductor, and write the package.

    Raises:
        GraphError: it cannot be compiled, for example without a C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package  # takes seconds to import

    with quiet(), as_graph_error("AOTInductor cannot compile the model"):
        aoti_compile_and_package(program, package_path=str(file))


def write_onnx(model: nn.Module, images: Tensor, file: Path, dynamic: bool, outputs: Sequence[str]) -> None:
    """Write a model as ONNX, by torch's exporter on top of torch.export; arguments as in `to_program`.

    Raises:
        GraphError: torch cannot convert it.
        ImportError: onnx or onnxscript is missing.
    """
    need("onnx"), need("onnxscript")
    with quiet(), torch.no_grad(), as_graph_error("torch cannot convert the model to ONNX"):
        program = torch.onnx.export(
            model,
            (images,),
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=(free_sides(dynamic),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.save(str(file), external_data=False)


def to_openvino(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """Convert the program of `to_program` to an `openvino.Model`.

    Raises:
        GraphError: OpenVINO cannot convert it.
        ImportError: openvino is missing.
    """
    openvino = need("openvino")
    with quiet(), as_graph_error("OpenVINO cannot convert the model"):
        model = openvino.convert_model(program)
    # convert_model leaves height and width free, which costs a tenth of the speed.
    model.reshape([side if isinstance(side, int) else -1 for side in input_shape(program)])
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, outputs):
        output.get_tensor().set_names({name})
    return model


def input_shape(program: ExportedProgram) -> Sequence[Any]:
    """Return the shape of a program's images: an int, or a symbol if a side may vary."""
    name = program.graph_signature.user_inputs[0]
    return next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)


def write_openvino(model: Any, file: Path) -> None:
    """Write an `openvino.Model` as .xml and .bin, with its weights as they are."""
    need("openvino").save_model(model, str(file), compress_to_fp16=False)


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
