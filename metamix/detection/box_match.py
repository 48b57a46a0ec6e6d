"""Compare the objects that two detectors find, and say which limits they miss."""

from typing import Any

import torch

from .objects import Objects

MOST_PIXELS = 0.5  # limit for the difference between boxes that match
MOST_UNMATCHED = 0.001  # share of the boxes
SAME_SCORE = 1e-3  # largest difference between the scores of one object, relative to the score
ALIKE_SCORE = 0.2  # as SAME_SCORE, for bf16 and int8


class BoxMatch:
    """Match the objects of one detector with the objects of another, over many images.

    The other detector may miss an object whose score lies at the threshold, or which is the last of a full list.

    Args:
        threshold: least score.
        most: objects in a full list.
        precision: precision of the second detector.
    """

    def __init__(self, threshold: float, most: int, precision: str = "fp32"):
        self.threshold, self.most = threshold, most
        self.tolerance = SAME_SCORE if precision == "fp32" else ALIKE_SCORE
        self.images = self.objects = self.detected = self.unmatched = 0
        self.largest = 0.0

    def update(self, expected: Objects, detected: Objects) -> None:
        """Add the objects that the first and the second detector find in an image."""
        self.images += 1
        self.detected += int(detected["scores"].isfinite().sum())
        last = float(expected["scores"][-1]) if len(expected["scores"]) == self.most else self.threshold
        for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"]):
            if score <= last * (1 + self.tolerance):
                continue
            self.objects += 1
            alike = (detected["labels"] == label) & ((detected["scores"] - score).abs() < self.tolerance * score)
            distances = (detected["boxes"][alike] - box).abs().amax(1) if alike.any() else torch.tensor([torch.inf])
            distance = float(distances.min())
            if not distance <= 16:  # another object, or not a number
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

    def problems(self, precision: str) -> list[str]:
        """Say in words which limits are missed. In bf16 boxes may differ, so only a model that finds nothing fails."""
        if precision != "fp32":
            blind = self.objects and not self.detected
            return [f"it finds no object, and the eager model finds {self.objects}"] if blind else []
        problems = []
        if self.largest > MOST_PIXELS:
            problems.append(f"boxes differ by up to {self.largest:.2f} pixels, the limit is {MOST_PIXELS}")
        if self.unmatched > MOST_UNMATCHED * self.objects:
            problems.append(f"{self.unmatched} of {self.objects} objects are not found (limit {MOST_UNMATCHED:.1%})")
        return problems
