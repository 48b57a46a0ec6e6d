"""Apply a model to large images, tile by tile.

    apply_in_tiles(model, photograph, tile=256, overlap=32)
    apply_in_tiles(partial(self_ensemble, model), photograph)        with eight orientations of each tile

The model is any callable that turns images (B, C, H, W) into maps (B, C', s H, s W) of one scale s: restored images, or
the logits of a segmenter.
"""

import itertools
import math

import torch
from torch import Tensor

from .image_inference import ImageFunction, Size, check_evaluation


@torch.no_grad()
def apply_in_tiles(
    function: ImageFunction, images: Tensor, *, tile: int = 256, overlap: int = 32, whole: Size | None = None
) -> Tensor:
    """Apply a function to large images in overlapping tiles. Only the result takes memory in proportion to the image.

    Tiles lie at equal distances and overlap by at least `overlap` pixels. Overlapping results are averaged with weights
    that fall linearly towards the tile's edge, so no seam shows.

    Args:
        function: a model in evaluation, or any function of images.
        images: (B, C, H, W).
        tile: side of a tile in pixels; 0 takes images of any size at once.
        overlap: least overlap of neighbours in pixels, less than `tile`.
        whole: (H, W) up to which images are taken at once, without tiles; by default the size of a tile.

    Returns:
        (B, C', s H, s W) for a function of scale s.

    Raises:
        ValueError: a size is out of range, or the model is in training mode.
    """
    check_evaluation(function)
    check_tiles(tile, overlap)
    if not tile or all(n <= most for n, most in zip(images.shape[-2:], whole or (tile, tile))):
        return function(images)
    (b, _, h, w), result = images.shape, torch.empty(0)
    rows, columns = (tile_starts(n, tile, overlap) for n in (h, w))
    size = min(tile, h), min(tile, w)
    for i, r, c in itertools.product(range(b), range(len(rows)), range(len(columns))):
        part = images[i : i + 1, :, rows[r] : rows[r] + size[0], columns[c] : columns[c] + size[1]]
        y = function(part.contiguous())[0]  # (C', s h, s w)
        scale = y.shape[-1] // size[1]
        if not result.numel():
            precision = torch.promote_types(y.dtype, torch.float32)  # sums of several tiles
            result = y.new_zeros(b, y.shape[0], scale * h, scale * w, dtype=precision)
            row_weights, column_weights = (
                tile_weights([scale * s for s in starts], scale * n, scale * side, scale * overlap, result)
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
