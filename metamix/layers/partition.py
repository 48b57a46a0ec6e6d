"""Cut maps into sets of tokens (blocks or grids), so that a linear layer can mix the tokens of each set."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graph import fx_leaf, may_vary, rearrange
from .spatial import crop_to

# How the kh x kw tokens of a set lie on the map: side by side, or one in each of kh x kw cells.
BLOCK = "(nh kh) (nw kw)"
GRID = "(kh nh) (kw nw)"


@fx_leaf
def to_sets(x: Tensor, set_size: Sequence[int], layout: str) -> Tensor:
    """Cut a map into sets of tokens: (B, C, H, W) -> (B, kh * kw, number of sets, C).

    A 1x1 convolution can then mix the tokens of each set. H and W must be multiples of `set_size` = (kh, kw). `layout`
    is BLOCK or GRID.
    """
    (h, w), (kh, kw) = x.shape[-2:], set_size
    nh, nw = h // kh, w // kw
    if may_vary(nh, nw):
        # torch.export would fix whether a side has one set or several. With an extra row and column of sets, each
        # side always has several. Padding adds whole blocks, so a grid is first sorted into blocks.
        if layout == GRID:
            x = x[:, :, grid_order(nh, kh, x)][..., grid_order(nw, kw, x)]
        x, nh, nw, layout = F.pad(x, (0, kw, 0, kh)), nh + 1, nw + 1, BLOCK
    # First move the channels to the last dimension: they are last in memory, so engines copy runs of C values.
    return rearrange(x.movedim(1, -1), f"b {layout} c -> b (kh kw) (nh nw) c", kh=kh, kw=kw, nh=nh, nw=nw)


@fx_leaf
def from_sets(x: Tensor, size: Sequence[int], set_size: Sequence[int], layout: str) -> Tensor:
    """Invert `to_sets` for a map of `size` = (H, W): (B, kh * kw, number of sets, C) -> (B, C, H, W)."""
    (h, w), (kh, kw) = size, set_size
    nh, nw = h // kh, w // kw
    if may_vary(nh, nw):
        x = crop_to(from_layout(x, BLOCK, kh=kh, kw=kw, nh=nh + 1, nw=nw + 1), size)
        if layout == GRID:
            x = x[:, :, grid_order(nh, kh, x).argsort()][..., grid_order(nw, kw, x).argsort()]
        return x
    return from_layout(x, layout, kh=kh, kw=kw, nh=nh, nw=nw)


def from_layout(x: Tensor, layout: str, **sides: int) -> Tensor:
    """Arrange sets as a channels_last map: (B, kh * kw, nh * nw, C) -> (B, C, H, W)."""
    return rearrange(x, f"b (kh kw) (nh nw) c -> b {layout} c", **sides).movedim(3, 1)


def mix_sets(x: Tensor, linear: nn.Module, set_size: Sequence[int], layout: str) -> Tensor:
    """Apply a 1x1 convolution over tokens to each set: (B, C, H, W) -> (B, C, H, W)."""
    sets = linear(to_sets(x, set_size, layout))  # (B, kh * kw, sets, C)
    return from_sets(sets, x.shape[-2:], set_size, layout)


def grid_order(n: int, k: int, like: Tensor) -> Tensor:
    """Return the indices that reorder the k * n places along a side from "(k n)" to "(n k)", in einops' notation."""
    place = torch.arange(k * n, device=like.device)
    return place % k * n + place // k
