"""Layers that mixers and skeleton share: group norm, GELU, dropout and the channel MLP."""

import numpy as np
import timm.layers
import torch
from timm.models import register_notrace_module
from torch import Tensor, nn


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


@register_notrace_module
class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU at a fraction of the time, with the rate rounded to 1 / 65536.

    torch draws a double for every value there, which took most of a training step. Here one draw of 64 bits, numpy's,
    serves four values. The seed is torch's: maps of one memory format get the same masks from the same seed.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor  # but a mask is not
        if not self.training or recorded or not 0 < dropped < 2**16 or x.device.type != "cpu":
            return super().forward(x)
        mask, count = torch.empty_like(x), x.numel()
        seed = torch.empty((), dtype=torch.int64).random_().item()
        bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
        # In the order of memory: torch compares maps in channels_last several times slower.
        torch.ge(bits[:count], dropped - 2**15, out=mask.as_strided((count,), (1,)))
        return x * mask.mul_(2**16 / (2**16 - dropped))


class Mlp(nn.Module):
    """1x1 convolution, activation, dropout, 1x1 convolution, dropout: (B, dim, H, W) -> (B, dim, H, W)."""

    def __init__(self, dim: int, hidden: int, *, act_layer: type[nn.Module] = GELU, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = act_layer()
        self.drop1 = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop2 = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


def is_channels_last(x: Tensor) -> bool:
    """Whether x is a map whose channels lie side by side in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
