"""Fit maps to a different height and width: pad, crop, average, resize.

A function that fits a map returns its input if there is nothing to do. In a graph exported for any size it never skips
its work, since a condition on the size would only hold for the example's size. torch itself still guards on sides of 1:
a graph that was exported from a larger map may reject a map with a side of 1, and vice versa.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph import fx_leaf, is_for_onnx, may_vary, warn_if_traced


def round_up(size: Sequence[int], multiple: Sequence[int]) -> tuple[int, int]:
    """Round `size` = (H, W) up to multiples of `multiple` = (h, w)."""
    (h, w), (mh, mw) = size, multiple
    return (h + mh - 1) // mh * mh, (w + mw - 1) // mw * mw  # torch.export proves that such products are multiples


@fx_leaf
def pad_to(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """Pad (..., H, W) with zeros, below and to the right, to the next multiples of `multiple` = (h, w)."""
    warn_if_traced()
    h, w = x.shape[-2:]
    size = round_up((h, w), multiple)
    if not may_vary(h, w) and size == (h, w):
        return x
    return F.pad(x, (0, size[1] - w, 0, size[0] - h))


@fx_leaf
def reflect_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Extend (..., H, W) below and to the right to `size` = (H', W') by reflection, repeatedly if the map is small."""
    for dim, length in zip((-2, -1), size):
        side = x.shape[dim]
        if may_vary(side, length) or side != length:
            x = x.index_select(dim, reflect_places(torch.arange(length, device=x.device), side))
    return x


def reflect_places(places: Tensor, side: int) -> Tensor:
    """Map places outside a row of `side` values to the places that they reflect: 0 1 2 3 2 1 0 1 ... for a side of 4.

    Why not `F.pad`: it reflects a row only once, so it cannot extend a row beyond twice its length.
    """
    # The period is a tensor, since the exporters to ONNX and OpenVINO support neither the maximum of a symbolic side
    # nor the remainder of a division by it.
    period = torch.full_like(places, 2 * side - 2).clamp(min=1)
    places = places % period
    return torch.minimum(places, period - places)


def resize_nearest(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks (..., H, W) to `size` = (H', W'): each pixel takes the value at its centre.

    Why not torchvision: it takes the value at the pixel's corner, so its masks are shifted by up to a pixel.
    """
    leading, sides = masks.shape[:-2], masks.shape[-2:]
    flat = masks.reshape(leading.numel(), 1, *sides)
    return F.interpolate(flat, list(size), mode="nearest-exact").reshape(*leading, *size)


@fx_leaf
def crop_to(x: Tensor, size: Sequence[int], centre: bool = False) -> Tensor:
    """Crop (..., H', W') to `size` = (H, W): the top left corner, or the centre.

    If an odd number of rows or columns is cut off around the centre, the bottom or the right side loses one more.
    """
    warn_if_traced()
    dh, dw = x.shape[-2] - size[0], x.shape[-1] - size[1]
    top, left = (dh // 2, dw // 2) if centre else (0, 0)
    if may_vary(dh, dw):
        return F.pad(x, (-left, left - dw, -top, top - dh))  # a slice with symbolic ends would add guards
    if dh == 0 and dw == 0:
        return x
    return x[..., top : top + size[0], left : left + size[1]]


@fx_leaf
def resize_to(x: Tensor, size: Sequence[int], mode: str = "bicubic", *, antialias: bool = False) -> Tensor:
    """Resample (B, C, H', W') to `size` = (H, W); `mode` is "bicubic" or "bilinear".

    With `antialias`, a map that shrinks is smoothed first.
    """
    warn_if_traced()
    size = tuple(size)
    if not may_vary(*x.shape[-2:], *size) and tuple(x.shape[-2:]) == size:
        return x
    if antialias:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # torch 2.13 cannot antialias in 16 bits on a CPU
        return F.interpolate(wide, size=size, mode=mode, align_corners=False, antialias=True).to(x.dtype)
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


@fx_leaf
def average_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Average (B, C, H', W') over the cells of a grid of `size` = (H, W), as adaptive average pooling does.

    Cells overlap unless H divides H' and W divides W', so the map may also be smaller than the grid.

    Why not always `F.adaptive_avg_pool2d`: torch 2.13 converts it to ONNX for the example's size only, and it may
    refuse unequal cells on Apple GPUs. Two matrix products compute the averages there.
    Reproducer: tests/layers/test_workarounds.py::test_adaptive_pooling_in_onnx
    Remove when: that test skips on the oldest supported torch.
    """
    warn_if_traced()
    h, w = x.shape[-2:]
    if not may_vary(h, w):
        if (h, w) == tuple(size):
            return x
        if h % size[0] == 0 and w % size[1] == 0:
            return F.avg_pool2d(x, (h // size[0], w // size[1]))  # faster, in OpenVINO too
    if (may_vary(h, w) and is_for_onnx()) or x.device.type == "mps":
        return averages(h, size[0], x) @ x @ averages(w, size[1], x).mT
    return F.adaptive_avg_pool2d(x, (size[0], size[1]))


def averages(length: int, cells: int, like: Tensor) -> Tensor:
    """Return the matrix (cells, length) of adaptive average pooling along one side, in the dtype of `like`."""
    cell, place = torch.arange(cells, device=like.device), torch.arange(length, device=like.device)
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = (place >= first[:, None]) & (place < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)
