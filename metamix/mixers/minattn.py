"""Attention with the reductions of "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).

    y = softmax(s(x_i, x_j) / sqrt(d)) V(x_j), then a projection        per head of d = C / heads channels

    qk = "separate"     s = (Wq x_i) . (Wk x_j)         the usual
         "collapsed"    s = (W x_i) . x_j               Wq^T Wk as one matrix, section 3.2; one head only: with more it
                                                        would cost parameters, not save them
         "shared"       s = (Wq x_i) . (Wq x_j)         symmetric, section 3.4: as the paper ran it
         "cholesky"     s = (T^T x_i) . (T^T x_j)       symmetric, T lower-triangular, d (d + 1) / 2 parameters a head

    value = False       V(x_j) = x_j and no projection: y is a convex combination of tokens, section 3.3

T starts with a standard deviation of 1 / sqrt(d). A plain normal start makes similarities of the order of d^2, every
token attends to itself alone, and the model trains to chance (seen in a third party's tables).

Any size. Cost is quadratic in the number of tokens; with `context` it is linear: keys and values then come from the map
averaged to that grid (or repeated, where the map is smaller), while every token keeps its query.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from metamix.layers import Dropout, attention, parse_size, resize_to
from metamix.utils.text import nearest

from .registry import register_mixer

QK = ("separate", "collapsed", "shared", "cholesky")


@register_mixer("minattn")
class MinAttn(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        num_heads: heads; divides `dim`.
        qk: what similarity is made of, see above.
        value: keep the value map and the output projection.
        context: side or (h, w) of the grid that keys and values are averaged to, cut to `size`; None for all tokens.
        attn_drop: dropout of attention weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        num_heads: int = 1,
        qk: str = "separate",
        value: bool = True,
        context: int | tuple[int, int] | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if qk not in QK:
            raise ValueError(f"qk is {qk!r}{nearest(qk, QK)} Accepted: {', '.join(QK)}.")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the {dim} channels: choose a divisor of {dim}.")
        if qk == "collapsed" and num_heads > 1:
            raise ValueError(
                f"qk='collapsed' is one matrix for one head, num_heads is {num_heads}: use 1, or qk='shared'."
            )
        self.heads = num_heads
        self.symmetric = qk in ("shared", "cholesky")
        self.context = None if context is None else tuple(map(min, parse_size("context", context), size))
        self.attn_drop = Dropout(attn_drop)
        d = dim // num_heads
        self.query = Cholesky(num_heads, d) if qk == "cholesky" else nn.Conv2d(dim, dim, 1)
        if not self.symmetric:
            self.key = nn.Conv2d(dim, dim, 1) if qk == "separate" else nn.Identity()
        self.value = nn.Conv2d(dim, dim, 1) if value else nn.Identity()
        self.proj = nn.Conv2d(dim, dim, 1) if value else nn.Identity()
        self.drop = Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        context = x if self.context is None else resize_to(x, self.context, "area")
        q = self.query(x)
        if self.symmetric:
            k = q if context is x else self.query(context)
        else:
            k = self.key(context)
        qkv = (rearrange(t, "b (n d) h w -> b n (h w) d", n=self.heads) for t in (q, k, self.value(context)))
        y = attention(*qkv, self.attn_drop)
        return self.drop(self.proj(rearrange(y, "b n (h w) d -> b (n d) h w", h=x.shape[-2])))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state  # `context` is what depends on the size


class Cholesky(nn.Module):
    """T^T x for each head's own channels, (B, heads * d, H, W) -> the same shape; T T^T is the symmetric matrix."""

    def __init__(self, heads: int, d: int):
        super().__init__()
        self.entries = nn.Parameter(torch.empty(heads, d * (d + 1) // 2))  # of each T, row by row
        nn.init.normal_(self.entries, std=d**-0.5)
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        row, column = torch.tril_indices(self.d, self.d, device=x.device)
        factor = self.entries.new_zeros(len(self.entries), self.d, self.d)
        factor[:, row, column] = self.entries
        kernel = rearrange(factor, "n i o -> (n o) i 1 1")
        return F.conv2d(x, kernel, groups=len(self.entries))
