"""Memory formats of maps."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x is a map whose channels lie side by side in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
