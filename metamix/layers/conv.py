"""Define a convolution with a correct gradient on narrow maps, and a holder of weights that other modules apply."""

from collections.abc import Sequence

import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from .graph import fx_leaf, may_vary


@register_notrace_module
class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a correct gradient on narrow maps, which it pads with zeros before it calls torch.

    Only zero padding given as numbers is handled; any other padding is left to torch. The constructor has torch's
    arguments, since tools such as LoRA call `type(layer)` with any of them.

    Why: on a CPU in bf16, torch 2.13 leaves part of the weight's gradient uninitialized if the convolution pads an
    input that is one pixel wide or narrower than the stride.
    Reproducer: tests/layers/test_workarounds.py::test_convolution_of_a_narrow_map
    Remove when: that test skips on the oldest supported torch; use `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(x)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvWeights(nn.Module):
    """Hold the weight and the bias of a convolution that the owning module applies itself, with a transformed weight.

    Names, shapes and initial values are as in `nn.Conv2d`. This class is not a subclass of it: the convolution's
    `forward` would never be called, so tools that wrap convolutions, such as LoRA, would have no effect.
    """

    groups = 1

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], *, bias: bool = True):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        self.in_channels, self.kernel_size = in_channels, conv.kernel_size
        self.weight, self.bias = conv.weight, conv.bias


@fx_leaf
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve (B, C, H, W). Narrow maps are padded with zeros before the convolution; see `Conv2d`."""
    if not may_vary(x.shape[-1]) and x.shape[-1] < max(stride[-1], 2):
        h, w = padding
        x, padding = F.pad(x, (w, w, h, h)), (0, 0)
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
