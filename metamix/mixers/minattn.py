"""Mix tokens by reduced attention: "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).

    y_i = proj(sum_j softmax_j(s(x_i, x_j) / sqrt(d)) value(x_j))        in each head of d = C / heads channels

    qk = "separate"     s = (Wq x_i) . (Wk x_j)         the usual similarity
         "collapsed"    s = (W x_i) . x_j               W = Wk^T Wq as one matrix, section 3.2; for one head only, since
                                                        with more heads it would add parameters instead of saving them
         "shared"       s = (Wq x_i) . (Wq x_j)         symmetric, section 3.4
         "cholesky"     s = (T^T x_i) . (T^T x_j)       symmetric; T is lower triangular with d (d + 1) / 2 entries,
                                                        as in the published table

    value = False       value(x_j) = x_j, without proj: y is a convex combination of tokens, section 3.3

Departures: `context`, `positions` and the initial values of T are ours.

- `context` is the size of a grid. Keys and values then come from the map averaged to this grid (or enlarged, if the map
  is smaller). Every token keeps its query. The cost is then linear in the number of tokens; without `context` it is
  quadratic.
- `positions` adds a bias to s / sqrt(d). The bias is learned for each head and each offset between two tokens. At the
  start, each head favours a point one token away. The biases are resampled for maps of other sizes.
- The entries of T start with a standard deviation of 1 / sqrt(d). With a standard deviation of 1, every token attends
  only to itself, and training stays at chance level.

The map may have any size.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn

from metamix.layers import Dropout, attention, average_to, fx_leaf, rearrange, resize_to
from metamix.utils.checks import check_choice, check_counts, parse_size

from .registry import register_mixer

QK = ("separate", "collapsed", "shared", "cholesky")


@register_mixer("minattn")
class MinAttn(nn.Module):
    """Attention with fewer matrices: (B, C, H, W) -> (B, C, H, W).

    Args:
        num_heads: number of heads; must divide `dim`, and be 1 with qk="collapsed".
        qk: form of the similarity: "separate", "collapsed", "shared" or "cholesky"; see above.
        value: whether to use the value map and the output projection.
        context: side or (h, w) of the grid for keys and values, limited to `size`; None for all tokens.
        positions: whether to add a learned bias for each head and offset to the similarities.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.
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
        positions: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        check_choice("qk", qk, QK)
        check_counts(1, num_heads=num_heads)
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the {dim} channels: choose a divisor of {dim}.")
        if qk == "collapsed" and num_heads > 1:
            raise ValueError(f"qk='collapsed' is for one head, but num_heads is {num_heads}: use 1, or qk='shared'.")
        self.heads = num_heads
        self.symmetric = qk in ("shared", "cholesky")
        self.context: tuple[int, int] | None = None
        if context is not None:
            h, w = parse_size("context", context)
            self.context = min(h, size[0]), min(w, size[1])
        self.bias = PositionBias(num_heads, self.context or size) if positions else None
        self.attn_drop = Dropout(attn_drop)
        self.fused = use_fused_attn()  # timm.layers.set_fused_attn changes it for models that are built later
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
        q, k, v = (self.split_heads(t) for t in (q, k, v))
        bias = None if self.bias is None else self.bias(x, context)
        dropout = self.attn_drop.p if self.training else 0.0
        y = attention(q, k, v, dropout, bias, fused=self.fused)  # (B, heads, H W, d)
        return self.drop(self.proj(rearrange(y, "b n (h w) d -> b (n d) h w", h=x.shape[-2])))

    def split_heads(self, x: Tensor) -> Tensor:
        """Split the channels of a map among the heads: (B, C, H, W) -> (B, heads, H W, d)."""
        # First move the channels to the last dimension: engines keep them last in memory, so this costs nothing, and
        # OpenVINO merges the second transpose into its attention.
        return rearrange(x.movedim(1, -1).flatten(1, 2), "b l (n d) -> b n l d", n=self.heads)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the biases of a state saved for another map size; no other parameter depends on the size."""
        if self.bias is None:
            return state
        return state | {"bias.table": resize_to(state["bias.table"], self.bias.table.shape[-2:])}


class PositionBias(nn.Module):
    """A learned bias for each head and each offset between a token and a token of the context.

    (B, C, H, W), (B, C, h, w) -> (heads, H W, h w). Queries between the context's grid points get interpolated biases.

    At the start, each head favours one point on a circle around the query, with a radius of one token. The biases
    start as -2 log(1 + d^2), where d is the distance from this point in tokens. They fall slowly with d, so that a head
    can also learn to attend to distant tokens.

    The table holds a bias for each offset in a context of `size`. It is resampled for other sizes.
    """

    def __init__(self, heads: int, size: tuple[int, int]):
        super().__init__()
        angle = torch.arange(heads)[:, None, None] * (2 * math.pi / heads)
        row, column = (torch.arange(1 - side, side) for side in size)
        d = torch.hypot(row[:, None] - angle.sin(), column - angle.cos())  # (heads, 2 h - 1, 2 w - 1)
        self.table = nn.Parameter(-2 * torch.log1p(d**2)[None])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        bias = offset_biases(context, self.table)  # (heads, h w, h w)
        if context is x:
            return bias
        bias = rearrange(bias, "n (h w) k -> 1 (n k) h w", h=context.shape[-2])
        bias = resize_to(bias, x.shape[-2:], "bilinear")  # (1, heads h w, H, W)
        return rearrange(bias, "1 (n k) h w -> n (h w) k", n=self.table.shape[1])


@fx_leaf
def offset_biases(context: Tensor, table: Tensor) -> Tensor:
    """Look up the bias of each pair of tokens: a map (B, C, h, w), a table (1, heads, h', w') -> (heads, h w, h w).

    The table is indexed by the offset: the query's position minus the key's position.
    """
    h, w = context.shape[-2:]
    table = resize_to(table, (2 * h - 1, 2 * w - 1))[0]
    row, column = torch.arange(h, device=table.device), torch.arange(w, device=table.device)
    rows, columns = row[:, None] - row + h - 1, column[:, None] - column + w - 1
    bias = table[:, rows[:, None, :, None], columns[None, :, None, :]]  # (heads, h, w, h, w)
    return bias.flatten(3).flatten(1, 2)


class Cholesky(nn.Module):
    """T^T x in each head: (B, heads * d, H, W) -> (B, heads * d, H, W). The similarity then has the matrix T T^T."""

    def __init__(self, heads: int, d: int):
        super().__init__()
        self.entries = nn.Parameter(torch.empty(heads, d * (d + 1) // 2))  # entries of each T, row by row
        nn.init.normal_(self.entries, std=d**-0.5)
        self.heads = heads
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        kernel = rearrange(triangular(self.entries, self.d), "n i o -> (n o) i 1 1")
        return F.conv2d(x, kernel, groups=self.heads)


@fx_leaf
def triangular(entries: Tensor, d: int) -> Tensor:
    """Fill lower triangular matrices row by row: (n, d * (d + 1) / 2) -> (n, d, d)."""
    row, column = torch.tril_indices(d, d, device=entries.device)
    matrices = entries.new_zeros(len(entries), d, d)
    matrices[:, row, column] = entries
    return matrices
