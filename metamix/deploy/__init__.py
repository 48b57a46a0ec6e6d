"""Turn a trained model into a small, fast one, and check that it still computes the same.

    from metamix.deploy import benchmark, export, fuse, load_exported

    export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")       a folder: model, JSON, report
    model = load_exported("raft-onnx")                                              runs it: model(images) -> logits
    fuse(model)                                                                     a leaner copy of a torch model
    benchmark(["metaformer_raft_s12", "resnet18"])                                  how fast models are in each engine

The formats need packages that training does not: pip install 'metamix[deploy]'.
"""

from importlib import import_module
from typing import Any

from .benchmark import benchmark
from .fuse import fuse
from .runtime import load_exported

__all__ = ["benchmark", "export", "fuse", "load_exported"]


def __getattr__(name: str) -> Any:
    """Return `metamix.export`, which knows the tasks and so lies above this package."""
    if name == "export":
        return import_module("metamix.tasks.export").export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
