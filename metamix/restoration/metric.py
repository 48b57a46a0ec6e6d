"""Define PSNR and SSIM exactly, and the metric of the restoration task.

    PSNR = 10 log10(1 / MSE)        for values from 0 to 1; the mean is over all pixels and channels of an image
    SSIM = mean of (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))

SSIM is defined as in Wang et al. (2004), with a Gaussian window of 11 x 11 pixels and sigma 1.5. In each window, m is a
mean, s^2 a variance and s_xy the covariance; c1 = 0.01^2 and c2 = 0.03^2. The mean is over the channels and over the
windows that lie inside the image. Images are not downsampled. The score of a set is the mean over its images.
Scores with different channels, borders or rounding must not be compared, so `Measure.describe` is printed with them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metamix.training.task import Batch, Metric, State
from metamix.utils.checks import check_finite

from .inference import Restorer, enlarge
from .pixels import to_8_bits, to_float64, to_grey, to_levels, to_y

WINDOW, SIGMA = 11, 1.5
# In dB. A higher PSNR counts as this value in a mean, since an image that equals its target has infinite PSNR.
BEST_PSNR = 100.0
SHOWN = 4  # images of each process that are kept for the contact sheet
LABELS = {"rgb": "RGB", "y": "Y (BT.601, 16 to 235)", "grey": "grey"}  # names of the compared channels


@dataclass(frozen=True)
class Measure:
    """The channels, the border and the rounding with which scores are computed."""

    # "rgb" for all channels, "y" for the luminance in studio range, or "grey" for the luma in full range. Images of one
    # channel are compared unchanged. A grey file has one channel if the channels of the data are y. If the channels of
    # the data are rgb, a grey file has three equal channels, and "y" converts them to studio range.
    channel: str = "rgb"
    border: int = 0  # pixels that are left out at each side
    rounding: bool = True  # clip and round the restored image to 8 bits first, as a file would hold it

    def prepare(self, image: Tensor, round_it: bool | None = None) -> Tensor:
        """Return an image (C, H, W) without its border, as float64 from 0 to 1; `round_it` overrides `rounding`."""
        image = to_float64(image)
        if self.rounding if round_it is None else round_it:
            image = to_8_bits(image)
        if image.shape[0] == 3 and self.channel != "rgb":
            image = to_y(image) if self.channel == "y" else to_grey(image)
        height, width = image.shape[-2:]
        self.check_size(height, width)
        return image[:, self.border : height - self.border, self.border : width - self.border]

    def check_size(self, height: int, width: int, name: object = "an image") -> None:
        """Raise ValueError if nothing of an image of this size is left inside the border."""
        if min(height, width) <= 2 * self.border:
            raise ValueError(
                f"{name} of {height} x {width} pixels has nothing inside a border of {self.border}: "
                f"give a smaller --score-border"
            )

    def score(self, restored: Tensor, target: Tensor) -> tuple[float, float]:
        """Return PSNR in dB and SSIM of a restored image and its target, (C, H, W) each.

        SSIM is NaN if the image without its border is smaller than the window.
        """
        x, y = self.prepare(restored), self.prepare(target, round_it=False)
        fits = min(x.shape[-2:]) >= WINDOW
        return psnr(x, y), float(ssim(x[None], y[None])) if fits else math.nan

    def describe(self, channels: str = "rgb") -> str:
        """Describe in one line what PSNR and SSIM compare, for images of these channels: rgb, grey or y."""
        channel = LABELS[self.channel if channels == "rgb" else channels]
        rounding = "clipped and rounded to 8 bits" if self.rounding else "not clipped, not rounded"
        return f"PSNR (peak 255) and SSIM (Gaussian 11 x 11, sigma 1.5) on {channel}, border {self.border}, {rounding}"


def psnr(x: Tensor, y: Tensor) -> float:
    """Compute the PSNR in dB of images with values from 0 to 1; infinite if they are equal."""
    error = (to_float64(x) - to_float64(y)).square().mean().item()
    return 10 * math.log10(1 / error) if error else math.inf


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Compute the SSIM of images (B, C, H, W) with values from 0 to 1 and sides of at least 11: (B,)."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    line = torch.exp(-place.square() / (2 * SIGMA**2))
    weights = (line / line.sum()).tolist()

    def blur(images: Tensor) -> Tensor:
        for dim in (-2, -1):  # adding shifted images is three times as fast as torch 2.13's float64 convolution
            length = images.shape[dim] - WINDOW + 1
            total = images.narrow(dim, 0, length) * weights[0]
            for i, weight in enumerate(weights[1:], 1):
                total.add_(images.narrow(dim, i, length), alpha=weight)
            images = total
        return images

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return likeness.mean((1, 2, 3))


class RestorationMetric(Metric):
    """Score restored images, and the inputs before restoration."""

    def __init__(self, measure: Measure, restorer: Restorer):
        self.measure, self.restorer = measure, restorer

    def start(self) -> State:
        """Return an empty state: rows of scores, and images to show."""
        return {"rows": [], "shown": []}

    def predict(self, model: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """Yield each restored image (C, H, W)."""
        return (self.restorer(model, image[None])[0] for image in batch["image"])

    def update(self, state: State, outputs: Iterable[Tensor], batch: Batch) -> None:
        rows = zip(outputs, batch["image"], batch["target"], batch["index"].tolist(), batch["name"], strict=True)
        for output, image, target, index, name in rows:
            restored = check_finite(output.float(), name)
            before = enlarge(image, target.shape[-1] // image.shape[-1])  # the baseline: bicubic enlargement
            with torch.autocast(image.device.type, enabled=False):
                row = dict(zip(("psnr", "ssim"), self.measure.score(restored, target)))
                row |= dict(zip(("input_psnr", "input_ssim"), self.measure.score(before, target)))
            state["rows"].append({"index": index, "image": name, **row})
            if len(state["shown"]) < SHOWN:
                trio = [to_levels(picture).byte().cpu() for picture in (before, restored, target)]
                state["shown"].append((index, trio))

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the means over all images, PSNR first.

        SSIM is the mean over the images whose SSIM is not NaN; see `Measure.score`. If all are NaN, it is left out.
        """
        rows, means = all_rows(states), {}
        for name in ("psnr", "ssim", "input_psnr", "input_ssim"):
            if scores := [min(row[name], BEST_PSNR) for row in rows if not math.isnan(row[name])]:
                means[name] = sum(scores) / len(scores)
        return means


def all_rows(states: Sequence[State]) -> list[dict[str, Any]]:
    """Return the scores of all images, sorted by their indices."""
    return sorted((row for state in states for row in state["rows"]), key=lambda row: row["index"])
