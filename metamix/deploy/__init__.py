"""Make a trained model small and fast for inference, and check that its outputs stay the same.

    from metamix.deploy import benchmark, export, fuse, load_exported

    export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")       writes a folder
    model = load_exported("raft-onnx")                                              loads it: model(images) -> logits
    fuse(network)                                                                   makes a faster copy of a module
    benchmark(["metaformer_raft_s12", "resnet18"])                                  times models in each engine

The formats onnx and openvino need packages that training does not need: pip install 'metamix[deploy]'.
"""

from importlib import import_module
from typing import Any

from .benchmark import benchmark
from .fuse import fuse
from .runtime import load_exported

__all__ = ["benchmark", "export", "fuse", "load_exported"]


def __getattr__(name: str) -> Any:
    """Import `export` when it is used, since its module imports the tasks, which import this package."""
    if name == "export":
        return import_module("metamix.tasks.export").export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
