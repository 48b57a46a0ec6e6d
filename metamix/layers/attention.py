"""Attention that is fast on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(q: Tensor, k: Tensor, v: Tensor, drop: nn.Dropout) -> Tensor:
    """Compute drop(softmax(q k^T / sqrt(d))) v.

    Why not always `F.scaled_dot_product_attention`: on a CPU, torch 2.13's kernel for 16-bit types is several times
    slower than two matrix products, and none is fused with dropout.
    Reproducer: tests/layers/test_workarounds.py::test_attention_at_16_bits
    Remove when: that test skips on the oldest supported torch.

    Args:
        q: queries, (B, n, N, d).
        k, v: keys and values, (B, n, M, d).
        drop: dropout of the attention weights.

    Returns:
        (B, n, N, d).
    """
    dropping = drop.training and drop.p > 0
    if q.device.type != "cpu" or (q.dtype.itemsize > 2 and not dropping):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=drop.p if dropping else 0.0)
    weights = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if weights.dtype.itemsize == 2 and weights.shape[-1] < 32:
        weights = weights.float()  # faster: torch 2.13's 16-bit softmax is slow on short rows
    return torch.matmul(drop(weights.softmax(-1).to(v.dtype)), v)
