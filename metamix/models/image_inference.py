"""Run image models on images of any size: reflection padding, tiles, self-ensemble, local pooling.

    restore_tiles(model, photograph, tile=256, overlap=32)           a large photograph, tile by tile
    self_ensemble(model, image)                                      the mean over eight orientations
    restore_tiles(partial(self_ensemble, model), photograph)         both

Every function takes any callable that turns images (B, C, H, W) into images (B, C', s H, s W) of one scale s.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Restore = Callable[[Tensor], Tensor]
Size = tuple[int, int]

# Padding


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
    (h, w), (mh, mw) = x.shape[-2:], multiple
    size = (h + mh - 1) // mh * mh, (w + mw - 1) // mw * mw
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


# Tiles


@torch.no_grad()
def restore_tiles(
    restore: Restore, images: Tensor, *, tile: int = 256, overlap: int = 32, whole: Size | None = None
) -> Tensor:
    """Restore large images in overlapping tiles. Only the result takes memory in proportion to the image.

    Tiles lie at equal distances and overlap by at least `overlap` pixels. Overlapping results are averaged with weights
    that fall linearly towards the tile's edge, so no seam shows.

    Args:
        restore: an image model in evaluation, or a function of images.
        images: (B, C, H, W).
        tile: side of a tile in pixels; 0 restores images of any size at once.
        overlap: least overlap of neighbours in pixels, less than `tile`.
        whole: (H, W) up to which images are restored at once, without tiles; by default the size of a tile.

    Returns:
        (B, C', s H, s W) for a model of scale s.

    Raises:
        ValueError: a size is out of range, or the model is in training mode.
    """
    check_evaluation(restore)
    check_tiles(tile, overlap)
    if not tile or all(n <= most for n, most in zip(images.shape[-2:], whole or (tile, tile))):
        return restore(images)
    (b, _, h, w), result = images.shape, torch.empty(0)
    rows, columns = (tile_starts(n, tile, overlap) for n in (h, w))
    size = min(tile, h), min(tile, w)
    for i, r, c in itertools.product(range(b), range(len(rows)), range(len(columns))):
        part = images[i : i + 1, :, rows[r] : rows[r] + size[0], columns[c] : columns[c] + size[1]]
        y = restore(part.contiguous())[0]  # (C', s h, s w)
        scale = y.shape[-1] // size[1]
        if not result.numel():
            result = y.new_zeros(b, y.shape[0], scale * h, scale * w)
            row_weights, column_weights = (
                tile_weights([scale * s for s in starts], scale * n, scale * side, scale * overlap, y)
                for starts, n, side in zip((rows, columns), (h, w), size)
            )
        place = result[i, :, scale * rows[r] :, scale * columns[c] :][:, : y.shape[-2], : y.shape[-1]]
        place += y * row_weights[r][:, None] * column_weights[c]
    return result


def check_tiles(tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles of `tile` pixels reach beyond their overlap; `tile` 0 means whole images."""
    if tile < 0 or (tile and not 0 <= overlap < tile):
        raise ValueError(
            f"tile is {tile} and overlap {overlap}: give an overlap of at least 0 and less than the tile, or tile 0 "
            f"for whole images."
        )


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side of `length` pixels: at equal distances, the last one ending with it."""
    if length <= tile:
        return [0]
    gaps = math.ceil((length - tile) / (tile - overlap))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)]


def tile_weights(starts: list[int], length: int, side: int, overlap: int, like: Tensor) -> list[Tensor]:
    """Return the weights (side,) of each tile along one side of the image; at each pixel they sum to 1."""
    place = torch.arange(side, dtype=torch.float64)
    ramp = torch.minimum(place + 1, side - place).clamp(max=overlap + 1)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + side] += ramp
    return [(ramp / total[start : start + side]).to(like) for start in starts]


# Self-ensemble


@torch.no_grad()
def self_ensemble(restore: Restore, images: Tensor) -> Tensor:
    """Restore images in their eight orientations (flips and quarter turns) and average the results.

    The four orientations of one shape, or all eight of a square image, go through `restore` as one batch.

    Args:
        restore: an image model in evaluation, or a function of images.
        images: (B, C, H, W).

    Returns:
        (B, C', s H, s W) for a model of scale s.
    """
    check_evaluation(restore)
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-2, -1)]
    upright, turned = torch.cat(flips), torch.cat([x.mT for x in flips])
    if images.shape[-2] == images.shape[-1]:
        upright, turned = restore(torch.cat([upright, turned])).chunk(2)
    else:
        upright, turned = restore(upright), restore(turned)
    a, b, c, d = (upright + turned.mT).chunk(4)  # (B, C', s H, s W) each
    return (a + b.flip(-1) + c.flip(-2) + d.flip(-2, -1)) / 8


def check_evaluation(restore: Restore) -> None:
    """Raise ValueError for a model in training mode: it returns a list, and its batch norms would be updated."""
    if isinstance(restore, nn.Module) and restore.training:
        raise ValueError(f"{type(restore).__name__} is in training mode: call model.eval() before restoring images.")


def check_finite(outputs: Tensor, name: object = "") -> Tensor:
    """Check that the outputs of a model are finite, and return them.

    Args:
        name: of the image, for the message.

    Raises:
        ValueError: a value is infinite or NaN.
    """
    least, most = outputs.amin(), outputs.amax()  # both are NaN if a value is; needs less memory than a mask
    if not (least.isfinite() and most.isfinite()):
        place = f"{name}: " if name else ""
        raise ValueError(f"{place}the model returns values that are not finite: are its weights damaged?")
    return outputs


# Local pooling


def local_mean(x: Tensor, window: Size) -> Tensor:
    """Average each pixel's neighbourhood: (B, C, H, W) -> (B, C, H, W).

    A window larger than the map is cut to it. A pixel near the border takes the mean of the nearest window that
    lies inside the map, as in "Test-time Local Converter" (TLC, arXiv 2112.04491).
    """
    for dim, side in ((-2, window[0]), (-1, window[1])):
        length = x.shape[dim]
        side = min(side, length)
        sums = x.cumsum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
        first = sums.narrow(dim, side - 1, 1)
        later = sums.narrow(dim, side, length - side) - sums.narrow(dim, 0, length - side)
        means = torch.cat([first, later], dim) / side  # length - side + 1 of them
        place = torch.arange(length, device=x.device) - (side - 1) // 2
        x = means.index_select(dim, place.clamp(0, length - side)).to(x.dtype)
    return x
