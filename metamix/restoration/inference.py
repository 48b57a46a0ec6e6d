"""Apply an image model to whole images: enlarging before, tiles, self-ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metamix.models.image_inference import restore_tiles, self_ensemble

from .resize import resize_bicubic


@dataclass(frozen=True)
class Restorer:
    """Restore images (B, C, H, W) of any size.

    Attributes:
        enlarge: factor of the bicubic enlargement before the model, for a model whose output has its input's size.
        tile: side of the tiles in pixels of the model's input; 0 for the whole image at once.
        overlap: least overlap of neighbouring tiles in pixels.
        ensemble: average over the eight orientations.
    """

    enlarge: int = 1
    tile: int = 0
    overlap: int = 32
    ensemble: bool = False

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Restore images; `model` is in evaluation mode."""
        restore = partial(self_ensemble, model) if self.ensemble else model
        images = enlarge(images, self.enlarge)
        if self.tile and max(images.shape[-2:]) > self.tile:
            return restore_tiles(restore, images, tile=self.tile, overlap=self.overlap)
        return restore(images)

    @staticmethod
    def enlarge_to(image: Tensor, target: Tensor) -> Tensor:
        """Enlarge an image to the size of its target, bicubically: what a viewer would do without a model."""
        return enlarge(image, target.shape[-1] // image.shape[-1])


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Enlarge images bicubically, as MATLAB does; values stay from 0 to 1 where they were."""
    return images if scale == 1 else resize_bicubic(images, scale).clamp(0, 1)
