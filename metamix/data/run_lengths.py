"""Check and decode the run lengths of masks in COCO's format."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def is_brush(annotation: Mapping[str, Any], shape: Any) -> bool:
    """Return whether an annotation is a mask drawn with CVAT's brush.

    Such a mask is one object, although CVAT marks it as a crowd.
    """
    return "attributes" in annotation and isinstance(shape, dict)  # COCO has no attributes


def read_runs(mask: dict[str, Any], height: int | None, width: int | None) -> tuple[list[int], str | None]:
    """Return the run lengths of a mask, and why they do not fit the image, or None. An unknown size is not checked."""
    size, counts = mask.get("size"), mask.get("counts")
    if height is not None and width is not None and size != [height, width]:
        return [], f"its mask has the height and width {size}, but the image has {[height, width]}"
    if isinstance(counts, str):
        counts = decode_runs(counts)
        if counts is None or any(count < 0 for count in counts):
            return [], "its mask has counts in COCO's text form that are damaged or cut off"
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        return [], "its mask needs counts: a list of integers of at least 0, or text"
    if height is not None and width is not None and sum(counts) != height * width:
        return [], f"its mask counts {sum(counts)} pixels, but the image has {height * width}"
    return counts, None


def decode_runs(text: str) -> list[int] | None:
    """Decode compressed `counts`, COCO's text form of run lengths; return None if it is damaged or cut off.

    Each character holds five bits of a run, the lowest bits first. Its code is 48 plus these bits, plus 32 if the run
    continues in the next character. In the last character of a run, the highest of the five bits is the sign. From the
    fourth run on, the text stores the difference from the run two places before.
    """
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 30:
            return None
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    return None if bits else runs


def fill_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Draw run lengths as a mask (H, W) bool. Runs go down the columns, and the first run lies outside the object."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
