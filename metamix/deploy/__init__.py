"""Turn a trained model into a small, fast one, and check that it still computes the same.

    from metamix.deploy import export, fuse, load_exported

    export("metaformer_raft_nano.cifar10", format="onnx", output="raft-onnx")       a folder: model, JSON, report
    model = load_exported("raft-onnx")                                              runs it: model(images) -> logits
    fuse(model)                                                                     a leaner copy of a torch model

The formats need packages that training does not: pip install 'metamix[deploy]'.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import load_exported

__all__ = ["load_exported"]

_HOMES = {"load_exported": "runtime"}


def __getattr__(name: str) -> Any:
    """Import the parts on first use: each needs packages that the others do not."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
