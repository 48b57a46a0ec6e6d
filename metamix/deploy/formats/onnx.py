"""Write ONNX files with torch's exporter, and run and quantize them with ONNX Runtime."""

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from metamix.layers.graph import for_onnx
from metamix.utils.extras import need
from metamix.utils.system import processor

from .base import INPUT, Batches, Format, Graph, Run, as_value_error, quiet, sums_saturate, to_program, writing

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # operations that are quantized


def write(graph: Graph, file: Path) -> None:
    """Write a graph as ONNX with torch's exporter, which builds on torch.export."""
    need("onnx"), need("onnxscript")
    with for_onnx():
        recorded = to_program(graph.model, graph.images, graph.dynamic)
    with quiet(), torch.no_grad(), as_value_error("torch cannot convert the model to ONNX"):
        program = torch.onnx.export(
            recorded, input_names=[INPUT], output_names=list(graph.outputs), dynamo=True, verbose=False
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # removes stack traces, which contain paths of this machine
    with writing(file):
        program.save(str(file), external_data=False)


def open_onnx(file: Path, threads: int | None = None, precision: str = "fp32", shape: Any = None) -> Run:
    """Open an ONNX file in ONNX Runtime, on the CPU."""
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs)))


class OnnxFile:
    """Quantize an ONNX model with ONNX Runtime, which inserts pairs of QuantizeLinear and DequantizeLinear."""

    def __init__(self, file: Path, folder: Path):
        onnx, shapes = need("onnx"), need("onnxruntime.quantization.shape_inference")
        # Preparation folds constants and infers shapes. `layers` holds names of nodes in the prepared file.
        self.prepared = folder / "prepared.onnx"
        shapes.quant_pre_process(str(file), str(self.prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(self.prepared)).graph
        self.layers = [node.name for node in graph.node if node.op_type in LAYERS]
        self.input = graph.input[0].name

    def quantize(self, output: Path, batches: Batches, keep: Collection[str] = ()) -> None:
        quantization = need("onnxruntime.quantization")
        feeds = ({self.input: images} for images in batches)
        reader = SimpleNamespace(get_next=lambda: next(feeds, None))
        with quiet():  # ONNX Runtime logs the layers that it skips
            quantization.quantize_static(
                str(self.prepared),
                str(output),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,  # has the fastest kernels on CPUs with VNNI
                reduce_range=sums_saturate(processor()["instructions"]),
                nodes_to_exclude=list(keep),
            )

    def open_mixed(self, quantized: Path) -> Run:
        onnx, file = need("onnx"), self.prepared.with_name("mixed.onnx")
        model, int8 = onnx.load(str(self.prepared)), onnx.compose.add_prefix(onnx.load(str(quantized)), "int8/").graph
        graph, make = model.graph, onnx.helper.make_node
        layers = {node.output[0]: node for node in graph.node if node.op_type in LAYERS}
        shared = {"int8/" + name: name for name in (self.input, *layers)}
        for node in int8.node:
            node.input[:] = [shared.get(name, name) for name in node.input]
        for name, node in layers.items():
            node.output[0] = "fp32/" + name
            graph.node.append(make("Where", ["switch/" + name, "int8/" + name, node.output[0]], [name]))
        switches = ["switch/" + name for name in layers]
        graph.node.extend([*int8.node, make("Split", ["switches"], switches, axis=0, num_outputs=len(switches))])
        graph.initializer.extend(int8.initializer)
        graph.input.append(onnx.helper.make_tensor_value_info("switches", onnx.TensorProto.BOOL, [len(switches)]))
        onnx.save(model, str(file))
        return open_onnx(file)


FORMAT = Format(
    "model.onnx",
    write,
    open_onnx,
    engine="onnxruntime",
    packages=("onnx", "onnxscript", "onnxruntime"),
    refused={
        "bf16": "ONNX Runtime has no bf16 kernels on a CPU: use --format openvino or torch with --precision bf16, or "
        "--format onnx with fp32 or int8."
    },
    quantizer=OnnxFile,
)
