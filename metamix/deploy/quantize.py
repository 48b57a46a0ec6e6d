"""Quantize model files to int8 after training: NNCF for OpenVINO, ONNX Runtime for ONNX.

    result = quantize_file(Path("model.xml"), calibration_batches, score, max_drop=0.3)

Weights get a scale per output channel, activations one scale per tensor from the calibration images. If the score drops
by more than the limit, layers are ranked by how much closer the outputs come to those of fp32 when only that layer is
left out. Then the first 1, 2, 4, ... of them stay in fp32, until the limit is met.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from metamix.utils.system import processor

from .artifact import HINTS
from .extras import need
from .graphs import quiet
from .runtime import Run, open_file

Score = Callable[[Run], float]
OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
ONNX_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


class QuantizationError(ValueError):
    """A model cannot be quantized within the limit."""


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing a file.

    Attributes:
        fp32: score before.
        int8: score after.
        layers: number of convolutions and matrix products.
        kept: names of the layers that stay in fp32.
    """

    fp32: float
    int8: float
    layers: int
    kept: tuple[str, ...]

    @property
    def drop(self) -> float:
        """Return the points lost."""
        return self.fp32 - self.int8


class Quantizer(Protocol):
    """A model file that can be quantized.

    Attributes:
        layers: names of its convolutions and matrix products.
    """

    layers: list[str]

    def quantize(self, output: Path, batches: Sequence[np.ndarray], keep: Collection[str] = ()) -> None:
        """Write the int8 model.

        Args:
            output: file to write.
            batches: calibration images, prepared, (n, C, H, W) float32 each.
            keep: layers that stay in fp32.
        """


def quantize_file(file: Path, batches: Iterable[np.ndarray], score: Score, *, max_drop: float) -> Quantized:
    """Quantize an ONNX or OpenVINO file in place.

    Args:
        file: .onnx or .xml, in fp32.
        batches: calibration images, prepared, (n, C, H, W) float32 each.
        score: accuracy of a model in points, higher is better, on training images that are not in `batches`.
        max_drop: largest accepted loss of score in points.

    Raises:
        QuantizationError: the model has nothing to quantize, or loses more than `max_drop`. The file is unchanged.
        ValueError: there are no calibration images.
        ImportError: nncf or onnxruntime is missing.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("there are no calibration images: give some of the training split")
    with TemporaryDirectory() as folder:
        quantizer: Quantizer = OnnxFile(file, Path(folder)) if file.suffix == ".onnx" else OpenVinoFile(file)
        if not quantizer.layers:
            raise QuantizationError(f"{file} has no convolution and no matrix product: int8 would change nothing")
        output = Path(folder) / f"int8{file.suffix}"
        result = search(quantizer, file, output, batches, score, max_drop)
        for part in output.parent.glob("int8.*"):  # .xml has a .bin
            file.with_suffix(part.suffix).unlink()  # a reader may have mapped it into memory
            shutil.move(part, file.with_suffix(part.suffix))
    return result


def search(
    quantizer: Quantizer, file: Path, output: Path, batches: Sequence[np.ndarray], score: Score, max_drop: float
) -> Quantized:
    """Write the int8 model to `output`, with few layers in fp32; arguments as in `quantize_file`."""
    before = score(open_file(file))
    ranked: list[str] = []
    count = 0
    while True:
        quantizer.quantize(output, batches, ranked[:count])
        result = Quantized(
            before, score(open_file(output, hints=HINTS["int8"])), len(quantizer.layers), tuple(ranked[:count])
        )
        if result.drop <= max_drop:
            return result
        count = max(1, 2 * count)
        if count > len(quantizer.layers) // 2:
            raise QuantizationError(
                f"int8 loses {result.drop:.2f} points on training images held out, with {len(result.kept)} of "
                f"{result.layers} layers in fp32; the limit is {max_drop:g}: accept a larger --max-drop, or take fp32 "
                f"or bf16"
            )
        ranked = ranked or rank(quantizer, file, output, batches[0])


def rank(quantizer: Quantizer, file: Path, scratch: Path, images: np.ndarray) -> list[str]:
    """Sort the layers by the error of the int8 model in which only that layer stays in fp32, smallest first.

    Args:
        quantizer: quantizes the file.
        file: the model in fp32.
        scratch: file to write int8 models to.
        images: used for calibration, and for the comparison of outputs.
    """
    expected = open_file(file)(images)

    def error(layer: str) -> float:
        quantizer.quantize(scratch, [images], [layer])
        run = open_file(scratch, hints=HINTS["int8"])
        return sum(float(np.square(a - b).mean()) for a, b in zip(run(images), expected))

    return sorted(quantizer.layers, key=error)


class OpenVinoFile:
    """An OpenVINO model, an .xml file, that NNCF quantizes."""

    def __init__(self, file: Path):
        self.model = need("openvino").Core().read_model(str(file))
        self.layers = [op.get_friendly_name() for op in self.model.get_ops() if op.get_type_name() in OPENVINO_LAYERS]

    def quantize(self, output: Path, batches: Sequence[np.ndarray], keep: Collection[str] = ()) -> None:
        nncf, openvino = need("nncf"), need("openvino")
        nncf.set_log_level(logging.ERROR)
        fix = nncf.OverflowFix.ENABLE if sums_saturate(processor()["instructions"]) else nncf.OverflowFix.FIRST_LAYER
        with redirect_stdout(io.StringIO()):  # of progress bars
            model = nncf.quantize(
                self.model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                preset=nncf.QuantizationPreset.MIXED,
                # Keeps norms, gates and residual sums of token mixers in fp32; loses a third as much accuracy.
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=list(keep)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            )
        output.with_suffix(".bin").unlink(missing_ok=True)  # a model that is still open has mapped it into memory
        openvino.save_model(model, str(output), compress_to_fp16=False)


class OnnxFile:
    """An ONNX model that ONNX Runtime quantizes, with pairs of QuantizeLinear and DequantizeLinear.

    Args:
        file: .onnx.
        folder: for temporary files.
    """

    def __init__(self, file: Path, folder: Path):
        onnx, shapes = need("onnx"), need("onnxruntime.quantization.shape_inference")
        self.prepared = folder / "prepared.onnx"  # folded and with shapes; quantization refers to its names
        shapes.quant_pre_process(str(file), str(self.prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(self.prepared)).graph
        self.layers = [node.name for node in graph.node if node.op_type in ONNX_LAYERS]
        self.input = graph.input[0].name

    def quantize(self, output: Path, batches: Sequence[np.ndarray], keep: Collection[str] = ()) -> None:
        quantization = need("onnxruntime.quantization")
        reader = BatchReader(self.input, batches)
        with quiet():  # it logs what it leaves out
            quantization.quantize_static(
                str(self.prepared),
                str(output),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(ONNX_LAYERS),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,  # the fastest kernels on a CPU with VNNI
                reduce_range=sums_saturate(processor()["instructions"]),
                nodes_to_exclude=list(keep),
            )


def sums_saturate(instructions: Collection[str]) -> bool:
    """Return whether the engines' kernels for a processor add pairs of products of 8 bits in 16 bits, which overflow.

    They do so on x86 without VNNI. Weights of 7 bits avoid it, and run the same on processors with VNNI.
    """
    return "avx2" in instructions and not any(name.endswith(("vnni", "amx_int8")) for name in instructions)


class BatchReader:
    """Hand batches to ONNX Runtime's calibration, which asks for one after another."""

    def __init__(self, name: str, batches: Sequence[np.ndarray]):
        self.name, self.batches = name, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {self.name: images}
