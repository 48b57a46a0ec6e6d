"""Apply an image model to whole images: enlarging before, tiles, self-ensemble."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metamix.layers.image_inference import self_ensemble
from metamix.layers.tiles import apply_in_tiles

from .resize import resize_bicubic


@dataclass(frozen=True)
class Restorer:
    """Restore images (B, C, H, W) of any size.

    Attributes:
        enlarge: factor of the bicubic enlargement before the model, for a model whose output has its input's size.
        tile: side of the tiles in pixels of the model's input; 0 for the whole image at once.
        overlap: least overlap of neighbouring tiles in pixels.
        ensemble: average over the eight orientations.
        pooling: side in pixels of the windows that channel attention averages over; 0 for the whole image.
        whole: (height, width) up to which an enlarged image is not cut into tiles, for a model whose input is not
            square.
    """

    enlarge: int = 1
    tile: int = 0
    overlap: int = 32
    ensemble: bool = False
    pooling: int = 0
    whole: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Restore images; `model` is in evaluation mode."""
        restore = partial(self_ensemble, model) if self.ensemble else model
        images = enlarge(images, self.enlarge)
        with pooled_locally(model, self.pooling):
            return apply_in_tiles(restore, images, tile=self.tile, overlap=self.overlap, whole=self.whole)


def check_local_pooling(model: nn.Module, name: str, side: int) -> None:
    """Check that a model can pool locally in windows of `side` pixels, if that is not 0.

    Raises:
        ValueError: the model has no channel attention, or the side is below 0.
    """
    if side < 0:
        raise ValueError(f"local_pooling is {side}, but it must be at least 0")
    if side and not hasattr(model, "set_local_pooling"):
        raise ValueError(f"local_pooling is {side}, but {name} has no channel attention to pool in: leave it out")


@contextmanager
def pooled_locally(model: Any, side: int) -> Iterator[None]:
    """Let channel attention average over windows of `side` pixels inside the context; 0 changes nothing."""
    if not side:
        yield
        return
    model.set_local_pooling(side)
    try:
        yield
    finally:
        model.set_local_pooling(None)


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Enlarge images bicubically, as MATLAB does; values stay from 0 to 1 where they were."""
    return images if scale == 1 else resize_bicubic(images, scale).clamp(0, 1)
