"""Run exported models: only the engine, without the code that built the model.

    model = load_exported("raft-onnx")
    logits = model(images)                  (n, C, H, W), prepared as in training

An engine takes and returns numpy arrays. `open_file` opens a single model file, for models that lie in no folder yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamix.utils.checks import DoesNotFit
from metamix.utils.system import is_out_of_memory

from .artifact import COMPILED, HINTS, Artifact, load_artifact
from .extras import need

log = logging.getLogger(__name__)

Run = Callable[[np.ndarray], list[np.ndarray]]


class ExportedModel(nn.Module):
    """An exported model, called like the model that it was made from.

    Args:
        run: the engine.
        artifact: what export.json says.
    """

    def __init__(self, run: Run, artifact: Artifact):
        super().__init__()
        self.run, self.artifact = run, artifact
        self.on_cpu = nn.Parameter(torch.empty(0), requires_grad=False)  # callers ask a parameter for the device
        self.eval()

    def forward(self, images: Any) -> Any:
        """Run the model.

        Args:
            images: (n, C, H, W) float32, a tensor or a numpy array.

        Returns:
            The output, a tensor or an array as `images` are; a tuple if there are several outputs.

        Raises:
            DoesNotFit: the model does not take images of this shape; it is a ValueError.
        """
        self.check_shape(tuple(images.shape))
        as_tensor = isinstance(images, Tensor)
        array = images.detach().float().cpu().numpy() if as_tensor else np.asarray(images, np.float32)
        try:
            outputs = self.run(np.ascontiguousarray(array))
        except ValueError:
            raise
        except Exception as error:  # each engine has its own types
            if is_out_of_memory(error):
                raise
            raise DoesNotFit(f"the exported model fails on images of shape {array.shape} ({reason(error)})") from error
        kind = [torch.from_numpy(output) for output in outputs] if as_tensor else outputs
        return kind[0] if len(kind) == 1 else tuple(kind)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise DoesNotFit if the model does not take images (n, C, H, W) of this shape."""
        wanted = self.artifact.input_shape
        if len(shape) != len(wanted) or not all(shape) or any(w not in (None, s) for w, s in zip(wanted, shape)):
            names = ("n", "C", "H", "W")
            accepted = ", ".join(name if side is None else str(side) for name, side in zip(names, wanted))
            raise DoesNotFit(
                f"images of shape {shape} are given, but the exported model takes ({accepted}): resize them, or export "
                f"again with --img-size or --dynamic"
            )


def reason(error: Exception) -> str:
    """Return the last line of an engine's message: OpenVINO's first lines name its source files."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def load_exported(folder: str | Path, *, threads: int | None = None) -> ExportedModel:
    """Load an exported model.

    Args:
        folder: what `metamix export` wrote.
        threads: number of threads for the engine; None for its default, all cores. For a torch.export model the number
            holds for all of torch in this process, since torch has no number for a single model.

    Raises:
        FileNotFoundError: the folder holds no exported model.
        ValueError: its files are damaged.
        ImportError: the engine is not installed.
    """
    artifact = load_artifact(folder)
    file = Path(folder) / artifact.file
    if not file.is_file():
        raise FileNotFoundError(f"{folder} lacks {artifact.file}: export the model again")
    try:
        run = open_file(file, threads=threads, hints=artifact.hints)
    except ImportError:
        raise
    except Exception as error:  # each engine has its own types
        raise ValueError(
            f"{file} cannot be loaded ({reason(error)}): copy the whole folder, or export it again"
        ) from error
    return ExportedModel(run, artifact)


def open_file(file: Path, *, threads: int | None = None, hints: Mapping[str, str] | None = None) -> Run:
    """Open a model file with the engine of its format.

    Args:
        file: .onnx, .xml or .pt2.
        threads: as in `load_exported`.
        hints: properties for OpenVINO.
    """
    if file.suffix == ".onnx":
        return open_onnx(file, threads)
    if file.suffix == ".xml":
        return open_openvino(file, threads, hints or {})
    return open_torch(file, threads)


def open_onnx(file: Path, threads: int | None = None) -> Run:
    """Open an ONNX file in ONNX Runtime, on the CPU."""
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def open_openvino(model: Any, threads: int | None = None, hints: Mapping[str, str] | None = None) -> Run:
    """Open a model in OpenVINO, on the CPU; arguments as in `compile_openvino`."""
    compiled = compile_openvino(model, threads, hints)
    return lambda images: [np.array(output) for output in compiled([images]).values()]


def compile_openvino(model: Any, threads: int | None = None, hints: Mapping[str, str] | None = None) -> Any:
    """Compile a model for OpenVINO's CPU plugin, and return the `openvino.CompiledModel`.

    Args:
        model: path of an .xml, or an `openvino.Model`.
        threads: as in `load_exported`.
        hints: properties. The model computes in fp32 if they name no precision, or bf16 on a CPU without it.
    """
    openvino = need("openvino")
    core = openvino.Core()
    properties: dict[str, Any] = HINTS["fp32"] | dict(hints or {})
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        properties |= HINTS["fp32"]
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(str(model)) if isinstance(model, (str, Path)) else model
    return core.compile_model(model, "CPU", properties)


def open_torch(file: Path, threads: int | None = None) -> Run:
    """Load a program of `torch.export`, or the compiled package beside it if this machine can load that."""
    if threads:
        torch.set_num_threads(threads)
    program = load_compiled(file.with_name(COMPILED)) or torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = program(torch.from_numpy(images))
        except AssertionError as error:  # of torch.export: "Guard failed: images.size()[2] >= 65"
            height, width = images.shape[2:]
            raise DoesNotFit(
                f"{file} takes no images of {height} x {width} ({error}): resize them, or export to ONNX"
            ) from error
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [output.numpy() for output in outputs]

    return run


def load_compiled(file: Path) -> Callable[[Tensor], Any] | None:
    """Load a package of AOTInductor; None, with a warning, if it was compiled for another machine or torch."""
    if not file.is_file():
        return None
    from torch._inductor import aoti_load_package  # takes seconds to import

    try:
        return aoti_load_package(str(file))
    except (RuntimeError, OSError) as error:
        log.warning("%s cannot be loaded here, the uncompiled program is used: %s", file, str(error).partition("\n")[0])
        return None
