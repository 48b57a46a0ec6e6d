"""Define norms that avoid bugs and slow paths of torch."""

import timm.layers
import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor

from .graph import fx_leaf, is_exporting


@register_notrace_module
class GroupNorm1(timm.layers.GroupNorm1):
    """timm's group norm of one group for (B, C, H, W), which can also be trained after frozen layers.

    Why: on a CPU, the backward pass of torch 2.13 crashes the process if a channels_last input needs no gradient but
    the norm's parameters do. Such an input is made contiguous.
    Reproducer: tests/layers/test_workarounds.py::test_group_norm_on_a_frozen_input
    Remove when: that test skips on the oldest supported torch; use `timm.layers.GroupNorm1`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters(recurse=False)):
            x = contiguous_if_frozen(x)
        return super().forward(x)


@fx_leaf
def contiguous_if_frozen(x: Tensor) -> Tensor:
    """Return the map; make it contiguous if it needs no gradient."""
    return x if x.requires_grad else x.contiguous()


class Float32LayerNorm2d(timm.layers.LayerNorm2d):
    """timm's layer norm over the channels of (B, C, H, W), computed at least in float32.

    Why: on a CPU, the backward pass of torch 2.13's layer norm takes up to five times as long in 16 bits as in 32.
    Reproducer: tests/layers/test_workarounds.py::test_layer_norm_at_16_bits
    Remove when: that test skips on the oldest supported torch; use `timm.layers.LayerNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm_2d(x, self.weight, self.bias, self.eps)


@fx_leaf
def layer_norm_2d(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise (B, C, H, W) over C.

    Why not `F.layer_norm` in a compiled graph too: between a strided and a 1x1 convolution, torch 2.13's inductor
    fails to order the strides of the permuted map when the image size changes. No speed is lost, since inductor
    fuses the sums over C anyway.
    Reproducer: tests/layers/test_workarounds.py::test_layer_norm_compiled_for_any_size
    Remove when: that test skips on the oldest supported torch.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_compiling() and not is_exporting():
        var, mean = torch.var_mean(x.to(wide), dim=1, correction=0, keepdim=True)
        y = (x - mean) * (var + eps).rsqrt() * weight[:, None, None].to(wide) + bias[:, None, None].to(wide)
        return y.to(x.dtype)
    rows = x.permute(0, 2, 3, 1).to(wide)
    y = F.layer_norm(rows, weight.shape, weight.to(wide), bias.to(wide), eps)
    return y.to(x.dtype).permute(0, 3, 1, 2)
