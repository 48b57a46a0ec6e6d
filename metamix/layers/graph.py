"""Support graph capture by torch.fx, torch.export and torch.jit."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TypeVar, cast

import einops
import torch
from torch.fx import Proxy

Function = TypeVar("Function", bound=Callable)


def fx_leaf(function: Function) -> Function:
    """Make `function`, whose first argument is a tensor, one node of a `torch.fx` graph.

    FX cannot trace through conditions on shapes. `torch.fx.wrap` does the same, but in one module's namespace only.
    """

    @wraps(function)
    def call(x, *args, **kwargs):
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", call, (x, *args), kwargs)
        return function(x, *args, **kwargs)

    return cast(Function, call)


rearrange = fx_leaf(einops.rearrange)
rearrange.__module__ = __name__  # a saved graph finds the function by its module and name


def is_exporting() -> bool:
    """Return whether torch.export records the model.

    Why not `torch.compiler.is_exporting`: in torch 2.9 it is also True in torch.compile, and compiled models would take
    the branches for exports.
    Reproducer: tests/layers/test_workarounds.py::test_exporting_is_not_compiling
    Remove when: that test skips on the oldest supported torch.
    """
    return torch.compiler._is_exporting_flag


_for_onnx = ContextVar("_for_onnx", default=False)


@contextmanager
def for_onnx() -> Iterator[None]:
    """Make `is_for_onnx` true inside the block, in which torch.export records a model for conversion to ONNX."""
    token = _for_onnx.set(True)
    try:
        yield
    finally:
        _for_onnx.reset(token)


def is_for_onnx() -> bool:
    """Return whether a model is being recorded for ONNX, by torch's exporter or inside `for_onnx`."""
    return _for_onnx.get() or torch.onnx.is_in_onnx_export()


def may_vary(*sizes: int) -> bool:
    """Return whether `torch.export` records a graph in which any of these sizes can differ from the example input's.

    A condition on such a size would become a guard: the graph would only accept sizes for which the condition has the
    same outcome as for the example input.
    """
    return is_exporting() and any(isinstance(n, torch.SymInt) for n in sizes)


def warn_if_traced() -> None:
    """Warn during `torch.jit.trace`: its graph runs at any image size, but is correct only at the example's size."""
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        warnings.warn(
            "torch.jit.trace records a graph that is correct for the example's image size only. For any size use "
            "torch.export.export(model, (images,), dynamic_shapes=...).",
            stacklevel=3,
        )
