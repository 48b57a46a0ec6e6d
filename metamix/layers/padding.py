"""Run a graph of certain image sizes on images of any size: padding and tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .image_inference import crop, pad_by_reflection

Model = Callable[[Tensor], Any]
Size = tuple[int, int]


class PadAndCrop(nn.Module):
    """Pad images by reflection to the sizes that a model takes, run it, and crop its maps.

    Args:
        model: (n, C, H, W) -> (n, C', s H, s W).
        scale: s.
        sides: (height, width). The model takes multiples of them, and images are padded to the next multiples.
    """

    def __init__(self, model: Model, scale: int, sides: Size):
        super().__init__()
        self.run, self.scale, self.sides = model, scale, sides

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images, (top, left) = pad_by_reflection(images, self.sides)
        s = self.scale
        return crop(self.run(images), (s * top, s * left), (s * height, s * width))


def pad_for_graph(model: Model, extra: dict[str, Any], size: Size | None) -> PadAndCrop:
    """Make a graph pad images that are smaller than its input.

    Args:
        model: the graph.
        extra: `Artifact.extra`, with the scale of the graph and the multiples of sides that a dynamic graph takes.
        size: (height, width) of the graph; None for a dynamic one, which takes images of any size.
    """
    height, width = size or extra["multiple"]
    return PadAndCrop(model, extra["scale"], (height, width)).eval()


def tiles(size: Size | None) -> Size:
    """Return side and overlap of the square tiles that larger images are cut into, for a graph of this size.

    The side of a tile is the graph's shorter side. A graph of any size needs no tiles: both are 0.
    """
    side = 0 if size is None else min(size)
    return side, side // 8
