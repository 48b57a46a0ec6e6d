"""Attention with the reductions of "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).

    y_i = proj(sum_j softmax_j(s(x_i, x_j) / sqrt(d)) value(x_j))        in each head of d = C / heads channels

    qk = "separate"     s = (Wq x_i) . (Wk x_j)         the usual similarity
         "collapsed"    s = (W x_i) . x_j               W = Wk^T Wq as one matrix, section 3.2; for one head only, with
                                                        more it costs parameters instead of saving them
         "shared"       s = (Wq x_i) . (Wq x_j)         symmetric, section 3.4, as in the paper's experiments
         "cholesky"     s = (T^T x_i) . (T^T x_j)       symmetric; T is lower triangular with d (d + 1) / 2 entries

    value = False       value(x_j) = x_j and no proj: y is a convex combination of tokens, section 3.3

T starts with a standard deviation of 1 / sqrt(d). A plain normal start makes similarities of the order of d^2: then
every token attends to itself alone, and training stays at chance level.

Any size. Cost is quadratic in the number of tokens. With `context` it is linear: keys and values come from the map
averaged over that grid (or repeated, if the map is smaller), and every token keeps its query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import Dropout, attention, average_to, fx_leaf, parse_size, rearrange
from metamix.utils.text import nearest

from .registry import register_mixer

QK = ("separate", "collapsed", "shared", "cholesky")


@register_mixer("minattn")
class MinAttn(nn.Module):
    """Attention with fewer matrices: (B, C, H, W) -> (B, C, H, W).

    Args:
        num_heads: heads; must divide `dim`.
        qk: form of the similarity: "separate", "collapsed", "shared" or "cholesky", see above.
        value: whether to use the value map and the output projection.
        context: side or (h, w) of the grid that keys and values are averaged to, at most `size`; None for all tokens.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
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
        context = x if self.context is None else average_to(x, self.context)  # (B, C, h, w)
        q = self.query(x)
        key = self.query if self.symmetric else self.key
        k = q if self.symmetric and context is x else key(context)
        v = self.value(context)
        q, k, v = (rearrange(t, "b (n d) h w -> b n (h w) d", n=self.heads) for t in (q, k, v))
        y = attention(q, k, v, self.attn_drop.p if self.training else 0.0)  # (B, heads, H W, d)
        return self.drop(self.proj(rearrange(y, "b n (h w) d -> b (n d) h w", h=x.shape[-2])))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state`: the map size changes `context`, but no parameter."""
        return state


class Cholesky(nn.Module):
    """T^T x in each head, (B, heads * d, H, W) -> the same shape; T T^T is the symmetric matrix of the similarity."""

    def __init__(self, heads: int, d: int):
        super().__init__()
        self.entries = nn.Parameter(torch.empty(heads, d * (d + 1) // 2))  # of each T, row by row
        nn.init.normal_(self.entries, std=d**-0.5)
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        kernel = rearrange(triangular(self.entries, self.d), "n i o -> (n o) i 1 1")
        return F.conv2d(x, kernel, groups=len(self.entries))


@fx_leaf
def triangular(entries: Tensor, d: int) -> Tensor:
    """Fill lower triangular matrices row by row: (n, d * (d + 1) / 2) -> (n, d, d)."""
    row, column = torch.tril_indices(d, d, device=entries.device)
    matrices = entries.new_zeros(len(entries), d, d)
    matrices[:, row, column] = entries
    return matrices
