"""Change an image and its mask together at random, with torchvision's v2 transforms.

Images are uint8. Images are resized by bilinear interpolation, masks by the nearest pixel. The loader seeds torch's
generator for each sample.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .labels import IGNORED
from .options import SegmentationOptions

TRIES = 10  # most crops to draw for an image; the last one is used even if one class has too large a share

Size = tuple[int, int]


def resized_size(size: Size, min_size: int, max_size: int, scale: float = 1.0) -> Size:
    """Return the size of an image resized to a shorter side of `scale` * `min_size`, with the same aspect ratio.

    Args:
        size: (height, width).
        min_size: shorter side in pixels, before `scale` is applied; 0 keeps the size of the image.
        max_size: limit of the longer side in pixels, before `scale` is applied; 0 sets no limit.
    """
    factor = min_size / min(size) if min_size else 1.0
    if max_size:
        factor = min(factor, max_size / max(size))
    return max(1, round(size[0] * factor * scale)), max(1, round(size[1] * factor * scale))


def resize_image(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """Resize an image (3, H, W) to the size that `resized_size` returns for it."""
    size = image.shape[-2], image.shape[-1]
    resized = resized_size(size, min_size, max_size)
    return image if resized == size else F.resize_image(image, list(resized), antialias=True)


class RandomScale(v2.Transform):
    """Resize image and mask by a random factor."""

    def __init__(self, min_size: int, max_size: int, scales: tuple[float, ...]):
        super().__init__()
        self.min_size, self.max_size, self.scales = min_size, max_size, scales

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scales
        scale = low + (high - low) * float(torch.rand(()))
        height, width = find_mask(flat_inputs).shape[-2:]
        return {"size": resized_size((height, width), self.min_size, self.max_size, scale)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]), antialias=True)


class LimitedCrop(v2.Transform):
    """Crop image and mask at random. If one class has too large a share of a crop, draw another, up to ten crops.

    An image that is smaller than the crop is padded with `fill` on the right and at the bottom, and its mask with
    ignored pixels.

    Args:
        size: (height, width) of the crop.
        share: largest share of one class among the pixels that are not ignored.
        fill: colour of the padding.
    """

    def __init__(self, size: Size, share: float, fill: tuple[int, ...]):
        super().__init__()
        self.size, self.share, self.fill = size, share, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = find_mask(flat_inputs)
        (height, width), (h, w) = self.size, mask.shape[-2:]
        place = {"top": 0, "left": 0, "height": min(height, h), "width": min(width, w)}
        for _ in range(TRIES if self.share < 1 else 1):
            place["top"], place["left"] = (
                int(torch.randint(free + 1, ())) for free in (h - place["height"], w - place["width"])
            )
            if self.share == 1 or largest_share(F.crop_mask(mask, **place)) <= self.share:
                break
        return place

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cut = self._call_kernel(F.crop, inpt, **params)
        bottom, right = self.size[0] - params["height"], self.size[1] - params["width"]
        if not bottom and not right:
            return cut
        fill: Any = IGNORED if isinstance(inpt, tv_tensors.Mask) else list(self.fill)
        return self._call_kernel(F.pad, cut, padding=[0, 0, right, bottom], fill=fill)


def find_mask(inputs: list[Any]) -> tv_tensors.Mask:
    """Return the mask among the inputs of a transform."""
    return next(value for value in inputs if isinstance(value, tv_tensors.Mask))


def largest_share(mask: Tensor) -> float:
    """Return the share of the most frequent class among the pixels that are not ignored, or 0 if there are none."""
    counts = torch.bincount(mask.flatten(), minlength=256)[:IGNORED]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 0.0


def train_transform(options: SegmentationOptions, mean: tuple[float, ...]) -> v2.Compose:
    """Compose the random scale, crop, flip and colour jitter of training, for a sample (name, image, mask)."""
    fill = tuple(round(255 * value) for value in mean)
    steps: list[v2.Transform] = [
        RandomScale(options.min_size, options.max_size, options.scales),
        LimitedCrop(options.crop_size, options.crop_share, fill),
        v2.RandomHorizontalFlip(options.flip),
    ]
    if options.photometric:
        colours = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)
        steps.append(v2.RandomApply([colours], p=options.photometric))
    return v2.Compose([*steps, v2.ToPureTensor()])
