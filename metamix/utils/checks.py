"""Check the values of options. Each function raises ValueError with the option's name and what is accepted."""

import math
from numbers import Integral, Real
from typing import Any

from timm.layers import to_2tuple


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}.")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}: give a finite number of at least 0.")


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} is {value!r}: give a number from 0 to 1.")


def check_one_source(pretrained: bool, checkpoint: object) -> None:
    """Raise ValueError if both published weights and a file are asked for."""
    if pretrained and checkpoint:
        raise ValueError(f"pretrained and checkpoint ({checkpoint}) both say where weights come from: give one.")


def parse_size(name: str, given: int | tuple[int, int]) -> tuple[int, int]:
    """Turn one number or (height, width) into (height, width).

    Raises:
        ValueError: `given` is not one or two integers of at least 1.
    """
    size = to_2tuple(given)
    if len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise ValueError(f"{name} is {given!r}: give one number of at least 1, or two of them, (height, width).")
    return size
