"""Place anchors, the boxes that a detector starts from, and choose RetinaNet's anchors for a training set."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

ANCHOR_SCALE = 4.0  # scale of the RetinaNet paper: size of the smallest anchor of a level, in strides
MAX_ANCHOR_SCALE = 1000
OCTAVE = tuple(2 ** (i / 3) for i in range(3))  # factors of the three anchor sizes at each level
QUANTILES = (0.05, 0.95)  # anchors should cover the box sizes between these quantiles


class Anchors(AnchorGenerator):
    """Place anchors at the exact strides of a pyramid, in float32.

    torchvision derives each stride as image size over map size, rounded down. That is wrong for a stride of 3.5 and
    for maps whose size was rounded up. It also computes anchors in the dtype of the maps, but bfloat16 numbers above
    1024 are multiples of eight.

    Args:
        strides: stride of each level, in pixels.
        sizes: anchor sizes of each level, in pixels: the square root of the area.
        aspect_ratios: height over width of the anchors, the same at all levels.
    """

    def __init__(self, strides: Sequence[float], sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]):
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        anchors = torch.cat(self.by_level(feature_maps))
        return [anchors for _ in image_list.image_sizes]

    def by_level(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of each level, (n, 4), for images with these maps; call `set_cell_anchors` first."""
        strides = [(stride, stride) for stride in self.strides]
        return self.grid_anchors([x.shape[-2:] for x in maps], strides)


def retinanet_sizes(strides: Sequence[float], anchor_scale: float) -> list[list[float]]:
    """Return the anchor sizes of RetinaNet in pixels, three at each level."""
    return [[anchor_scale * stride * factor for factor in OCTAVE] for stride in strides]


def choose_anchor_scale(sizes: Tensor, strides: Sequence[float]) -> float:
    """Choose RetinaNet's anchor scale for boxes of the given sizes.

    The paper's scale is kept if there are no boxes, or if its anchors cover the boxes from the 5 % to the 95 %
    quantile. Otherwise the scale changes as little as possible. If no scale covers both ends, the small boxes decide.

    Args:
        sizes: (n,) square roots of box areas, in pixels of the resized images.
        strides: stride of each level, in pixels, the finest first.

    Returns:
        A scale of at least 1, with two decimals. Smaller anchors would leave gaps between neighbouring positions.
    """
    if not len(sizes):
        return ANCHOR_SCALE
    small, large = np.quantile(sizes.double().numpy(), QUANTILES)  # torch 2.13 refuses more than 16 million values
    most, least = small / strides[0], large / (strides[-1] * OCTAVE[-1])
    scale = max(1.0, min(most, max(least, ANCHOR_SCALE)))
    return math.floor(100 * scale) / 100


def describe_sizes(sizes: Tensor, anchors: tuple[float, float] | None) -> str:
    """Say how large boxes are, compared with the smallest and the largest anchor.

    Args:
        sizes: (n,) square roots of box areas, in pixels of the resized images; n is at least 1.
        anchors: smallest and largest anchor size, in pixels; None for a detector without anchors.
    """
    low, median, high = np.quantile(sizes.double().numpy(), (0.05, 0.5, 0.95))
    text = f"boxes are {low:.0f} to {high:.0f} pixels large (5 % to 95 %, median {median:.0f})"
    return text + (f"; anchors are {anchors[0]:.0f} to {anchors[1]:.0f}" if anchors else "")
