"""No token mixing: the floor that every mixer has to beat.

A MetaFormer (arXiv 2111.11418) whose mixer is the identity still reaches 74.6 % on ImageNet (12 blocks, as published
with arXiv 2210.13452), since its stem and its downsampling see neighbours.

Any size; costs nothing.
"""

from torch import Tensor, nn

from .registry import register_mixer


@register_mixer("identity")
class Identity(nn.Module):
    """y = x, for (B, C, H, W)."""

    def __init__(self, dim: int, *, size: tuple[int, int]):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
