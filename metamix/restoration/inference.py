"""Apply an image model to images and image files, with optional enlargement, tiles and self-ensemble."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metamix.layers.image_inference import apply_in_tiles, self_ensemble
from metamix.utils.checks import DoesNotFit, check_finite

from .files import Picture
from .pixels import resize_bicubic, to_rgb, to_ycbcr


@dataclass(frozen=True)
class Restorer:
    """Restore images (B, C, H, W) of any size."""

    # Factor by which images are enlarged (bicubic) before the model; 1 if they are not enlarged.
    enlarge: int = 1
    # `apply_in_tiles` explains tile, overlap and whole. They are in pixels of the model's input.
    tile: int = 0
    overlap: int = 32
    ensemble: bool = False  # average over the eight orientations
    pooling: int = 0  # side in pixels of the windows that channel attention averages over; 0: the whole image or tile
    whole: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, model: Any, images: Tensor) -> Tensor:
        """Restore images; `model` is in evaluation mode."""
        restore = partial(self_ensemble, model) if self.ensemble else model
        images = enlarge(images, self.enlarge)
        if self.pooling:
            model.set_local_pooling(self.pooling)
        try:
            return apply_in_tiles(restore, images, tile=self.tile, overlap=self.overlap, whole=self.whole)
        finally:
            if self.pooling:
                model.set_local_pooling(None)


def check_local_pooling(model: nn.Module, name: str, side: int) -> None:
    """Raise ValueError if `side` is not 0 and the model has no channel attention that can average over windows."""
    if side and not hasattr(model, "set_local_pooling"):
        raise ValueError(f"local_pooling is {side}, but {name} has no channel attention that uses it: leave it out")


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Enlarge images bicubically, as MATLAB does, and clip the values to 0 to 1; at scale 1, change nothing."""
    return images if scale == 1 else resize_bicubic(images, scale).clamp(0, 1)


def restore_picture(model: nn.Module, picture: Picture, channels: str, restorer: Restorer) -> Picture:
    """Restore a decoded image file; keep its alpha channel, bit depth and colour profile.

    Args:
        model: an image model in evaluation mode, on any device.
        channels: channels that the model takes: "rgb", "grey" or "y".

    Raises:
        DoesNotFit: the image is in colour, and the model takes grey images.
        ValueError: the model returns values that are not finite.
    """
    colours, alpha = picture.colours, picture.alpha
    is_grey = len(colours) == 1
    if channels == "grey" and not is_grey:
        raise DoesNotFit(
            f"{picture.name} is in colour, and the model was trained on grey images: save it in grey, or give a model "
            f"trained with --channels rgb or y. metamix ships no weights that denoise colour images: use "
            f"maxim_s3.sidd of MAXIM's authors"
        )
    colours = colours.expand(3, -1, -1) if channels == "rgb" else colours
    restored = check_finite(restore_colours(model, colours, channels, restorer), picture.name)
    if is_grey:
        restored = restored.mean(0, keepdim=True)
    if alpha is not None:
        alpha = enlarge(alpha, restored.shape[-1] // alpha.shape[-1])
    return replace(picture, colours=restored, alpha=alpha)


def restore_colours(model: nn.Module, image: Tensor, channels: str, restorer: Restorer) -> Tensor:
    """Restore an image (C, H, W) and return it on the CPU. If `channels` is "y", restore only the luminance."""
    device = next(model.parameters()).device
    if channels != "y" or len(image) == 1:
        return restorer(model, image[None].to(device))[0].float().cpu()
    ycbcr = to_ycbcr(image)
    y = restorer(model, ycbcr[None, :1].to(device))[0].float().cpu()
    return to_rgb(torch.cat([y, enlarge(ycbcr[1:], y.shape[-1] // ycbcr.shape[-1])]))
