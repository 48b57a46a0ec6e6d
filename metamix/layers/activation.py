"""GELU with a fast path for channels_last maps."""

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from .memory_format import is_channels_last


@register_notrace_module
class GELU(nn.GELU):
    """`nn.GELU` in its erf form, on maps and rows of any shape.

    torch's faster kernel for CPUs takes no channels_last map, but a contiguous view of it: half the time in bf16.
    """

    def __init__(self):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if is_channels_last(x) and not torch.compiler.is_compiling():  # inductor writes a kernel of its own
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)
        return super().forward(x)
