"""Turn a trained model into a small, fast one, and check that it still computes the same.

    from metamix.deploy import export, fuse, load_exported

    export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")       a folder: model, JSON, report
    model = load_exported("raft-onnx")                                              runs it: model(images) -> logits
    fuse(model)                                                                     a leaner copy of a torch model

The formats need packages that training does not: pip install 'metamix[deploy]'.
"""

from .export import export
from .fuse import fuse
from .runtime import load_exported

__all__ = ["export", "fuse", "load_exported"]
