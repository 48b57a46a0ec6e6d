"""TrivialAugment and RandAugment for a whole batch: every sample draws its own operation, and samples that drew the
same one go through it together.

    trivial                 one of 14 operations at one of 31 strengths
                            (Müller & Hutter, "TrivialAugment", ICCV 2021, the wide ranges)
    rand-m9-n2[-mstd0.5]    n of 15 operations one after another, each left out half of the time, at magnitude m of 10
                            with Gaussian noise of deviation mstd (Cubuk et al., "RandAugment", 2020, timm's "inc1")

Images are (k, H, W, C) uint8; geometry takes the nearest pixel and black beyond the border. Arithmetic is on
integers, or element by element, so that what else is in the batch cannot change the result by a bit. Streamed images
go through timm's and torchvision's implementations instead, one by one (`pil_transform`).
"""

import re

import torch
from PIL import ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import TrivialAugmentWide
from torchvision.transforms.v2 import functional as F

from .counter_rng import hash64, normal, randint, uniform

# operation: value at strength 0, value at full strength, whether its sign (or direction, around 1) is drawn
TRIVIAL = {
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
    "solarize": (255, 0, False),  # value from which on pixels are inverted
    "auto_contrast": (0, 0, False),
    "equalize": (0, 0, False),
}


def rand(size):
    """RandAugment's operations for images of `size` pixels."""
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


def parse(text):
    """The policy that an option names: None, "trivial", or (magnitude, layers, deviation)."""
    if text in ("none", "trivial"):
        return None if text == "none" else text
    match = re.fullmatch(
        r"rand-m(\d+)(?:-mstd(\d+(?:\.\d+)?))?(?:-inc1)?(?:-n(\d+))?(?:-mstd(\d+(?:\.\d+)?))?(?:-inc1)?", text
    )
    if not match or int(match[1]) > 10:
        raise ValueError(
            f"auto_augment is {text!r}: give none, trivial, or rand-m9-n2 (m from 0 to 10; -mstd0.5 adds noise)"
        )
    return int(match[1]), int(match[3] or 2), float(match[2] or match[4] or 0)


def pil_transform(text, size, mean):
    """The policy for one PIL image, for worker processes; None without one."""
    policy = parse(text)
    if policy is None:
        return None
    fill = tuple(round(255 * value) for value in mean)
    if policy == "trivial":
        return TrivialAugmentWide(fill=list(fill))
    magnitude, layers, deviation = policy
    transform = rand_augment_transform(
        f"rand-m{magnitude}-n{layers}-mstd{deviation}-inc1", dict(translate_const=int(0.45 * size), img_mean=fill)
    )
    for operation in transform.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = pil_posterize
    return transform


def pil_posterize(image, bits, **_):
    """timm asks for 0 bits at magnitude 10, which Pillow refuses."""
    return ImageOps.posterize(image, max(bits, 1))


class AutoAugment:
    """The policy for a batch. Called with images (n, H, W, C) uint8 and keys (n,), the hashes of the samples."""

    def __init__(self, text, size):
        policy = parse(text)
        self.trivial = policy == "trivial"
        self.magnitude, self.layers, self.deviation = (None, 1, 0.0) if self.trivial else policy
        ranges = TRIVIAL if self.trivial else rand(size)
        self.operations = [OPERATIONS[name] for name in ranges]
        self.low, self.high, self.signed = torch.tensor(list(ranges.values()), dtype=torch.float32).unbind(1)

    def __call__(self, image, key):
        for layer in range(self.layers):
            image = self.layer(image, hash64(key, layer))
        return image

    def layer(self, image, key):
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
            which = torch.where(uniform(skip) < 0.5, which, len(self.operations))  # sorted last, and not touched

        order = which.argsort(stable=True)
        counts = which.bincount(minlength=len(self.operations) + 1).tolist()
        *groups, untouched = image.index_select(0, order).split(counts)
        values = value[order].view(-1, 1, 1, 1).split(counts)
        done = [op(group, v) if len(group) else group for op, group, v in zip(self.operations, groups, values)]
        return torch.cat([*done, untouched]).index_select(0, order.argsort())


def affine(matrix):
    """An operation that takes each pixel from where `matrix(value, height, width)` = (a, b, c, d, e, f) maps it to:
    x' = a x + b y + c, y' = d x + e y + f, with pixel centres at halves."""

    def operation(image, value):
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


def _rotation(degrees, height, width):
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    x, y = width / 2, height / 2
    return cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos


def enhance(reference):
    """An operation that moves an image away from `reference(image)`, for values above 0, or towards it."""

    def operation(image, value):
        base = reference(image)
        return (base + (1 + value) * (image - base)).clamp(0, 255).to(torch.uint8)

    return operation


def gray(image):
    """Luma (k, H, W, 1) float32 of whole numbers, as PIL rounds it."""
    if image.shape[-1] == 1:
        return image.float()
    red, green, blue = image.int().split(1, dim=-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768 >> 16).float()


def mean_gray(image):
    luma = gray(image).long()
    count = luma[0].numel()
    return ((luma.sum((1, 2, 3), keepdim=True) * 2 + count) // (2 * count)).float()


def smooth(image):
    """The mean of 3x3 pixels, the middle one counted five times; the border as it is."""
    wide = image.int()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    wide[:, 1:-1, 1:-1] = (total + 6) // 13
    return wide.float()


def channels_first(function):
    """An operation without strength, from torchvision's for (..., C, H, W)."""
    return lambda image, value: function(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def posterize(image, bits):
    # the strength was divided by 30 or 10, so a whole number of bits may lie a rounding above itself; 0 bits are 1
    dropped = 8 - (bits - 1e-3).ceil().clamp(min=1).int()
    return image & (256 - 2**dropped).to(torch.uint8)


def solarize_add(image, value):
    return torch.where(image < 128, (image + value.trunc()).clamp(max=255), image).to(torch.uint8)


OPERATIONS = {
    "identity": lambda image, value: image,
    "shear_x": affine(lambda v, height, width: (1, v, 0, 0, 1, 0)),
    "shear_y": affine(lambda v, height, width: (1, 0, 0, v, 1, 0)),
    "translate_x": affine(lambda v, height, width: (1, 0, v.trunc(), 0, 1, 0)),
    "translate_y": affine(lambda v, height, width: (1, 0, 0, 0, 1, v.trunc())),
    "rotate": affine(_rotation),
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
