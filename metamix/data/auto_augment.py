"""Apply TrivialAugment or RandAugment to a batch. Each sample draws its own operations.

    trivial                 one of 14 operations at one of 31 strengths
                            (Müller & Hutter, "TrivialAugment", ICCV 2021, the wide ranges)
    rand-m9-n2[-mstd0.5]    n of 15 operations in sequence, each skipped half of the time, at magnitude m of 10 with
                            Gaussian noise of deviation mstd (Cubuk et al., "RandAugment", 2020, timm's "inc1")

An operation runs once for all samples that drew it, as images (k, H, W, C) uint8. Geometric operations sample the
nearest pixel and fill with black outside the image. All arithmetic is element-wise or on integers, so the result for a
sample does not depend on the rest of the batch. Streamed images use timm's and torchvision's implementations instead
(`pil_transform`).
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import TrivialAugmentWide
from torchvision.transforms.v2 import functional as F

from .counter_rng import hash64, normal, randint, uniform

Operation = Callable[[Tensor, Tensor], Tensor]  # images (k, H, W, C) uint8, values (k, 1, 1, 1) -> images
Ranges = dict[str, tuple[float, float, bool]]

# operation: value at strength 0, value at full strength, whether the sign is drawn too
TRIVIAL: Ranges = {
    "identity": (0, 0, False),
    "shear_x": (0, 0.99, True),
    "shear_y": (0, 0.99, True),
    "translate_x": (0, 32, True),  # pixels
    "translate_y": (0, 32, True),
    "rotate": (0, 135, True),  # degrees
    "brightness": (0, 0.99, True),
    "color": (0, 0.99, True),
    "contrast": (0, 0.99, True),
    "sharpness": (0, 0.99, True),
    "posterize": (8, 2, False),  # bits kept
    "solarize": (255, 0, False),  # pixels of this value and above are inverted
    "auto_contrast": (0, 0, False),
    "equalize": (0, 0, False),
}


def rand_ranges(size: int) -> Ranges:
    """Return the ranges of RandAugment's operations for images of `size` pixels."""
    return {
        "auto_contrast": (0, 0, False),
        "equalize": (0, 0, False),
        "invert": (0, 0, False),
        "rotate": (0, 30, True),
        "posterize": (4, 0, False),
        "solarize": (256, 0, False),
        "solarize_add": (0, 110, False),
        "color": (0, 0.9, True),
        "contrast": (0, 0.9, True),
        "brightness": (0, 0.9, True),
        "sharpness": (0, 0.9, True),
        "shear_x": (0, 0.3, True),
        "shear_y": (0, 0.3, True),
        "translate_x": (0, 0.45 * size, True),
        "translate_y": (0, 0.45 * size, True),
    }


def parse(text: str) -> str | tuple[int, int, float] | None:
    """Parse the option `auto_augment`; raise ValueError if it names no policy.

    Returns:
        None for "none", "trivial" for "trivial", and (magnitude, number of operations, deviation) for RandAugment.
    """
    if text in ("none", "trivial"):
        return None if text == "none" else text
    match = re.fullmatch(
        r"rand-m(\d+)(?:-mstd(\d+(?:\.\d+)?))?(?:-inc1)?(?:-n(\d+))?(?:-mstd(\d+(?:\.\d+)?))?(?:-inc1)?", text
    )
    if not match or int(match[1]) > 10 or int(match[3] or 2) < 1:
        raise ValueError(f"auto_augment is {text!r}: give none, trivial, or rand-m9-n2 (m to 10; -mstd0.5 adds noise)")
    return int(match[1]), int(match[3] or 2), float(match[2] or match[4] or 0)


def pil_transform(text: str, size: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image] | None:
    """Return the policy as a function of one PIL image, for worker processes; return None for "none"."""
    policy = parse(text)
    if policy is None:
        return None
    fill = tuple(round(255 * value) for value in mean)
    if isinstance(policy, str):
        return TrivialAugmentWide(fill=list(fill))
    magnitude, layers, deviation = policy
    transform = rand_augment_transform(
        f"rand-m{magnitude}-n{layers}-mstd{deviation}-inc1",
        {"translate_const": int(0.45 * size), "img_mean": fill},
    )
    for operation in transform.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = pil_posterize
    return transform


def pil_posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterize to at least 1 bit: timm asks for 0 bits at magnitude 10, which Pillow refuses."""
    return ImageOps.posterize(image, max(bits, 1))


class AutoAugment:
    """Apply the policy of the option `auto_augment`, other than "none", to batches of images of `size` pixels."""

    def __init__(self, text: str, size: int):
        policy = parse(text)
        assert policy is not None
        self.trivial = isinstance(policy, str)
        self.magnitude, self.layers, self.deviation = (0, 1, 0.0) if isinstance(policy, str) else policy
        ranges = TRIVIAL if self.trivial else rand_ranges(size)
        operations = OPERATIONS
        if self.trivial:  # torchvision rounds the bits
            operations = OPERATIONS | {"posterize": lambda image, bits: posterize(image, bits.round())}
        self.operations = [operations[name] for name in ranges]
        self.low, self.high, self.signed = torch.tensor(list(ranges.values()), dtype=torch.float32).unbind(1)

    def __call__(self, image: Tensor, key: Tensor) -> Tensor:
        """Augment images (n, H, W, C) uint8 by keys (n,) int64, the hashes of the samples."""
        for layer in range(self.layers):
            image = self.layer(image, hash64(key, layer))
        return image

    def layer(self, image: Tensor, key: Tensor) -> Tensor:
        """Apply one operation to each image."""
        low, high, signed = (values.to(image.device) for values in (self.low, self.high, self.signed))
        which, strength, sign, skip = (hash64(key, draw) for draw in range(4))
        which = randint(which, len(self.operations))
        if self.trivial:
            strength = randint(strength, 31) / 30
        else:
            strength = (self.magnitude + self.deviation * normal(strength)).clamp(0, 10) / 10
        value = low[which] + (high - low)[which] * strength
        value = value * (1 - 2 * signed[which] * randint(sign, 2))
        if not self.trivial:
            which = torch.where(uniform(skip) < 0.5, which, len(self.operations))  # skipped images sort last

        order = which.argsort(stable=True)
        counts = which.bincount(minlength=len(self.operations) + 1).tolist()
        *groups, untouched = image.index_select(0, order).split(counts)
        values = value[order].view(-1, 1, 1, 1).split(counts)
        done = [op(group, v) if len(group) else group for op, group, v in zip(self.operations, groups, values)]
        return torch.cat([*done, untouched]).index_select(0, order.argsort())


def affine(matrix: Callable[[Tensor, int, int], tuple[Any, ...]]) -> Operation:
    """Make an operation that moves pixels by an affine map.

    Pixel (x, y) of the result is pixel (x', y') of the image: x' = a x + b y + c, y' = d x + e y + f, with
    (a, b, c, d, e, f) = matrix(value, height, width) and pixel centres at halves.
    """

    def operation(image: Tensor, value: Tensor) -> Tensor:
        k, height, width, channels = image.shape
        a, b, c, d, e, f = matrix(value.view(-1, 1, 1), height, width)
        x = torch.arange(width, device=image.device) + 0.5
        y = torch.arange(height, device=image.device)[:, None] + 0.5
        column = ((a * x + c) + b * y).floor_().clamp_(-1, width).int()  # (k, H, W)
        row = ((e * y + f) + d * x).floor_().clamp_(-1, height).int()
        framed = torch.nn.functional.pad(image, (0, 0, 1, 1, 1, 1))  # a black pixel at -1 and at H or W
        first = torch.arange(k, device=image.device, dtype=torch.int32).view(-1, 1, 1) * (height + 2) + 1
        pixel = (row + first).mul_(width + 2).add_(column).add_(1)
        return framed.view(-1, channels).index_select(0, pixel.flatten()).view(image.shape)

    return operation


def rotation(degrees: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """Return the affine map of a rotation around the centre."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    x, y = width / 2, height / 2
    return cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos


def enhance(reference: Callable[[Tensor], Tensor]) -> Operation:
    """Make an operation that moves an image away from `reference(image)` by values above 0, or towards it."""

    def operation(image: Tensor, value: Tensor) -> Tensor:
        base = reference(image)
        return (base + (1 + value) * (image - base)).clamp(0, 255).to(torch.uint8)

    return operation


def gray(image: Tensor) -> Tensor:
    """Compute luma (k, H, W, 1) float32, in whole numbers, rounded as in Pillow."""
    if image.shape[-1] == 1:
        return image.float()
    red, green, blue = image.int().split(1, dim=-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768 >> 16).float()


def mean_gray(image: Tensor) -> Tensor:
    """Compute the mean luma of each image (k, 1, 1, 1) float32, in whole numbers."""
    luma = gray(image).long()
    count = luma[0].numel()
    return ((luma.sum((1, 2, 3), keepdim=True) * 2 + count) // (2 * count)).float()


def smooth(image: Tensor) -> Tensor:
    """Average 3x3 pixels with weight 5 for the centre, as Pillow does. The border does not change."""
    wide = image.int()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    wide[:, 1:-1, 1:-1] = (total + 6) // 13
    return wide.float()


def channels_first(function: Callable[[Tensor], Tensor]) -> Operation:
    """Make an operation without a strength from a torchvision function on (..., C, H, W)."""
    return lambda image, value: function(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def posterize(image: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` bits of each value, and at least 1."""
    # 1e-3: strengths are fractions, so a whole number of bits may be slightly too large.
    dropped = 8 - (bits - 1e-3).ceil().clamp(min=1).int()
    return image & (256 - 2**dropped).to(torch.uint8)


def solarize_add(image: Tensor, value: Tensor) -> Tensor:
    """Add `value` to pixels below 128."""
    return torch.where(image < 128, (image + value.trunc()).clamp(max=255), image).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, value: image,
    "shear_x": affine(lambda v, height, width: (1, v, 0, 0, 1, 0)),
    "shear_y": affine(lambda v, height, width: (1, 0, 0, v, 1, 0)),
    "translate_x": affine(lambda v, height, width: (1, 0, v.trunc(), 0, 1, 0)),
    "translate_y": affine(lambda v, height, width: (1, 0, 0, 0, 1, v.trunc())),
    "rotate": affine(rotation),
    "brightness": enhance(lambda image: torch.zeros_like(image, dtype=torch.float32)),
    "color": enhance(gray),
    "contrast": enhance(mean_gray),
    "sharpness": enhance(smooth),
    "posterize": posterize,
    "solarize": lambda image, value: torch.where(image < value, image, 255 - image),
    "solarize_add": solarize_add,
    "invert": lambda image, value: 255 - image,
    "auto_contrast": channels_first(F.autocontrast),
    "equalize": channels_first(F.equalize),
}
