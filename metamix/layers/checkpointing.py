"""Save memory by gradient checkpointing: keep only a layer's input, and recompute the layer in the backward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from metamix.utils.running_statistics import keep_statistics


def checkpointed(layer: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute function(x), the forward pass of `layer`, with gradient checkpointing."""
    if torch.compiler.is_compiling():  # a compiled graph updates statistics only once, and takes no `context_fn`
        return checkpoint(function, x)
    # The backward pass repeats the forward pass. It must not update the statistics of batch norms again.
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), keep_statistics(layer)))


class GradCheckpointing(nn.Module):
    """Add the method of timm's models that turns gradient checkpointing on or off."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off in all layers that have it."""
        layer: Any
        for layer in self.modules():
            if hasattr(layer, "grad_checkpointing"):
                layer.grad_checkpointing = enable
