"""Apply GELU fast on channels_last maps."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from .graph import fx_leaf
from .memory_format import is_channels_last


@register_notrace_module
class GELU(nn.GELU):
    """`nn.GELU` for tensors of any shape.

    Why: torch 2.13's fast CPU kernel takes only contiguous tensors, so `nn.GELU` takes twice as long on a channels_last
    map in bf16. Here the map is viewed as contiguous rows.
    Reproducer: tests/layers/test_workarounds.py::test_gelu_of_a_channels_last_map
    Remove when: that test skips on the oldest supported torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, self.approximate)


@fx_leaf
def gelu(x: Tensor, approximate: str) -> Tensor:
    """Apply GELU to (B, C, H, W); view a channels_last map as contiguous rows."""
    # Not in compiled graphs: inductor makes its own kernel, and fails on such views if map sizes change.
    if is_channels_last(x) and not torch.compiler.is_compiling():
        return F.gelu(x.movedim(1, -1), approximate=approximate).movedim(-1, 1)
    return F.gelu(x, approximate=approximate)
