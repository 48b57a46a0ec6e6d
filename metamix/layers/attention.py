"""Compute attention fast on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import dropout
from .graph import fx_leaf

SHORT_ROW = 32  # torch's softmax in 16 bits is slow if there are fewer keys than this


@fx_leaf
def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, bias: Tensor | None = None, *, fused: bool = True
) -> Tensor:
    """Compute dropout(softmax(q k^T / sqrt(d) + bias)) v.

    Why not always `F.scaled_dot_product_attention`: on a CPU, torch 2.13 takes several times as long for it as for two
    matrix products. This holds for the backward pass in 16 bits, and for any dtype with dropout.
    Reproducer: tests/layers/test_workarounds.py::test_attention_at_16_bits
    Remove when: that test skips on the oldest supported torch, and still does if it uses float32 and dropout_p=0.1.

    Args:
        q: queries, (B, n, N, d), for n heads.
        k, v: keys and values, (B, n, M, d).
        dropout_p: probability of dropping an attention weight.
        bias: (n, N, M), added to the scaled similarities; None adds nothing.
        fused: use torch's fused attention where it is faster.

    Returns:
        The outputs, (B, n, N, d).
    """
    on_cpu = q.device.type == "cpu"
    if fused and (not on_cpu or (q.dtype.itemsize > 2 and not dropout_p)):
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    weights = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if bias is not None:
        weights = weights + bias.to(weights.dtype)
    if weights.dtype.itemsize == 2 and weights.shape[-1] < SHORT_ROW:
        weights = weights.float()  # two casts take less time than they save in the softmax
    return torch.matmul(dropout(weights.softmax(-1).to(v.dtype), dropout_p), v)
