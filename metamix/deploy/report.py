"""Compare an exported model with the original model, and measure its speed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from metamix.utils.timing import interleaved

MAX_DIFFERENCE = 1e-4  # limit for fp32, relative to the standard deviation of the outputs
MIN_SAME_TOP1 = 0.999  # smallest share of images whose most probable class fp32 must keep
MAX_BF16_RMS = 0.05  # limit of the root mean square for bf16, relative to the standard deviation of the outputs


@dataclass
class Difference:
    """Measure the difference between the outputs of two models over many batches."""

    ranked: bool = False  # whether the outputs are scores of classes, so that the most probable class is compared
    largest: float = 0.0
    images: int = 0
    count: int = 0  # rows of the outputs
    same: int = 0  # rows with the same most probable class
    values: int = 0  # number of expected values
    total: float = 0.0  # their sum
    total_squares: float = 0.0  # sum of their squares
    squared_errors: float = 0.0  # sum of the squared differences

    def update(self, expected: Tensor, actual: Tensor, *, images: int | None = None) -> None:
        """Add the outputs (n, ...) of both models for the same images; pass `images` if n is not their number."""
        expected, actual = expected.double(), actual.double()
        errors = (expected - actual).abs().nan_to_num(math.inf, math.inf)
        self.largest = max(self.largest, float(errors.max()))
        self.values += expected.numel()
        self.total += float(expected.sum())
        self.total_squares += float(expected.square().sum())
        self.squared_errors += float(errors.square().sum())
        self.images += len(expected) if images is None else images
        self.count += len(expected)
        if self.ranked:
            self.same += int((expected.argmax(1) == actual.argmax(1)).sum())

    def result(self) -> dict[str, float]:
        """Return the numbers for the report."""
        variance = self.total_squares / self.values - (self.total / self.values) ** 2
        unit = max(variance, 0.0) ** 0.5 or 1.0  # deviation of the expected outputs
        figures = {
            "images": self.images,
            "largest_difference": self.largest,
            "of_the_deviation": self.largest / unit,
            "rms_of_the_deviation": (self.squared_errors / self.values) ** 0.5 / unit,
        }
        return figures | ({"same_top1": self.same / self.count} if self.ranked else {})


def exceeded_limits(figures: dict[str, Any], precision: str) -> list[str]:
    """Describe each limit that the result of a `Difference` exceeds. For int8, the accuracy has a limit instead."""
    if precision == "int8":
        return []
    if precision == "bf16":
        if figures["rms_of_the_deviation"] <= MAX_BF16_RMS:
            return []
        return [
            f"the root mean square of the difference is {figures['rms_of_the_deviation']:.2g} of the outputs' standard "
            f"deviation, and the limit for bf16 is {MAX_BF16_RMS:g}"
        ]
    problems = []
    if not figures["of_the_deviation"] <= MAX_DIFFERENCE:
        problems.append(
            f"the outputs differ by up to {figures['of_the_deviation']:.2g} of their standard deviation, and the limit "
            f"is {MAX_DIFFERENCE:g}"
        )
    if figures.get("same_top1", 1) < MIN_SAME_TOP1:
        share = f"{figures['same_top1']:.2%} of the images (limit {MIN_SAME_TOP1:.1%})"
        problems.append(f"the most probable class is the same for {share}")
    return problems


def speeds(models: Mapping[str, Callable[[Tensor], object]], image: Tensor, seconds: float) -> dict[str, dict]:
    """Measure the latency of each model for batches of 1 and 8, and its throughput for batches of 8.

    The models take turns. A batch holds copies of `image` (1, C, H, W). All measurements together take `seconds`.
    """
    batches = {n: image.repeat(n, 1, 1, 1) for n in (1, 8)}
    steps = {(name, n): partial(model, batch) for name, model in models.items() for n, batch in batches.items()}
    medians = interleaved(steps, seconds)
    return {
        name: {
            "batch_1_ms": round(1000 * medians[name, 1], 3),
            "batch_8_ms": round(1000 * medians[name, 8], 3),
            "img_per_s": round(8 / medians[name, 8], 1),
        }
        for name in models
    }
