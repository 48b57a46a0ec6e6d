"""The gate of NiNformer: "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function"
(arXiv 2403.02411).

    y = Linear(x) * Mixer(x)                    element by element; nothing bounds the gate

    Mixer(x): v = x + MLP_tokens(norm(x)),  v + MLP_channels(norm(v))        one whole MLP-Mixer block inside the gate

The token MLP belongs to the H * W tokens of `grid`, the trained map by default. A map of any other size is averaged
to the grid, the gate is made there and resampled bilinearly to the map. So a grid smaller than the map keeps the cost linear
in the number of tokens; without one it is quadratic, 2 N * token_dim multiply-adds per channel.
"""

from einops import rearrange
from timm.layers import LayerNorm2d, Mlp
from torch import Tensor, nn

from .registry import register_mixer
from .spatial import resize_to


@register_mixer("nin")
class Nin(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        token_dim, channel_dim: hidden widths of the two MLPs (the paper's d_ffn for both), 2 C by default.
        grid: (h, w) on which the gate is made; None for the map's own `size`. A larger one than the map is cut to it.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        token_dim: int | None = None,
        channel_dim: int | None = None,
        grid: tuple[int, int] | None = None,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        self.grid = tuple(min(g, s) for g, s in zip(grid or size, size))
        tokens = self.grid[0] * self.grid[1]
        self.value = nn.Conv2d(dim, dim, 1)
        self.token_norm = LayerNorm2d(dim, eps=1e-5)
        self.token_mlp = Mlp(tokens, token_dim or 2 * dim, drop=proj_drop, use_conv=True)
        self.channel_norm = LayerNorm2d(dim, eps=1e-5)
        self.channel_mlp = Mlp(dim, channel_dim or 2 * dim, drop=proj_drop, use_conv=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = resize_to(self.gate(resize_to(x, self.grid, "area")), x.shape[-2:], "bilinear")
        return self.value(x) * gate

    def gate(self, x: Tensor) -> Tensor:
        h, w = self.grid
        t = rearrange(self.token_norm(x), "b c h w -> b (h w) 1 c")  # tokens where a 1x1 convolution has its channels
        x = x + rearrange(self.token_mlp(t), "b (h w) 1 c -> b c h w", h=h, w=w)
        return x + self.channel_mlp(self.channel_norm(x))
