"""Run image models: reflection padding for images of any size, self-ensemble.

    self_ensemble(model, image)      the mean over eight orientations

The model is any callable that turns images (B, C, H, W) into images (B, C', s H, s W) of one scale s. `tiles.py` runs
such a callable on large images.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .spatial import round_up

ImageFunction = Callable[[Tensor], Tensor]
Size = tuple[int, int]

# Padding


def check_multiples(x: Tensor, multiple: Size, model: object) -> None:
    """Raise ValueError unless the sides of images are multiples of `multiple`, as `model` needs them in training."""
    (h, w), (mh, mw) = x.shape[-2:], multiple
    if h % mh or w % mw:
        raise ValueError(
            f"Images have {h} x {w} pixels, but {type(model).__name__} trains on multiples of {mh} x {mw}: crop or pad "
            f"them. After model.eval() it takes any size."
        )


def pad_by_reflection(x: Tensor, multiple: Size) -> tuple[Tensor, Size]:
    """Pad images by reflection to multiples of `multiple`, as MAXIM's authors do for evaluation.

    An odd side first gets one more row or column below or to the right. The rest is added in equal parts on both sides.
    If the padding is larger than the image, the reflection repeats, as in numpy; torch's padding refuses this case.

    Args:
        x: (B, C, H, W), any H and W of at least 1.
        multiple: even numbers (h, w).

    Returns:
        The padded images (B, C, H', W'), and (top, left), where the image begins in them.
    """
    h, w = x.shape[-2:]
    size = round_up((h, w), multiple)
    if size == (h, w):
        return x, (0, 0)
    (rows, top), (columns, left) = (reflected_places(n, m, x.device) for n, m in zip((h, w), size))
    return x.index_select(-2, rows).index_select(-1, columns), (top, left)


def reflected_places(n: int, padded: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the place in a row of n pixels for each of `padded` pixels, and the number of pixels before the row."""
    even = n + n % 2
    first = (padded - even) // 2
    places = torch.arange(padded, device=device) - first
    for length in (even, n):
        period = max(2 * length - 2, 1)
        places = places.remainder(period)
        places = torch.minimum(places, (period - places).remainder(period))
    return places, first


def crop(x: Tensor, start: Size, size: Size) -> Tensor:
    """Cut `size` = (H, W) pixels that begin at `start` out of images (B, C, H', W')."""
    (top, left), (h, w) = start, size
    if tuple(x.shape[-2:]) == (h, w):
        return x
    return x[..., top : top + h, left : left + w]


def shrink_image(images: Tensor, factor: int) -> Tensor:
    """Take one pixel of each cell of `factor` x `factor` pixels, the one right below the cell's centre.

    MAXIM's authors make the images of the coarser scales like this, with jax's nearest-neighbour resizing.
    """
    return images[..., factor // 2 :: factor, factor // 2 :: factor]


# Self-ensemble


@torch.no_grad()
def self_ensemble(function: ImageFunction, images: Tensor) -> Tensor:
    """Restore images in their eight orientations (flips and quarter turns) and average the results.

    The four orientations of one shape, or all eight of a square image, go through `function` as one batch.

    Args:
        function: an image model in evaluation, or any function of images.
        images: (B, C, H, W).

    Returns:
        (B, C', s H, s W) for a function of scale s.
    """
    check_evaluation(function)
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-2, -1)]
    upright, turned = torch.cat(flips), torch.cat([x.mT for x in flips])
    if images.shape[-2] == images.shape[-1]:
        upright, turned = function(torch.cat([upright, turned])).chunk(2)
    else:
        upright, turned = function(upright), function(turned)
    a, b, c, d = (upright + turned.mT).chunk(4)  # (B, C', s H, s W) each
    return (a + b.flip(-1) + c.flip(-2) + d.flip(-2, -1)) / 8


def check_evaluation(function: ImageFunction) -> None:
    """Raise ValueError for a model in training mode: it returns a list, and its batch norms would be updated."""
    if isinstance(function, nn.Module) and function.training:
        raise ValueError(f"{type(function).__name__} is in training mode: call model.eval() first.")
