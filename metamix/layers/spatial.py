"""Maps of any size: the three ways in which a mixer with fixed spatial weights meets another height and width.

Each returns its input unchanged where there is nothing to do, except under `torch.export`: a graph made for every size
may not branch on the example's, so there they always run. What is left is torch's own: a graph exported where no map
has a side of 1 may refuse sizes where one has, and the reverse.
"""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import register_notrace_function
from torch import Tensor


def pad_to(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zeros below and to the right of (..., H, W), up to the next multiples of `multiple` = (h, w)."""
    (h, w), (mh, mw) = x.shape[-2:], multiple
    # Counted in whole cells, so that an exported graph can see that the padded size divides.
    size = (h + mh - 1) // mh * mh, (w + mw - 1) // mw * mw
    if not torch.compiler.is_exporting() and size == (h, w):
        return x
    return F.pad(x, (0, size[1] - w, 0, size[0] - h))


def crop_to(x: Tensor, size: tuple[int, int], centre: bool = False) -> Tensor:
    """The first, or with `centre` the middle, H x W of (..., H', W'), `size` = (H, W); the spare row goes below."""
    dh, dw = x.shape[-2] - size[0], x.shape[-1] - size[1]
    if torch.compiler.is_exporting():
        top, left = (dh // 2, dw // 2) if centre else (0, 0)
        return F.pad(x, (-left, left - dw, -top, top - dh))  # a slice with symbolic ends would guard on the example
    if dh == 0 and dw == 0:
        return x
    top, left = (dh // 2, dw // 2) if centre else (0, 0)
    return x[..., top : top + size[0], left : left + size[1]]


@register_notrace_function
def resize_to(x: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(B, C, H', W') resampled to `size` = (H, W). `mode` as in `F.interpolate`; "area" averages, for smaller maps."""
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=None if mode == "area" else False)


def parse_size(option: str, given: int | tuple[int, int]) -> tuple[int, int]:
    """Turn an option's value, one number or (height, width), into (height, width).

    Raises:
        ValueError: `given` is not one or two integers of at least 1.
    """
    size = to_2tuple(given)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"{option} is {given!r}: give one number of at least 1, or two of them, (height, width).")
    return size
