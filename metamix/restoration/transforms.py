"""Cut crops to train on, degrade images, and flip and turn them."""

from __future__ import annotations

import torch
from torch import Tensor

from .degradations import Chain
from .inference import enlarge

Pair = tuple[str, Tensor, Tensor | None]  # name, clean image and degraded image


class TrainCrop:
    """Cut, degrade, flip and turn at random; the loader seeds torch's generator for each sample.

    A crop is degraded with the pixels around it that the degradation reaches for, if the image has them.
    """

    def __init__(self, crop: int, flip: bool, rotate: bool, chain: Chain, scale: int, enlarge: int):
        self.crop, self.flip, self.rotate = crop, flip, rotate
        self.chain, self.scale, self.enlarge = chain, scale, enlarge

    def __call__(self, pair: Pair) -> tuple[str, Tensor, Tensor]:
        name, target, degraded = pair
        crop, scale, rng = self.crop, self.scale, torch.default_generator
        top, left = (scale * self.randint((side - crop) // scale + 1) for side in target.shape[-2:])
        reach = self.chain.reach + (3 * scale if self.enlarge > 1 else 0)
        rows, columns = (
            slice(max(0, start - reach), min(side, start + crop + reach))
            for start, side in zip((top, left), target.shape[-2:])
        )
        if degraded is None:
            degraded = self.chain(target[:, rows, columns], rng)
        else:
            degraded = degraded[:, shrink(rows, scale), shrink(columns, scale)]
        degraded = enlarge(degraded, self.enlarge)
        ratio = scale // self.enlarge
        y, x, side = (top - rows.start) // ratio, (left - columns.start) // ratio, crop // ratio
        images = [degraded[:, y : y + side, x : x + side], target[:, top : top + crop, left : left + crop]]
        if self.flip:
            dims = [dim for dim in (-2, -1) if self.randint(2)]
            images = [image.flip(dims) for image in images]
        if self.rotate:
            turns = self.randint(4)
            images = [image.rot90(turns, (-2, -1)) for image in images]
        return name, images[0], images[1]

    @staticmethod
    def randint(high: int) -> int:
        return int(torch.randint(high, (), generator=torch.default_generator))


class WholeImage:
    """Degrade a whole image to score; the loader seeds torch's generator with the image's number."""

    def __init__(self, chain: Chain):
        self.chain = chain

    def __call__(self, pair: Pair) -> tuple[str, Tensor, Tensor]:
        name, target, degraded = pair
        return name, self.chain(target, torch.default_generator) if degraded is None else degraded, target


def shrink(part: slice, scale: int) -> slice:
    """Return the part of a degraded image that a part of the clean one comes from."""
    return slice(part.start // scale, part.stop // scale)
