"""Compare the outputs of an exported model with the outputs of the original model."""

import math
from dataclasses import dataclass

from torch import Tensor

MAX_DIFFERENCE = 1e-4  # limit for the largest difference in fp32, relative to the standard deviation of the outputs
MIN_SAME_TOP1 = 0.999  # limit for fp32: smallest share of images or pixels with the same most probable class
MAX_BF16_RMS = 0.05  # limit for the root mean square of the difference in bf16, in standard deviations of the outputs


@dataclass
class Difference:
    """Measure the difference between the outputs of two models over many batches."""

    precision: str  # precision of the second model; it decides which limits apply
    ranked: bool = False  # whether the outputs are scores of classes, so that the most probable class is compared
    largest: float = 0.0
    images: int = 0
    count: int = 0  # number of images or pixels whose classes are compared
    same: int = 0  # number of images or pixels with the same most probable class in both models
    values: int = 0  # number of expected values
    total: float = 0.0  # sum of the expected values
    total_squares: float = 0.0  # sum of the squared expected values
    squared_errors: float = 0.0  # sum of the squared differences

    def update(self, expected: Tensor, actual: Tensor) -> None:
        """Add the outputs of both models for n images, (n, ...); if `ranked` is true, (n, classes, ...)."""
        self.images += len(expected)
        if self.ranked:  # one row of scores for each image or pixel
            expected, actual = (outputs.movedim(1, -1).flatten(0, -2) for outputs in (expected, actual))
        expected, actual = expected.double(), actual.double()
        errors = (expected - actual).abs().nan_to_num(math.inf, math.inf)
        self.largest = max(self.largest, float(errors.max()))
        self.values += expected.numel()
        self.total += float(expected.sum())
        self.total_squares += float(expected.square().sum())
        self.squared_errors += float(errors.square().sum())
        if self.ranked:
            self.count += len(expected)
            self.same += int((expected.argmax(1) == actual.argmax(1)).sum())

    def result(self) -> dict[str, float]:
        """Return the measured differences by name, for the report."""
        variance = self.total_squares / self.values - (self.total / self.values) ** 2
        unit = max(variance, 0.0) ** 0.5 or 1.0  # standard deviation of the expected outputs
        figures = {
            "images": self.images,
            "largest_difference": self.largest,
            "of_the_deviation": self.largest / unit,
            "rms_of_the_deviation": (self.squared_errors / self.values) ** 0.5 / unit,
        }
        return figures | ({"same_top1": self.same / self.count} if self.ranked else {})

    def problems(self) -> list[str]:
        """Describe each limit that is exceeded. int8 has no limits here: its drop in accuracy is limited instead."""
        figures, problems = self.result(), []
        rms, largest = figures["rms_of_the_deviation"], figures["of_the_deviation"]
        if self.precision == "bf16" and not rms <= MAX_BF16_RMS:
            problems.append(
                f"the root mean square of the difference is {rms:.2g} of the outputs' standard deviation, and the "
                f"limit for bf16 is {MAX_BF16_RMS:g}"
            )
        if self.precision == "fp32" and not largest <= MAX_DIFFERENCE:
            problems.append(
                f"the outputs differ by up to {largest:.2g} of their standard deviation, and the limit is "
                f"{MAX_DIFFERENCE:g}"
            )
        if self.precision == "fp32" and figures.get("same_top1", 1) < MIN_SAME_TOP1:
            noun = "images" if self.count == self.images else "pixels"
            share = f"{figures['same_top1']:.2%} of the {noun} (limit {MIN_SAME_TOP1:.1%})"
            problems.append(f"the most probable class is the same for {share}")
        return problems
