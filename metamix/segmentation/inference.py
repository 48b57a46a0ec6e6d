"""Apply a segmenter to whole images or in tiles, and average over flips and scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.layers.tiles import apply_in_tiles
from metamix.utils.checks import check_finite

from .transforms import Size


@dataclass(frozen=True)
class View:
    """One way to look at an image: its scale and whether it is mirrored."""

    scale: float = 1.0
    mirrored: bool = False


PLAIN = (View(),)
AT_ONCE = 16  # classes whose scores are resized together


@dataclass(frozen=True)
class Predictor:
    """Predict the label of each pixel of normalised images (1, 3, H, W).

    Attributes:
        tile: side of the tiles in pixels of the image that the model gets; 0 for the whole image at once.
        overlap: least overlap of neighbouring tiles in pixels; their logits are averaged with weights that fall
            towards the edge.
        views: ways to look at the image. Their probabilities are averaged at the size of the image that the model gets.
        whole: (height, width) up to which an image is not cut into tiles, for a model whose input is not square.
    """

    tile: int = 0
    overlap: int = 0
    views: tuple[View, ...] = PLAIN
    whole: Size | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module, image: Tensor, size: Size) -> Tensor:
        """Return labels (H', W') uint8.

        Args:
            model: in evaluation mode.
            image: (1, 3, H, W), normalised.
            size: (H', W'), height and width of the result; logits, or mean probabilities, are resized to it
                bilinearly.
        """
        if self.views == PLAIN:
            return best_labels(self.logits(model, image), size)
        total = torch.zeros((), device=image.device)
        for view in self.views:
            total = total + self.view_logits(model, image, view).softmax(1)
        return best_labels(total, size)

    def view_logits(self, model: nn.Module, image: Tensor, view: View) -> Tensor:
        """Return the logits (1, classes, H, W) of a view, resized and mirrored back to the image."""
        seen = image.flip(-1) if view.mirrored else image
        if view.scale != 1:
            sides = [max(1, round(side * view.scale)) for side in image.shape[-2:]]
            seen = F.interpolate(seen, sides, mode="bilinear", antialias=True)
        logits = resize_to(self.logits(model, seen), image.shape[-2:], "bilinear")
        return logits.flip(-1) if view.mirrored else logits

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Return logits (1, classes, H, W) in float32.

        Raises:
            ValueError: a logit is not finite. Its pixel would get label 0.
        """
        logits = apply_in_tiles(model, image, tile=self.tile, overlap=self.overlap, whole=self.whole)
        return check_finite(logits.float())

    def describe(self) -> str:
        """Describe tiles, scales and flips in words."""
        text = f"tiles of {self.tile} pixels that overlap by {self.overlap} or more" if self.tile else "whole images"
        if self.views == PLAIN:
            return text
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys(view.scale for view in self.views))
        return f"{text}, mean over scales {scales}" + (" and flips" if any(v.mirrored for v in self.views) else "")


def best_labels(scores: Tensor, size: Size) -> Tensor:
    """Return the labels (H', W') uint8 of the largest scores (1, classes, H, W), resized a few classes at a time."""
    best, labels = torch.full(size, -torch.inf, device=scores.device), torch.zeros(size, device=scores.device).byte()
    for first in range(0, scores.shape[1], AT_ONCE):
        values, places = resize_to(scores[:, first : first + AT_ONCE], size, "bilinear")[0].max(0)
        better = values > best
        best, labels = torch.where(better, values, best), torch.where(better, places.byte() + first, labels)
    return labels


def make_views(scales: tuple[float, ...], flip: bool) -> tuple[View, ...]:
    """Return a view for each scale and, with `flip`, each mirrored one."""
    return tuple(View(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,)))
