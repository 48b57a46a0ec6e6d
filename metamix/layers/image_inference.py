"""Run image models on images of any size, with reflection padding, tiles and self-ensemble.

    apply_in_tiles(model, photograph, tile=256, overlap=32)
    apply_in_tiles(partial(self_ensemble, model), photograph)        with eight orientations of each tile

The model is any callable that turns images (B, C, H, W) into maps (B, C', s H, s W) for a fixed scale s. The maps are
restored images or the logits of a segmenter, for example.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metamix.utils.checks import check_counts

from .spatial import reflect_to, round_up

ImageFunction = Callable[[Tensor], Any]
Size = tuple[int, int]
JPEG_BLOCK = 8  # side of JPEG's blocks in pixels; tiles start at multiples of it where the overlap allows

# Padding


def check_multiples(x: Tensor, multiple: Size, model: object) -> None:
    """Raise ValueError unless images have sides that `model` takes in training and export: multiples of `multiple`."""
    (h, w), (mh, mw) = x.shape[-2:], multiple
    if h % mh or w % mw:
        raise ValueError(
            f"Images have {h} x {w} pixels, but {type(model).__name__} trains on multiples of {mh} x {mw}: crop or pad "
            f"them. After model.eval(), the model takes any size, but an exported graph does not."
        )


def run_padded(function: ImageFunction, images: Tensor, multiple: Size) -> Tensor:
    """Pad images to multiples of `multiple`, apply a function to them, and crop its maps: -> (B, C', s H, s W).

    Images are padded by reflection, below and to the right. MAXIM's authors pad all four sides, which costs
    `maxim_nano.x2` 0.5 dB on Set14. A network learns where JPEG blocks begin, or where an enlarged image was sampled,
    and padding on the left or at the top shifts these places.
    """
    h, w = images.shape[-2:]
    x = reflect_to(images, round_up((h, w), multiple))
    y = function(x)
    s = y.shape[-1] // x.shape[-1]
    return y[..., : s * h, : s * w]


class PadAndCrop(nn.Module):
    """Pad images to the sides that a graph takes, run the graph, and crop its maps; see `run_padded`.

    Args:
        graph: function of images (B, C, H, W) whose sides are multiples of `multiple`.
        multiple: (height, width) in pixels. For a graph of a fixed size, give that size; images must not be larger.
    """

    def __init__(self, graph: ImageFunction, multiple: Sequence[int]):
        super().__init__()
        self.run, self.multiple = graph, (multiple[0], multiple[1])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return run_padded(self.run, images, self.multiple)


def shrink_image(images: Tensor, factor: int) -> Tensor:
    """Keep only the pixel at (factor // 2, factor // 2) of each cell of `factor` x `factor` pixels.

    MAXIM's authors shrink images for the coarser scales in this way, with jax's nearest-neighbour resizing.
    """
    return images[..., factor // 2 :: factor, factor // 2 :: factor]


# Tiles


@torch.no_grad()
def apply_in_tiles(
    function: ImageFunction, images: Tensor, *, tile: int = 256, overlap: int = 32, whole: Size | None = None
) -> Tensor:
    """Apply a function to large images in overlapping tiles. Only the memory for the result grows with the image.

    Tiles are about evenly spaced and overlap by at least `overlap` pixels; see `tile_starts`. Overlapping results are
    averaged with weights that fall linearly towards the tile's edge, so no seam shows.

    Args:
        function: a model in evaluation mode, or any function that turns images into maps of s times their size.
        images: (B, C, H, W); the result is (B, C', s H, s W).
        tile: side of a tile in pixels; 0 processes images of all sizes without tiles.
        overlap: smallest overlap of neighbouring tiles in pixels, less than `tile`.
        whole: (H, W) of the largest image that is processed without tiles; None for the size of a tile.
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
        scale = y.shape[-1] // part.shape[-1]
        if not result.numel():
            precision = torch.promote_types(y.dtype, torch.float32)  # since the results of several tiles are summed
            result = y.new_zeros(b, y.shape[0], scale * h, scale * w, dtype=precision)
            row_weights, column_weights = (
                tile_weights([scale * s for s in starts], scale * n, scale * side, scale * overlap, result)
                for starts, n, side in zip((rows, columns), (h, w), size)
            )
        place = result[i, :, scale * rows[r] :, scale * columns[c] :][:, : y.shape[-2], : y.shape[-1]]
        place += y * row_weights[r][:, None] * column_weights[c]
    return result


def check_tiles(tile: int, overlap: int) -> None:
    """Raise ValueError unless `tile` and `overlap` are whole numbers, and 0 <= overlap < tile if there are tiles."""
    check_counts(0, tile=tile, overlap=overlap)
    if tile and overlap >= tile:
        raise ValueError(f"tile is {tile} and overlap is {overlap}: give 0 <= overlap < tile, or tile 0 for no tiles.")


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the positions, in pixels, where tiles start along a side of `length` pixels.

    Tiles start at multiples of `JPEG_BLOCK`, or of `tile - overlap` if that is smaller.
    The last tile ends where the side ends, and is up to `JPEG_BLOCK - 1` pixels shorter than the other tiles.
    """
    if length <= tile:
        return [0]
    grid = min(JPEG_BLOCK, tile - overlap)
    last = math.ceil((length - tile) / grid)  # start of the last tile in units of `grid`
    gaps = math.ceil(last / ((tile - overlap) // grid))
    return [i * last // gaps * grid for i in range(gaps + 1)]


def tile_weights(starts: list[int], length: int, side: int, overlap: int, like: Tensor) -> list[Tensor]:
    """Return each tile's weights (n,) along its side of n pixels. At each pixel, the weights of all tiles sum to 1."""
    total, ramps = torch.zeros(length, dtype=torch.float64), []
    for start in starts:
        place = torch.arange(min(side, length - start), dtype=torch.float64)
        ramps.append(torch.minimum(place + 1, place.flip(0) + 1).clamp(max=overlap + 1))
        total[start : start + side] += ramps[-1]
    return [(ramp / total[start : start + side]).to(like) for start, ramp in zip(starts, ramps)]


def tiles(size: Size | None) -> Size:
    """Return the side and the overlap, in pixels, of tiles for a graph that takes images of one `size` = (H, W).

    The side of a tile is the shorter side of `size`. None means that the graph takes any size and needs no tiles: both
    numbers are 0.
    """
    side = 0 if size is None else min(size)
    return side, side // 8


# Self-ensemble


@torch.no_grad()
def self_ensemble(function: ImageFunction, images: Tensor) -> Tensor:
    """Apply a function to the eight orientations of images (flips and quarter turns), and average the results.

    Images are first padded to multiples of `JPEG_BLOCK`, so that JPEG's blocks stay aligned when the images are
    flipped. The four orientations with the same shape, or all eight of a square image, go through `function` as one
    batch.
    """
    check_evaluation(function)
    return run_padded(partial(mean_of_orientations, function), images, (JPEG_BLOCK, JPEG_BLOCK))


def mean_of_orientations(function: ImageFunction, images: Tensor) -> Tensor:
    """Average the results of a function over the eight orientations of the images."""
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-2, -1)]
    upright, turned = torch.cat(flips), torch.cat([x.mT for x in flips])
    if images.shape[-2] == images.shape[-1]:
        upright, turned = function(torch.cat([upright, turned])).chunk(2)
    else:
        upright, turned = function(upright), function(turned)
    a, b, c, d = (upright + turned.mT).chunk(4)  # (B, C', s H, s W) each
    return (a + b.flip(-1) + c.flip(-2) + d.flip(-2, -1)) / 8


def check_evaluation(function: ImageFunction) -> None:
    """Raise ValueError for a model in training mode: it may return several outputs, and updates its batch norms."""
    if isinstance(function, nn.Module) and function.training and "eval" not in vars(function):
        # torch.export's modules always say that they train; they have an `eval` of their own, which raises
        raise ValueError(f"{type(function).__name__} is in training mode: call model.eval() first.")
