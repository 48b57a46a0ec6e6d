"""Multiply-adds of a model."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of a model for one image, on the meta device.

    Convolutions, matrix products and attention count: half of what torch's flop counter says. Norms, activations,
    pooling, resampling, a sliced wavelet transform and other element-wise work do not count.

    Args:
        model: the model, on any device; it is not changed.
        input_size: (C, H, W).
    """
    model = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta", dtype=next(model.parameters()).dtype))
    return counter.get_total_flops() // 2
