"""Write OpenVINO's intermediate representation, run it with OpenVINO, and quantize it with NNCF.

Norms are rewritten into the form that OpenVINO computes fastest. Their values stay the same up to rounding.
"""

import io
import logging
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.deploy.fuse import GROUP_NORMS, LAYER_NORMS
from metamix.utils.extras import need
from metamix.utils.system import processor

from .base import INPUT, Batches, Format, Graph, Run, as_value_error, quiet, sums_saturate, to_program, writing

LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")  # operations that are quantized
MODE = "coordinate_transformation_mode"  # an attribute of resizing operations
# INFERENCE_PRECISION_HINT for each precision. In an int8 model it sets the precision of norms, gates and sums.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


class ChannelNorm(nn.Module):
    """Normalise (B, C, H, W) over C without moving the channels last, with the parameters of `norm`.

    OpenVINO 2026.4 computes timm's `LayerNorm2d` with transposes and several kernels, but fuses a norm that is written
    as sums over the channels. A model of such norms and 1x1 convolutions on 56 x 56 feature maps becomes 1.5 times as
    fast in fp32 and 2.2 times as fast in int8.
    """

    def __init__(self, norm: LayerNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return x * self.weight[None, :, None, None] + self.bias[None, :, None, None]


class GroupNorm(nn.Module):
    """Normalise the groups of (B, C, H, W), then apply the weight and the bias of `norm`, each as (1, C, 1, 1).

    OpenVINO 2026.4 adds a weight and a bias of shape (C, 1, 1) to every group norm, even if they are 1 and 0. Because
    of their lower rank, the norm needs a different memory layout than the convolutions, and OpenVINO reorders the
    feature maps. So a norm with one group, which most models have, is computed from sums: metaformer_raft_s12
    is then 11 % faster in int8.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            x = x - x.mean((1, 2, 3), keepdim=True)
            x = x / torch.sqrt(x.square().mean((1, 2, 3), keepdim=True) + self.eps)
        else:
            x = F.group_norm(x, self.groups, eps=self.eps)
        return x * self.weight[None, :, None, None] + self.bias[None, :, None, None]


def to_openvino_form(module: Any) -> nn.Module:
    """Replace the norms inside a module, in place, with `ChannelNorm` and `GroupNorm`.

    Return the module or, for a norm, its replacement.
    """
    for name, child in module.named_children():
        setattr(module, name, to_openvino_form(child))
    if type(module) in LAYER_NORMS and module.elementwise_affine:
        return ChannelNorm(module)
    if type(module) in GROUP_NORMS and module.affine:
        return GroupNorm(module)
    return module


def write(graph: Graph, file: Path) -> None:
    """Write a graph as .xml and .bin. The weights are not rounded to fp16."""
    openvino = need("openvino")
    program = to_program(to_openvino_form(graph.model), graph.images, graph.dynamic)
    with quiet(), as_value_error("OpenVINO cannot convert the model"):
        model = openvino.convert_model(program)
    for op in model.get_ops():
        # Along an output side of one pixel, pytorch_half_pixel takes the first input pixel; torch takes the centre.
        if op.get_type_name() == "Interpolate" and op.get_attributes()[MODE] == "pytorch_half_pixel":
            op.set_attribute(MODE, "half_pixel")
    name = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    # convert_model leaves height and width free, which costs a tenth of the speed.
    model.reshape([n if isinstance(n, int) else -1 for n in shape])  # dynamic dimensions are symbols
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, graph.outputs):
        output.get_tensor().set_names({name})
    with writing(file):
        openvino.save_model(model, str(file), compress_to_fp16=False)


def open_openvino(model: Any, threads: int | None = None, precision: str = "fp32", shape: Any = None) -> Run:
    """Open a model in OpenVINO, on the CPU; arguments as in `compile_openvino`."""
    compiled, turn = compile_openvino(model, threads, precision, shape), Lock()

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        with turn:  # a compiled model has one inference request, whose images another thread would overwrite
            return [np.array(output) for output in compiled(inputs).values()]

    return run


def compile_openvino(
    model: Any, threads: int | None = None, precision: str = "fp32", shape: Any = None, **properties: Any
) -> Any:
    """Compile a model for OpenVINO's CPU plugin, and return the `openvino.CompiledModel`.

    Args:
        model: path of an .xml file, or an `openvino.Model`.
        threads: number of threads; None for OpenVINO's default.
        precision: precision of the model. If the CPU lacks bf16, layers that are not quantized run in fp32.
        shape: shape of all images; None for the shapes that the model accepts.
        properties: further properties of OpenVINO.
    """
    core = need("openvino").Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[precision if has_bf16 else "fp32"], **properties}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(str(model)) if isinstance(model, (str, Path)) else model
    if shape is not None:
        model.reshape(list(shape))
    return core.compile_model(model, "CPU", settings)


class OpenVinoFile:
    """Quantize an OpenVINO model with NNCF. `folder` is not used, since NNCF needs no temporary files."""

    def __init__(self, file: Path, folder: Path):
        self.model = need("openvino").Core().read_model(str(file))
        self.layers = [op.get_friendly_name() for op in self.model.get_ops() if op.get_type_name() in LAYERS]

    def quantize(self, output: Path, batches: Batches, keep: Collection[str] = ()) -> None:
        nncf, openvino = need("nncf"), need("openvino")
        nncf.set_log_level(logging.ERROR)
        fix = nncf.OverflowFix.ENABLE if sums_saturate(processor()["instructions"]) else nncf.OverflowFix.FIRST_LAYER
        # Bias correction doubles the time of quantization, and raised the output errors of all seven nano models.
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix, disable_bias_correction=True)
        with redirect_stdout(io.StringIO()):  # hides progress bars
            model = nncf.quantize(
                self.model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                preset=nncf.QuantizationPreset.MIXED,
                # This leaves norms, gates and residual sums unquantized, which cuts the loss of accuracy to a third.
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=list(keep)),
                advanced_parameters=advanced,
            )
        output.with_suffix(".bin").unlink(missing_ok=True)  # an open model may have mapped the old file
        with writing(output):
            openvino.save_model(model, str(output), compress_to_fp16=False)

    def open_mixed(self, quantized: Path) -> Run:
        openvino = need("openvino")
        ops, fp32, int8 = openvino.opset13, self.model.clone(), openvino.Core().read_model(str(quantized))
        exact, rounded = ({op.get_friendly_name(): op.output(0) for op in model.get_ops()} for model in (fp32, int8))
        switches = ops.parameter([len(self.layers)], np.bool_)
        for switch, name in zip(ops.split(switches, 0, len(self.layers)).outputs(), self.layers):
            readers = exact[name].get_target_inputs() | rounded[name].get_target_inputs()
            mixed = ops.select(switch, rounded[name], exact[name]).output(0)
            for reader in readers:
                reader.replace_source_output(mixed)
        for reader in int8.inputs[0].get_target_inputs():
            reader.replace_source_output(fp32.inputs[0])
        return open_openvino(openvino.Model(fp32.get_results(), [*fp32.get_parameters(), switches]))


FORMAT = Format(
    "model.xml",
    write,
    open_openvino,
    engine="openvino",
    more_files=("model.bin",),
    packages=("openvino",),
    quantizer=OpenVinoFile,
    int8_packages=("nncf",),
)
