"""Mix tokens with the gate of NiNformer.

"NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function" (arXiv 2403.02411):

    y = value(x) * gate(x)                            element by element; the gate is not bounded

    gate(x) = v + MLP_channels(norm(v)),   v = x + MLP_tokens(norm(x))        one MLP-Mixer block

The token MLP mixes the tokens of a `grid`, which by default has the size of the map in training. A map of a different
size is averaged to the grid (or enlarged, if it is smaller), and the gate is resampled bilinearly to the size of the
map. So the token MLP costs 2 * token_dim multiply-adds per channel and token of the grid, whatever the map's size.

Departure: the author's token MLP takes a fixed number of tokens; `grid` and the MLPs' separate widths are ours.
"""

from functools import partial

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import GELU, ConvWeights, Dropout, Mlp, average_to, rearrange, resize_to, to_channels_last
from metamix.utils.checks import check_counts, parse_size

from .registry import register_mixer


@register_mixer("nin")
class Nin(nn.Module):
    """Gate made by an MLP-Mixer block: (B, C, H, W) -> (B, C, H, W).

    Args:
        token_dim: hidden width of the token MLP (the paper's d_ffn); None for 2 C.
        channel_dim: hidden width of the channel MLP (the paper's d_ffn); None for 2 C.
        grid: side or (h, w) of the grid on which the gate is computed, limited to `size`; None for `size`.
        proj_drop: dropout rate in both MLPs.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        token_dim: int | None = None,
        channel_dim: int | None = None,
        grid: int | tuple[int, int] | None = None,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        token_dim, channel_dim = (2 * dim if width is None else width for width in (token_dim, channel_dim))
        check_counts(1, token_dim=token_dim, channel_dim=channel_dim)
        h, w = parse_size("grid", size if grid is None else grid)
        self.grid = min(h, size[0]), min(w, size[1])
        self.value = nn.Conv2d(dim, dim, 1)
        self.token_norm = LayerNorm2d(dim, eps=1e-5)
        self.token_mlp = TokenMlp(self.grid, token_dim, proj_drop)
        self.channel_norm = LayerNorm2d(dim, eps=1e-5)
        self.channel_mlp = Mlp(dim, channel_dim, drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(average_to(x, self.grid))  # (B, C, *grid)
        return self.value(x) * resize_to(gate, x.shape[-2:], "bilinear")

    def gate(self, x: Tensor) -> Tensor:
        """Compute gate(x) on the grid: (B, C, *grid) -> (B, C, *grid)."""
        x = x + self.token_mlp(self.token_norm(x))
        return x + self.channel_mlp(self.channel_norm(x))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the token MLP of a state saved for another grid; rescale fc1, which sums more or fewer tokens."""
        fc1, fc2, bias = (state[f"token_mlp.{key}"] for key in ("fc1.weight", "fc2.weight", "fc2.bias"))
        h, w = fc1.shape[-2:]
        if (h, w) == self.grid:
            return state
        resample = partial(resize_to, size=self.grid, antialias=True)
        fc1 = resample(fc1) * (h * w / (self.grid[0] * self.grid[1]))
        fc2 = resample(rearrange(fc2, "(h w) i 1 1 -> 1 i h w", h=h, w=w))
        bias = resample(rearrange(bias, "(h w) -> 1 1 h w", h=h, w=w))
        return state | {
            "token_mlp.fc1.weight": fc1,
            "token_mlp.fc2.weight": rearrange(fc2, "1 i h w -> (h w) i 1 1"),
            "token_mlp.fc2.bias": rearrange(bias, "1 1 h w -> (h w)"),
        }


class TokenMlp(nn.Module):
    """Linear, GELU, dropout, Linear, dropout over the h * w tokens of (B, C, h, w); all channels share the weights."""

    def __init__(self, grid: tuple[int, int], hidden: int, drop: float):
        super().__init__()
        self.grid = grid
        self.fc1 = ConvWeights(1, hidden, grid)  # kernel of the grid's size, so that a checkpoint shows this size
        self.act = GELU()
        self.drop1 = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, grid[0] * grid[1], 1)
        self.drop2 = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.grid
        # The linear maps are fastest as channels_last 1x1 convolutions over tokens, despite the two copies.
        x = to_channels_last(rearrange(x, "b c h w -> b (h w) c 1"))
        x = F.conv2d(x, rearrange(self.fc1.weight, "o 1 h w -> o (h w) 1 1"), self.fc1.bias)  # (B, hidden, C, 1)
        x = self.drop2(self.fc2(self.drop1(self.act(x))))  # (B, h w, C, 1)
        return to_channels_last(rearrange(x, "b (h w) c 1 -> b c h w", h=h, w=w))
