"""Apply a segmenter to whole images or to tiles, and average the results over flips and scales."""

import math
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.layers.image_inference import Size, apply_in_tiles
from metamix.utils.checks import check_finite

AT_ONCE = 16  # classes whose scores are resized together, to save memory
# Limit for the logits of a block without its margin. A block may exceed it if its side is two tiles, the minimum.
MAX_BYTES = 2**31


@dataclass(frozen=True)
class Predictor:
    """Predict the label of each pixel of a normalised image, (1, 3, H, W)."""

    # `apply_in_tiles` explains tile, overlap and whole. They are in pixels of the model's input.
    tile: int = 0
    overlap: int = 0
    flip: bool = False  # whether to predict the mirror image too
    # Factors by which the image is resized. The model predicts at each scale. The logits are then resized to the size
    # of the original input, and the probabilities are averaged.
    scales: tuple[float, ...] = (1.0,)
    whole: Size | None = None

    @property
    def averages(self) -> bool:
        """Return whether probabilities are averaged over flips or scales; a single scale other than 1 counts too."""
        return self.flip or self.scales != (1.0,)

    @torch.no_grad()
    def __call__(self, model: nn.Module, image: Tensor, size: Size) -> Tensor:
        """Return labels (H', W') uint8.

        Args:
            model: the segmenter, in evaluation mode.
            image: (1, 3, H, W), normalised.
            size: (H', W') of the result. Logits, or mean probabilities, are resized to it bilinearly.
        """
        if not self.averages:
            return best_labels(self.logits(model, image), size)
        total = torch.zeros((), device=image.device)
        for scale, mirrored in product(self.scales, (False, True) if self.flip else (False,)):
            view = image.flip(-1) if mirrored else image
            if scale != 1:
                sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
                view = F.interpolate(view, sides, mode="bilinear", antialias=True)
            logits = resize_to(self.logits(model, view), image.shape[-2:], "bilinear")  # (1, classes, H, W)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(1)
        return best_labels(total, size)

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Return logits (1, classes, H, W) in float32; raise ValueError if one is not finite."""
        logits = apply_in_tiles(model, image, tile=self.tile, overlap=self.overlap, whole=self.whole)
        return check_finite(logits.float())

    def describe(self) -> str:
        """Describe the tiles, scales and flips in words."""
        text = f"tiles of {self.tile} pixels that overlap by {self.overlap} or more" if self.tile else "whole images"
        if not self.averages:
            return text
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys(self.scales))
        return f"{text}, mean over scales {scales}" + (" and flips" if self.flip else "")


def best_labels(scores: Tensor, size: Size) -> Tensor:
    """Resize scores (1, classes, H, W) to `size`, and return the best label of each pixel: (H', W') uint8."""
    best, labels = torch.full(size, -torch.inf, device=scores.device), torch.zeros(size, device=scores.device).byte()
    for first in range(0, scores.shape[1], AT_ONCE):
        values, places = resize_to(scores[:, first : first + AT_ONCE], size, "bilinear")[0].max(0)
        better = values > best
        best, labels = torch.where(better, values, best), torch.where(better, places.byte() + first, labels)
    return labels


def predict(model: nn.Module, image: Tensor, size: Size, classes: int, predictor: Predictor) -> Tensor:
    """Return labels (H', W') uint8 on the CPU. `Predictor.__call__` explains `model`, `image` and `size`.

    An image that is cut into tiles is predicted in square blocks if a side is longer than a block and labels are not
    resized. The logits of a block take up to 2 GiB for `classes` classes, but its side is at least two tiles. A margin
    of up to one tile around each block is predicted too and then cut off.
    """
    side = max(2 * predictor.tile, math.isqrt(MAX_BYTES // (4 * classes)))
    if not predictor.tile or image.shape[-2:] != size or max(size) <= side:
        return predictor(model, image, size).cpu()
    labels, margin = torch.zeros(size, dtype=torch.uint8), predictor.tile
    for top, left in product(range(0, size[0], side), range(0, size[1], side)):
        above, before = min(top, margin), min(left, margin)
        block = image[..., top - above : top + side + margin, left - before : left + side + margin]
        inner = predictor(model, block, (block.shape[-2], block.shape[-1]))[above:, before:]
        labels[top : top + side, left : left + side] = inner[:side, :side].cpu()
    return labels
