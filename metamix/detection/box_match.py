"""Compare the objects that two detectors find, and say which limits their differences exceed."""

from typing import Any

import torch

from .objects import Objects

MAX_PIXELS = 0.5  # limit for the difference between the coordinates of matched boxes
MAX_UNMATCHED = 0.001  # limit for the share of objects without a match
SCORE_TOLERANCE = 1e-3  # limit for the difference between the scores of an object, relative to the score, in fp32
LOW_PRECISION_TOLERANCE = 0.2  # limit for the relative difference between the scores of an object in bf16 and int8


class BoxMatch:
    """Match the objects of one detector with the objects of another, over many images.

    The second detector is allowed to miss an object whose score is close to the threshold. If the list of objects is
    full, it is also allowed to miss an object whose score is close to the lowest score in the list.

    Args:
        threshold: lowest score of an object.
        most: largest number of objects that the detectors return for an image.
        precision: precision of the second detector.
    """

    def __init__(self, threshold: float, most: int, precision: str = "fp32"):
        self.threshold, self.most, self.precision = threshold, most, precision
        self.tolerance = SCORE_TOLERANCE if precision == "fp32" else LOW_PRECISION_TOLERANCE
        self.images = self.objects = self.detected = self.unmatched = 0
        self.largest = 0.0

    def update(self, expected: Objects, detected: Objects) -> None:
        """Add the objects that the first and the second detector find in an image."""
        self.images += 1
        self.detected += int((detected["scores"] > 0).sum())
        last = float(expected["scores"][-1]) if len(expected["scores"]) == self.most else self.threshold
        for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"]):
            if score <= last * (1 + self.tolerance):
                continue
            self.objects += 1
            alike = (detected["labels"] == label) & ((detected["scores"] - score).abs() < self.tolerance * score)
            distances = (detected["boxes"][alike] - box).abs().amax(1) if alike.any() else torch.tensor([torch.inf])
            distance = float(distances.min())
            if not distance <= 16:  # no similar object, a NaN box, or a box of another object
                self.unmatched += 1
            else:
                self.largest = max(self.largest, distance)

    def result(self) -> dict[str, Any]:
        """Return the figures for the report."""
        return {
            "images": self.images,
            "objects": self.objects,
            "unmatched": self.unmatched,
            "largest_difference_px": self.largest,
        }

    def problems(self) -> list[str]:
        """Describe each limit that is exceeded. In bf16 and int8, only a model that finds no object at all fails."""
        if self.precision != "fp32":
            blind = self.objects and not self.detected
            return [f"it finds no object, but the eager model finds {self.objects}"] if blind else []
        problems = []
        if self.largest > MAX_PIXELS:
            problems.append(f"boxes differ by up to {self.largest:.2f} pixels (limit {MAX_PIXELS})")
        if self.unmatched > MAX_UNMATCHED * self.objects:
            problems.append(f"{self.unmatched} of {self.objects} objects are not found (limit {MAX_UNMATCHED:.1%})")
        return problems
