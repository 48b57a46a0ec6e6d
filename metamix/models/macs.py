"""Multiply-adds of a model."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of `model` for one image of `input_size` = (C, H, W).

    Convolutions, matrix products and attention count, half of what torch's flop counter says; norms, activations,
    pooling, resampling, a sliced wavelet transform and other element-wise work do not.
    """
    model = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta", dtype=next(model.parameters()).dtype))
    return counter.get_total_flops() // 2
