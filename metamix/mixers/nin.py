"""The gate of NiNformer: "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function"
(arXiv 2403.02411).

    y = Linear(x) * Mixer(x)                    element by element; nothing bounds the gate

    Mixer(x): v = x + MLP_tokens(norm(x)),  v + MLP_channels(norm(v))        one whole MLP-Mixer block inside the gate

The token MLP belongs to the H * W tokens of `grid`, the trained map by default. A map of any other size is averaged to
the grid (or repeated, where it is smaller), the gate is made there and resampled bilinearly to the map. So the token
MLP costs 2 * token_dim multiply-adds per channel and token of the grid, however large the map is.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import GELU, Dropout, Mlp, parse_size, resize_to

from .registry import register_mixer


@register_mixer("nin")
class Nin(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        token_dim, channel_dim: hidden widths of the two MLPs (the paper's d_ffn for both), 2 C by default.
        grid: side or (h, w) of the grid on which the gate is made, cut to `size`; None for all of it.
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
        self.grid = tuple(map(min, parse_size("grid", size if grid is None else grid), size))
        self.value = nn.Conv2d(dim, dim, 1)
        self.token_norm = LayerNorm2d(dim, eps=1e-5)
        self.token_mlp = TokenMlp(self.grid, token_dim or 2 * dim, proj_drop)
        self.channel_norm = LayerNorm2d(dim, eps=1e-5)
        self.channel_mlp = Mlp(dim, channel_dim or 2 * dim, drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        gate = resize_to(self.gate(resize_to(x, self.grid, "area")), x.shape[-2:], "bilinear")
        return self.value(x) * gate

    def gate(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.token_norm(x))
        return x + self.channel_mlp(self.channel_norm(x))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {k: state[f"token_mlp.{k}"] for k in ("fc1.weight", "fc2.weight", "fc2.bias")}
        return {**state, **{f"token_mlp.{k}": v for k, v in self.token_mlp.adapt_state(own).items()}}


class TokenMlp(nn.Module):
    """Linear, GELU, dropout, Linear, dropout over the h * w tokens of a map (B, C, h, w), the same for each channel."""

    def __init__(self, grid: tuple[int, int], hidden: int, drop: float):
        super().__init__()
        self.grid = grid
        # A kernel as large as the map, so that a checkpoint tells the grid's shape.
        self.fc1 = nn.Conv2d(1, hidden, grid)
        self.act = GELU()
        self.drop1 = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, grid[0] * grid[1], 1)
        self.drop2 = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.grid
        # Tokens take the channels' place, side by side in memory: 1x1 convolutions are fastest so, by more than the
        # copies there and back cost.
        x = rearrange(x, "b c h w -> b (h w) c 1").contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, rearrange(self.fc1.weight, "o 1 h w -> o (h w) 1 1"), self.fc1.bias)
        x = self.drop2(self.fc2(self.drop1(self.act(x))))
        return rearrange(x, "b (h w) c 1 -> b c h w", h=h, w=w).contiguous(memory_format=torch.channels_last)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Token weights saved for another grid; those that sum over tokens are scaled: the sum of a map stays."""
        old = state["fc1.weight"].shape[-2:]
        if tuple(old) == self.grid:
            return state

        def resample(maps: Tensor) -> Tensor:
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32))  # antialiasing does not exist at 16 bits
            small = F.interpolate(wide, size=self.grid, mode="bicubic", align_corners=False, antialias=True)
            return small.to(maps.dtype)

        h, w = old
        out = rearrange(
            resample(rearrange(state["fc2.weight"], "(h w) i 1 1 -> 1 i h w", h=h, w=w)), "1 i h w -> (h w) i 1 1"
        )
        bias = rearrange(resample(rearrange(state["fc2.bias"], "(h w) -> 1 1 h w", h=h, w=w)), "1 1 h w -> (h w)")
        scale = h * w / (self.grid[0] * self.grid[1])
        return {"fc1.weight": resample(state["fc1.weight"]) * scale, "fc2.weight": out, "fc2.bias": bias}
