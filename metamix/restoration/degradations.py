"""Degrade clean images by chains of steps: `parse_degradations("blur:0.5-3,noise:0-50,jpeg:30-90")`.

    noise:SIGMA         Gaussian noise, sigma on the scale of 0 to 255; noise:25:clip also clips to 0 to 255;
                        noise:25:grey adds the same noise to all channels
    downscale:S         bicubic shrinking as in MATLAB's imresize, rounded to 8 bits; S is a whole number
    blur:SIGMA          Gaussian blur, sigma in pixels
    motion:LENGTH       blur along a line of a random direction, length in pixels
    jpeg:QUALITY        JPEG compression, quality from 1 to 100
    low_light:GAMMA     image ^ gamma, gamma of at least 1; low_light:3:10 then adds noise of sigma 10 and clips
    haze:BETA           image * t + light * (1 - t) with t = exp(-beta * depth); the light is grey, from 0.7 to 1; the
                        depth is smooth and random, from 0 to 1 over the image, or over the crop in training
    rain:AMOUNT         bright streaks of one random slope; AMOUNT is the number of drops per 1,000 pixels

Every value may be a range LOW-HIGH, from which each image draws a value. Steps are applied from left to right.
Images are (C, H, W) float32 with values from 0 to 1. Random numbers come from the generator that the caller seeds.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from metamix.data.files import open_image
from metamix.utils.checks import check_choice
from metamix.utils.text import plural

from .pixels import resize_bicubic, to_levels

PAIRS = "pairs"  # in place of a chain: the images are already degraded


@dataclass(frozen=True)
class Range:
    """A number, or a range from which each image draws uniformly."""

    low: float
    high: float

    def draw(self, rng: Generator) -> float:
        """Draw a value. A single number consumes no random number."""
        return self.low if self.low == self.high else self.low + (self.high - self.low) * draw(rng)


def parameter(low: float, high: float, *, default: Any = MISSING, whole: bool = False) -> Any:
    """Declare a parameter of a degradation, with its limits."""
    return field(default=default, metadata={"low": low, "high": high, "whole": whole})


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise."""

    sigma: Range = parameter(0, 255)
    clip: bool = False
    grey: bool = False

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        sigma, shape = self.sigma.draw(rng) / 255, (1 if self.grey else image.shape[0], *image.shape[1:])
        noisy = image + sigma * torch.randn(shape, generator=rng)
        return noisy.clamp(0, 1) if self.clip else noisy


@dataclass(frozen=True)
class Downscale:
    """Shrink bicubically, with antialiasing, and round to 8 bits."""

    factor: Range = parameter(1, 16, whole=True)

    @property
    def scale(self) -> int:
        return int(self.factor.low)

    @property
    def reach(self) -> int:
        return 2 * self.scale

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        return resize_bicubic(image, 1 / self.scale, rounding=True)


@dataclass(frozen=True)
class Blur:
    """Blur with a Gaussian that is cut off at three sigma."""

    sigma: Range = parameter(0, 50)

    @property
    def reach(self) -> int:
        return math.ceil(3 * self.sigma.high)

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        sigma = self.sigma.draw(rng)
        radius = math.ceil(3 * sigma)
        if not radius:
            return image
        place = torch.arange(-radius, radius + 1, dtype=torch.float32)
        line = torch.exp(-place.square() / (2 * sigma**2))
        line = line / line.sum()
        return convolve(convolve(image, line[:, None]), line[None])


@dataclass(frozen=True)
class Motion:
    """Blur along a line of a random direction."""

    length: Range = parameter(1, 200)

    @property
    def reach(self) -> int:
        return math.ceil(self.length.high / 2)

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        return convolve(image, line_kernel(self.length.draw(rng), math.pi * draw(rng)))


@dataclass(frozen=True)
class Jpeg:
    """Compress with JPEG, as Pillow does at its default chroma subsampling."""

    quality: Range = parameter(1, 100)
    reach: ClassVar[int] = 8

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        file = io.BytesIO()
        to_pil_image(to_levels(image).byte()).save(file, "JPEG", quality=round(self.quality.draw(rng)))
        return pil_to_tensor(open_image(file)).float() / 255


@dataclass(frozen=True)
class LowLight:
    """Darken with a gamma curve, then add clipped noise."""

    gamma: Range = parameter(1, 10)
    sigma: Range = parameter(0, 255, default=Range(0, 0))

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        dark = image.clamp(0, 1) ** self.gamma.draw(rng)
        return Noise(self.sigma, clip=True)(dark, rng) if self.sigma.high else dark


@dataclass(frozen=True)
class Haze:
    """Mix each pixel with a grey light, distant pixels more than near ones."""

    beta: Range = parameter(0, 10)

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        beta, light = self.beta.draw(rng), 0.7 + 0.3 * draw(rng)
        depth = F.interpolate(
            torch.rand(1, 1, 4, 4, generator=rng), size=image.shape[-2:], mode="bilinear", align_corners=True
        )
        transmission = torch.exp(-beta * depth[0])  # (1, H, W)
        return image * transmission + light * (1 - transmission)


@dataclass(frozen=True)
class Rain:
    """Add bright streaks: single drops, blurred along a line near the vertical."""

    amount: Range = parameter(0, 1000)
    reach: ClassVar[int] = 10

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        share = self.amount.draw(rng) / 1000
        angle, length = math.pi * (0.4 + 0.2 * draw(rng)), 9 + 10 * draw(rng)
        drops = (torch.rand(1, *image.shape[1:], generator=rng) < share).float()
        streaks = convolve(drops, line_kernel(length, angle)) * length * (0.3 + 0.4 * draw(rng))
        return (image + streaks).clamp(0, 1)


DEGRADATIONS: dict[str, Callable[..., Any]] = {
    "noise": Noise,
    "downscale": Downscale,
    "blur": Blur,
    "motion": Motion,
    "jpeg": Jpeg,
    "low_light": LowLight,
    "haze": Haze,
    "rain": Rain,
}


@dataclass(frozen=True)
class Chain:
    """Apply degradations one after the other."""

    steps: Sequence[Any] = ()

    @property
    def scale(self) -> int:
        """Return the factor by which the result is smaller."""
        return math.prod(getattr(step, "scale", 1) for step in self.steps)

    @property
    def reach(self) -> int:
        """Return how many pixels around a crop are degraded with it, a multiple of `scale`.

        The border of the crop is then as if the whole image were degraded, except that random numbers, JPEG's blocks
        and the depth of haze start at the degraded part.
        """
        pixels, scale = 0, 1
        for step in self.steps:
            pixels += scale * getattr(step, "reach", 0)
            scale *= getattr(step, "scale", 1)
        return math.ceil(pixels / scale) * scale

    def __call__(self, image: Tensor, rng: Generator) -> Tensor:
        """Degrade an image (C, H, W), whose sides are multiples of `scale`."""
        for step in self.steps:
            image = step(image, rng)
        return image


def parse_degradations(text: str) -> Chain:
    """Read a chain such as "blur:0.5-3,noise:25"; "pairs" is a chain without steps.

    Raises:
        ValueError: a name is unknown, or a value is missing, not a number, or out of range.
    """
    return Chain() if text == PAIRS else Chain(tuple(_parse_step(step.strip()) for step in text.split(",")))


def _parse_step(text: str) -> Any:
    name, *words = text.split(":")
    check_choice("degradation", name, [*DEGRADATIONS] if name == PAIRS else [*DEGRADATIONS, PAIRS])  # pairs is no step
    cls = DEGRADATIONS[name]
    options = fields(cls)  # type: ignore[arg-type]
    switches = [f.name for f in options if "low" not in f.metadata]
    ranges = [f for f in options if "low" in f.metadata]
    numbers = [(word, _parse_range(word)) for word in words if word not in switches]
    invalid = [word for word, number in numbers if number is None]
    if invalid or not 1 <= len(numbers) <= len(ranges):
        kind = f"neither a value nor a switch of {name}" if switches else "not a value"
        problem = f": {invalid[0]!r} is {kind}" if invalid else f" has {plural(len(numbers), 'value')}"
        labels = ((f.name.upper() if f in ranges else f.name, f.default is MISSING) for f in options)
        shape = name + "".join(f":{label}" if needed else f"[:{label}]" for label, needed in labels)
        example = f"{name}:2" if ranges[0].metadata["whole"] else f"{name}:2 or {name}:1-3"
        raise ValueError(f"degradation {text!r}{problem}; write it as {shape}, such as {example}")
    values: dict[str, Any] = {}
    for f, (word, number) in zip(ranges, numbers):
        low, high, whole = (f.metadata[key] for key in ("low", "high", "whole"))
        fits = not whole or (number.low == number.high and number.low.is_integer())
        if not (low <= number.low <= number.high <= high and fits):
            limits = f"number from {low} to {high}"
            accepted = f"a whole {limits}" if whole else f"a {limits}, or a range LOW-HIGH"
            raise ValueError(f"degradation {text!r} has the value {word}, but it must be {accepted}")
        values[f.name] = number
    return cls(**values | {switch: True for switch in switches if switch in words})


def _parse_range(word: str) -> Range | None:
    """Read NUMBER or LOW-HIGH; None if it is neither."""
    low, *rest = re.split(r"(?<=[\d.])-", word, maxsplit=1)  # not at the minus sign in 1e-3
    try:
        return Range(float(low), float(rest[0] if rest else low))
    except ValueError:
        return None


def draw(rng: Generator) -> float:
    """Draw a number from 0 to 1."""
    return float(torch.rand((), generator=rng))


def line_kernel(length: float, angle: float) -> Tensor:
    """Return the kernel (k, k) of a line through the centre, with sum 1; `angle` to the horizontal is in radians."""
    radius = math.ceil((length - 1) / 2)
    side = 2 * radius + 1
    along = (length - 1) * torch.linspace(-0.5, 0.5, 8 * side, dtype=torch.float64)  # points of the line
    x, y = radius + along * math.cos(angle), radius + along * math.sin(angle)
    places = torch.arange(side, dtype=torch.float64)
    columns, rows = (1 - (points[:, None] - places).abs() for points in (x, y))  # each point is spread over four pixels
    kernel = (rows.clamp(min=0).T @ columns.clamp(min=0)).float()
    return kernel / kernel.sum()


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel of an image (C, H, W) with a kernel of odd sides, reflecting the image at its borders."""
    rows, columns = (side // 2 for side in kernel.shape)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (rows, rows), (columns, columns)), "symmetric"))
    return F.conv2d(padded[:, None], kernel.flip(0, 1)[None, None].to(image.dtype))[:, 0]
