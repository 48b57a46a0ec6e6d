"""Mix tokens by PoolFormer's average pooling: "MetaFormer Is Actually What You Need for Vision" (arXiv 2111.11418).

    y = mean(x over the K x K neighbours inside the map) - x

The block adds x, so the mixer subtracts it. The mean does not count padding, so a constant map gives zero up to
rounding, and the bias of the norm before this mixer has no effect.

The map may have any size. The cost is K * K additions per value, linear in the number of tokens.
"""

from torch import Tensor, nn

from .registry import register_mixer


@register_mixer("pooling")
class Pooling(nn.Module):
    """Mean of the neighbours minus the token: (B, C, H, W) -> (B, C, H, W).

    Args:
        pool_size: K, side of the neighbourhood in tokens; odd, so that the map keeps its size.
        subtract: whether to subtract the input, as the paper does.
    """

    def __init__(self, dim: int, *, size: tuple[int, int], pool_size: int = 3, subtract: bool = True):
        super().__init__()
        if not isinstance(pool_size, int) or pool_size < 1 or pool_size % 2 == 0:
            raise ValueError(f"pool_size is {pool_size!r}; an odd number keeps the map's size: try 3 or 5.")
        self.pool = nn.AvgPool2d(pool_size, stride=1, padding=pool_size // 2, count_include_pad=False)
        self.subtract = subtract

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x if self.subtract else self.pool(x)
