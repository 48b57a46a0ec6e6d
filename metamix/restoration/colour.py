"""Convert between the colour spaces of ITU-R BT.601, for images (..., 3, H, W) with values from 0 to 1."""

import torch
from torch import Tensor

# Rows are Y, Cb, Cr in studio range (16 to 235, and 16 to 240), as MATLAB's rgb2ycbcr has them.
TO_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
OFFSETS = (16.0, 128.0, 128.0)
LUMA = (0.299, 0.587, 0.114)


def to_ycbcr(images: Tensor) -> Tensor:
    """Convert RGB to Y, Cb and Cr in studio range, divided by 255."""
    return (_mix(images, TO_YCBCR) + _column(images, OFFSETS)) / 255


def to_rgb(images: Tensor) -> Tensor:
    """Convert Y, Cb and Cr in studio range, divided by 255, to RGB."""
    inverse = torch.tensor(TO_YCBCR, dtype=torch.float64).inverse()
    return _mix(255 * images - _column(images, OFFSETS), inverse.tolist())


def to_y(images: Tensor) -> Tensor:
    """Return the luminance in studio range, divided by 255: (..., 1, H, W), from 16 / 255 to 235 / 255."""
    return (_mix(images, TO_YCBCR[:1]) + OFFSETS[0]) / 255


def to_grey(images: Tensor) -> Tensor:
    """Return the luma in full range, 0.299 R + 0.587 G + 0.114 B: (..., 1, H, W)."""
    return _mix(images, (LUMA,))


def _mix(images: Tensor, rows: object) -> Tensor:
    return torch.einsum("rc,...chw->...rhw", images.new_tensor(rows), images)


def _column(images: Tensor, values: tuple[float, ...]) -> Tensor:
    return images.new_tensor(values)[:, None, None]
