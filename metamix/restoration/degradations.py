"""Degrade clean images by chains of steps: `parse_degradations("blur:0.5-3,noise:0-50,jpeg:30-90")`.

    noise:SIGMA         Gaussian noise, sigma on the scale of 0 to 255; noise:25:clip also clips to 0 to 255;
                        noise:25:grey adds the same noise to all channels
    downscale:S         bicubic shrinking as in MATLAB's imresize, rounded to 8 bits; S is a whole number
    blur:SIGMA          Gaussian blur, sigma in pixels
    motion:LENGTH       blur along a line in a random direction, length in pixels
    jpeg:QUALITY        JPEG compression, quality from 1 to 100
    low_light:GAMMA     image ^ gamma, gamma of at least 1; low_light:3:10 then adds noise of sigma 10 and clips
    haze:BETA           image * t + light * (1 - t) with t = exp(-beta * depth); the light is grey, from 0.7 to 1; the
                        depth is smooth and random, from 0 to 1 over the image, or over the crop in training
    rain:AMOUNT         bright streaks of one random slope; AMOUNT is the number of drops per 1,000 pixels

Every value except S may be a range LOW-HIGH, from which a value is drawn for each image or, in training, each crop.
Steps are applied from left to right. Images are (C, H, W) float32 with values from 0 to 1. Random numbers come from the
generator that the caller seeds.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from metamix.data.files import open_image
from metamix.utils.checks import check_choice
from metamix.utils.text import plural

from .pixels import resize_bicubic, to_levels

PAIRS = "pairs"  # instead of a chain: the data set has degraded images


class Range(NamedTuple):
    """A number, or a range from which a value is drawn uniformly for each image."""

    low: float
    high: float


def noise(image: Tensor, rng: Generator, sigma: float, *, clip: bool = False, grey: bool = False) -> Tensor:
    """Add Gaussian noise; `sigma` is on the scale from 0 to 255."""
    shape = 1 if grey else image.shape[0], *image.shape[1:]
    noisy = image + sigma / 255 * torch.randn(shape, generator=rng)
    return noisy.clamp(0, 1) if clip else noisy


def downscale(image: Tensor, rng: Generator, factor: float) -> Tensor:
    """Shrink bicubically, with antialiasing, and round to 8 bits."""
    return resize_bicubic(image, 1 / factor, rounding=True)


def blur(image: Tensor, rng: Generator, sigma: float) -> Tensor:
    """Blur with a Gaussian that is cut off at three sigma."""
    radius = math.ceil(3 * sigma)
    if not radius:
        return image
    place = torch.arange(-radius, radius + 1, dtype=torch.float32)
    line = torch.exp(-place.square() / (2 * sigma**2))
    line = line / line.sum()
    return convolve(convolve(image, line[:, None]), line[None])


def motion(image: Tensor, rng: Generator, length: float) -> Tensor:
    """Blur along a line in a random direction."""
    return convolve(image, line_kernel(length, math.pi * draw(rng)))


def jpeg(image: Tensor, rng: Generator, quality: float) -> Tensor:
    """Compress with Pillow's JPEG encoder and its default chroma subsampling."""
    file = io.BytesIO()
    to_pil_image(to_levels(image).byte()).save(file, "JPEG", quality=round(quality))
    return pil_to_tensor(open_image(file)).float() / 255


def low_light(image: Tensor, rng: Generator, gamma: float, sigma: float = 0) -> Tensor:
    """Darken with a gamma curve; if `sigma` is not 0, add noise and clip."""
    dark = image.clamp(0, 1) ** gamma
    return noise(dark, rng, sigma, clip=True) if sigma else dark


def haze(image: Tensor, rng: Generator, beta: float) -> Tensor:
    """Mix each pixel with a grey light, distant pixels more than near ones."""
    light = 0.7 + 0.3 * draw(rng)
    depth = F.interpolate(
        torch.rand(1, 1, 4, 4, generator=rng), size=image.shape[-2:], mode="bilinear", align_corners=True
    )
    transmission = torch.exp(-beta * depth[0])  # (1, H, W)
    return image * transmission + light * (1 - transmission)


def rain(image: Tensor, rng: Generator, amount: float) -> Tensor:
    """Add bright streaks: single drops, blurred along a line near the vertical."""
    angle, length = math.pi * (0.4 + 0.2 * draw(rng)), 9 + 10 * draw(rng)
    drops = (torch.rand(1, *image.shape[1:], generator=rng) < amount / 1000).float()
    streaks = convolve(drops, line_kernel(length, angle)) * length * (0.3 + 0.4 * draw(rng))
    return (image + streaks).clamp(0, 1)


class Degradation(NamedTuple):
    """A function of an image, a generator, and numbers; its keyword-only arguments are switches."""

    function: Callable[..., Tensor]
    limits: Sequence[tuple[int, int]]  # lowest and highest value of each number
    reach: Callable[[float], float] = lambda number: 0  # first number -> pixels around a crop that affect it
    shrinks: bool = False  # whether the image shrinks by the number, which is then a whole number and not a range


DEGRADATIONS = {
    "noise": Degradation(noise, [(0, 255)]),
    "downscale": Degradation(downscale, [(1, 16)], lambda factor: 2 * factor, shrinks=True),
    "blur": Degradation(blur, [(0, 50)], lambda sigma: math.ceil(3 * sigma)),
    "motion": Degradation(motion, [(1, 200)], lambda length: math.ceil(length / 2)),
    "jpeg": Degradation(jpeg, [(1, 100)], lambda quality: 8),
    "low_light": Degradation(low_light, [(1, 10), (0, 255)]),
    "haze": Degradation(haze, [(0, 10)]),
    "rain": Degradation(rain, [(0, 1000)], lambda amount: 10),
}


@dataclass(frozen=True)
class Step:
    """A degradation with its numbers and switches."""

    name: str
    numbers: Sequence[Range]
    switches: dict[str, bool]

    @property
    def scale(self) -> int:
        """Return the factor by which the step shrinks an image."""
        return int(self.numbers[0].low) if DEGRADATIONS[self.name].shrinks else 1

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        numbers = [draw(rng, *number) for number in self.numbers]
        return DEGRADATIONS[self.name].function(image, rng, *numbers, **self.switches)


@dataclass(frozen=True)
class Chain:
    """Apply degradations one after the other."""

    steps: Sequence[Step] = ()

    @property
    def scale(self) -> int:
        """Return the factor by which the chain shrinks an image."""
        return math.prod(step.scale for step in self.steps)

    @property
    def reach(self) -> int:
        """Return how many pixels around a crop must be degraded with it; the number is a multiple of `scale`.

        The border of the crop is then degraded as in the whole image. Only random numbers, JPEG's blocks and the depth
        of haze differ, since they start at the corner of the degraded region.
        """
        pixels, scale = 0.0, 1
        for step in self.steps:
            pixels += scale * DEGRADATIONS[step.name].reach(step.numbers[0].high)
            scale *= step.scale
        return math.ceil(pixels / scale) * scale

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        """Degrade an image (C, H, W), whose sides are multiples of `scale`."""
        for step in self.steps:
            image = step(image, rng)
        return image


def parse_degradations(text: str) -> Chain:
    """Read a chain such as "blur:0.5-3,noise:25"; "pairs" has no steps. Raise ValueError for a wrong name or value."""
    return Chain() if text.strip() == PAIRS else Chain(tuple(_parse_step(step.strip()) for step in text.split(",")))


def _parse_step(text: str) -> Step:
    name, *words = text.split(":")
    if name == PAIRS:
        raise ValueError(f"degradation {text!r} is given with a value or another degradation: give {PAIRS} alone")
    check_choice("degradation", name, [*DEGRADATIONS, PAIRS])
    function, limits, _, shrinks = DEGRADATIONS[name]
    parameters = list(signature(function).parameters.values())[2:]
    switches = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if twice := [word for word in switches if words.count(word) > 1]:
        raise ValueError(f"degradation {text!r} has {twice[0]} more than once: give it once")
    numbers = [(word, _parse_range(word)) for word in words if word not in switches]
    invalid = [word for word, number in numbers if number is None]
    if invalid or not 1 <= len(numbers) <= len(limits):
        kind = f"neither a value nor a switch of {name}" if switches else "not a value"
        problem = f": {invalid[0]!r} is {kind}" if invalid else f" has {plural(len(numbers), 'value')}"
        labels = ((p.name if p.name in switches else p.name.upper(), p.default is p.empty) for p in parameters)
        shape = name + "".join(f":{label}" if needed else f"[:{label}]" for label, needed in labels)
        example = f"{name}:2" if shrinks else f"{name}:2 or {name}:1-3"
        raise ValueError(f"degradation {text!r}{problem}; write it as {shape}, such as {example}")
    for (low, high), (word, number) in zip(limits, numbers):
        fits = not shrinks or (number.low == number.high and number.low.is_integer())
        if not (low <= number.low <= number.high <= high and fits):
            accepted = f"number from {low} to {high}"
            accepted = f"a whole {accepted}" if shrinks else f"a {accepted}, or a range LOW-HIGH"
            raise ValueError(f"degradation {text!r} has the value {word}, but it must be {accepted}")
    values = [number for _, number in numbers if number]
    return Step(name, values, {switch: True for switch in switches if switch in words})


def _parse_range(word: str) -> Range | None:
    """Read NUMBER or LOW-HIGH; return None if `word` is neither."""
    low, *rest = re.split(r"(?<=[\d.])-", word, maxsplit=1)  # not at the minus sign in 1e-3
    try:
        return Range(float(low), float(rest[0] if rest else low))
    except ValueError:
        return None


def draw(rng: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Draw a number from `low` to `high`. If they are equal, the generator is not used."""
    return low if low == high else low + (high - low) * float(torch.rand((), generator=rng))


def line_kernel(length: float, angle: float) -> Tensor:
    """Return the kernel (k, k) of a line through the centre, with sum 1.

    `angle` is the angle to the horizontal in radians.
    """
    radius = math.ceil((length - 1) / 2)
    side = 2 * radius + 1
    along = (length - 1) * torch.linspace(-0.5, 0.5, 8 * side, dtype=torch.float64)  # points of the line
    x, y = radius + along * math.cos(angle), radius + along * math.sin(angle)
    places = torch.arange(side, dtype=torch.float64)
    columns, rows = (1 - (points[:, None] - places).abs() for points in (x, y))  # each point is spread over four pixels
    kernel = (rows.clamp(min=0).T @ columns.clamp(min=0)).float()
    return kernel / kernel.sum()


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel of an image (C, H, W) with a point-symmetric kernel of odd sides; mirror the borders."""
    rows, columns = (side // 2 for side in kernel.shape)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (rows, rows), (columns, columns)), "symmetric"))
    return F.conv2d(padded[:, None], kernel[None, None].to(image.dtype))[:, 0]
