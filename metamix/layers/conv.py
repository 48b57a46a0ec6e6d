"""Convolution that is right on maps one pixel wide."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn


@register_notrace_module
class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that pads maps one pixel wide itself.

    Why: on a CPU in bf16, torch 2.13 leaves part of the weight's gradient unwritten (it holds what was in memory) where
    the input is one pixel wide and the convolution pads it.
    Reproducer: tests/layers/test_workarounds.py::test_convolution_of_a_one_pixel_map
    Remove when: that test skips on the oldest supported torch; use `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 1 and not torch.compiler.is_exporting():
            h, w = self.padding
            return F.conv2d(F.pad(x, (w, w, h, h)), self.weight, self.bias, self.stride, 0, self.dilation)
        return super().forward(x)
