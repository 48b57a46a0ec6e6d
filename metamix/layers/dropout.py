"""Apply dropout fast on a CPU."""

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .graph import fx_leaf


@register_notrace_module
class Dropout(nn.Dropout):
    """`nn.Dropout` that calls the function `dropout` below."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


@fx_leaf
def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Set values to zero with probability `p`, and scale the others by 1 / (1 - p).

    On a CPU, `p` is rounded to a multiple of 1 / 65536, and numpy draws the mask, unless a graph is recorded or a
    transform of torch.func runs. numpy's seed is drawn from torch, so the same torch seed gives the same mask for maps
    of the same shape and memory format.

    Why: torch 2.13 draws one double for each value on a CPU, which can take most of a training step. Here, one draw of
    64 bits serves four values.
    Reproducer: tests/layers/test_workarounds.py::test_dropout_on_a_cpu
    Remove when: that test skips on the oldest supported torch.
    """
    dropped = round(p * 2**16)
    if not training or not 0 < dropped < 2**16 or x.device.type != "cpu" or is_recorded(x):
        return F.dropout(x, p, training)
    mask, count = torch.empty_like(x), x.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
    # The mask is filled in memory order, since torch takes several times as long to compare channels_last maps.
    torch.ge(bits[:count], dropped - 2**15, out=mask.as_strided((count,), (1,)))
    return x * mask.mul_(2**16 / (2**16 - dropped))


def is_recorded(x: Tensor) -> bool:
    """Return whether a graph or transform records operations on x, and so would keep numpy's mask as a constant."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) is not Tensor  # such as a fake tensor
        or is_functorch_wrapped_tensor(x)
    )
