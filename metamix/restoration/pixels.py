"""Resize images, convert their colours and round them as MATLAB does, since papers on restoration use MATLAB.

As in `imresize`, shrinking widens the bicubic kernel by the factor (antialiasing), and images are reflected at their
borders. As in `rgb2ycbcr`, colours are converted by ITU-R BT.601. Colour images are (..., 3, H, W) with values from 0
to 1.
"""

import math
from typing import Any

import torch
from torch import Tensor

# Rows are Y, Cb, Cr in studio range (16 to 235, and 16 to 240), as in MATLAB's rgb2ycbcr.
TO_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
OFFSETS = (16.0, 128.0, 128.0)
LUMA = (0.299, 0.587, 0.114)


def resize_bicubic(images: Tensor, scale: float, *, rounding: bool = False) -> Tensor:
    """Resize images (..., H, W) by `scale` to (..., ceil(scale H), ceil(scale W)); compute in float64.

    Args:
        images: values from 0 to 1. The result has their dtype and device.
        scale: size of the result over the size of the images.
        rounding: clip and round to 8 bits after the rows and after the columns, as MATLAB does for images of 8 bits.
            Otherwise the result may lie a little outside the range of the images.
    """
    resized: Any = to_float64(images)
    for dim in (-2, -1):
        places, weights = _taps(resized.shape[dim], scale)
        taps = zip(places.to(resized.device), weights.to(resized.device))
        shape = (-1, 1) if dim == -2 else (-1,)
        resized = sum(resized.index_select(dim, place) * weight.view(shape) for place, weight in taps)
        resized = to_8_bits(resized) if rounding else resized
    return resized.to(images)


def to_float64(images: Tensor) -> Tensor:
    """Convert images to float64; move them to the CPU if they are on Apple's mps, which has no float64."""
    return (images.cpu() if images.device.type == "mps" else images).double()


def to_8_bits(images: Tensor) -> Tensor:
    """Clip images to values from 0 to 1, and round them to multiples of 1 / 255."""
    return to_levels(images) / 255


def to_levels(images: Tensor, highest: int = 255) -> Tensor:
    """Clip images to 0 to 1, multiply by `highest`, and round to whole numbers; halves go up, as in MATLAB."""
    # The 1e-7 also rounds up halves that floating point stores slightly too small.
    return (highest * images.clamp(0, 1) + (0.5 + 1e-7)).floor()


def _taps(length: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return source pixels and weights, (taps, length of the result) each; a tap is an element of the kernel."""
    shrink = min(scale, 1.0)
    width = 4 / shrink
    centre = (torch.arange(math.ceil(scale * length), dtype=torch.float64) + 0.5) / scale - 0.5
    first = (centre - width / 2).floor() + 1
    places = first + torch.arange(math.ceil(width) + 1, dtype=torch.float64)[:, None]
    x = (shrink * (centre - places)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys' cubic kernel with a = -0.5
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    places = places.long().remainder(2 * length)
    return torch.minimum(places, 2 * length - 1 - places), weights / weights.sum(0)


def to_ycbcr(images: Tensor) -> Tensor:
    """Convert RGB to Y, Cb and Cr in studio range, divided by 255."""
    return (_mix(images, TO_YCBCR) + _offsets(images)) / 255


def to_rgb(images: Tensor) -> Tensor:
    """Convert Y, Cb and Cr in studio range, divided by 255, to RGB."""
    inverse = torch.tensor(TO_YCBCR, dtype=torch.float64).inverse()
    return _mix(255 * images - _offsets(images), inverse.tolist())


def to_y(images: Tensor) -> Tensor:
    """Return the luminance in studio range, divided by 255: (..., 1, H, W), from 16 / 255 to 235 / 255."""
    return (_mix(images, TO_YCBCR[:1]) + OFFSETS[0]) / 255


def to_grey(images: Tensor) -> Tensor:
    """Return the luma in full range, 0.299 R + 0.587 G + 0.114 B: (..., 1, H, W)."""
    return _mix(images, (LUMA,))


def _mix(images: Tensor, rows: object) -> Tensor:
    return torch.einsum("rc,...chw->...rhw", images.new_tensor(rows), images)


def _offsets(images: Tensor) -> Tensor:
    return images.new_tensor(OFFSETS)[:, None, None]
