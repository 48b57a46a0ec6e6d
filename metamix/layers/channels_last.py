"""Check and change the memory format of maps; define GELU and global pooling that are fast in channels_last."""

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import register_notrace_module
from torch import Tensor, nn

from .graph import fx_leaf


def is_channels_last(x: Tensor) -> bool:
    """Return whether x is a map (B, C, H, W) in channels_last format: the channels of a pixel are adjacent in memory.

    Why not `x.is_contiguous(memory_format=torch.channels_last)`: torch 2.13 raises an error in `torch.func.vmap`.
    Reproducer: tests/layers/test_workarounds.py::test_memory_format_inside_vmap
    Remove when: that test skips on the oldest supported torch.
    """
    return x.ndim == 4 and x.movedim(1, -1).is_contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """Return the map (B, C, H, W) in channels_last format; copy it if it has a different format.

    Why not `x.contiguous(memory_format=torch.channels_last)`: for the same reason as in `is_channels_last`.
    """
    return x.movedim(1, -1).contiguous().movedim(3, 1)


@register_notrace_module
class GELU(nn.GELU):
    """`nn.GELU` that is also fast on channels_last maps.

    Why: torch 2.13's fast CPU kernel takes only contiguous tensors, so `nn.GELU` takes 1.5 times as long on a
    channels_last map, and twice as long in bf16 on some processors. Here the map is viewed as contiguous rows.
    Reproducer: tests/layers/test_workarounds.py::test_gelu_of_a_channels_last_map
    Remove when: that test skips on the oldest supported torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, self.approximate)


@fx_leaf
def gelu(x: Tensor, approximate: str) -> Tensor:
    """Apply GELU to a tensor of any shape; view a channels_last map as contiguous rows."""
    # A compiled graph needs no view: inductor generates its own kernel, and fails on views if map sizes change.
    if is_channels_last(x) and not torch.compiler.is_compiling():
        return F.gelu(x.movedim(1, -1), approximate=approximate).movedim(3, 1)
    return F.gelu(x, approximate=approximate)


@register_notrace_module
class GlobalPool(SelectAdaptivePool2d):
    """timm's global pooling, whose average has a channels_last gradient for a channels_last map.

    Why: the gradient of torch 2.13's `mean((2, 3))` is contiguous. Without a norm after the blocks (WaveMix,
    NiNformer), that gradient flows through the residual connections of all blocks and slows down every block.
    Reproducer: tests/layers/test_workarounds.py::test_gradient_of_timms_global_mean_is_contiguous
    Remove when: that test skips on the oldest supported torch; use `timm.layers.SelectAdaptivePool2d`.
    """

    def __init__(self, pool_type: str):
        super().__init__(pool_type=pool_type, flatten=bool(pool_type))

    def forward(self, x: Tensor) -> Tensor:
        return global_mean(x) if self.pool_type == "avg" else super().forward(x)


@fx_leaf
def global_mean(x: Tensor) -> Tensor:
    """Average (B, C, H, W) over H and W -> (B, C)."""
    return x.movedim(1, -1).mean((1, 2)) if is_channels_last(x) else x.mean((2, 3))
