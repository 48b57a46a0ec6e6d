"""Group norm of one group."""

import timm.layers
import torch
from timm.models import register_notrace_module
from torch import Tensor


@register_notrace_module
class GroupNorm1(timm.layers.GroupNorm1):
    """timm's group norm of one group, over (B, C, H, W), that can stand on frozen layers.

    There torch 2.13 dies on a CPU: in the backward pass of a channels_last input that needs no gradient itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        trains = any(p.requires_grad for p in self.parameters(recurse=False))
        if torch.is_grad_enabled() and trains and not x.requires_grad:
            x = x.contiguous()
        return super().forward(x)
