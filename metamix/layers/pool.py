"""Global pooling."""

from timm.layers import SelectAdaptivePool2d
from timm.models import register_notrace_module
from torch import Tensor

from .graph import fx_leaf
from .memory_format import is_channels_last


@register_notrace_module
class GlobalPool(SelectAdaptivePool2d):
    """timm's global pooling, with a channels_last gradient for a channels_last map.

    Why: the gradient of torch 2.13's `mean((2, 3))` is contiguous. Without a norm after the blocks (WaveMix,
    NiNformer), that gradient runs along the residuals through all blocks and slows down each of them.
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
