"""Check and parse arguments, and check outputs of models. Messages say what was given and what is accepted."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor

from .text import did_you_mean, list_names, to_number


class DoesNotFit(ValueError):
    """Raised for an image that the model cannot take or the file format cannot hold."""


def check_counts(least: int, **values: Any) -> None:
    """Raise ValueError unless all values, which are passed by name, are whole numbers of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}.")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}: give a finite number of at least 0.")


def check_rates(**values: Any) -> None:
    """Raise ValueError unless all values, which are passed by name, are numbers from 0 to 1."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
            raise ValueError(f"{name} is {value!r}: give a number from 0 to 1.")


def check_choice(name: str, value: Any, accepted: Collection[str], advice: str = "") -> None:
    """Raise ValueError unless `value` is accepted; the message suggests a similar word and ends with `advice`."""
    if value not in accepted:
        words = f"{name} is {value!r}{did_you_mean(value, accepted)} Accepted: {list_names(accepted, 50) or 'none'}."
        raise ValueError(f"{words} {advice}".rstrip())


def check_known(owner: str, options: Iterable[str], accepted: Collection[str], advice: str = "") -> None:
    """Raise ValueError for an option that is not accepted; the message names `owner` and a similar option."""
    for option in options:
        if option not in accepted:
            words = f"{owner} has no option {option!r}{did_you_mean(option, accepted)} {advice}".rstrip()
            raise ValueError(f"{words} Its options: {', '.join(sorted(accepted)) or 'none'}.")


def check_one_source(pretrained: bool, checkpoint: object) -> None:
    """Raise ValueError if both published weights and a checkpoint are chosen."""
    if pretrained and checkpoint:
        raise ValueError(f"pretrained and checkpoint ({checkpoint}) both say where weights come from: give one.")


def parse_size(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Turn one number or (height, width) into (height, width); raise ValueError unless sides are positive integers."""
    size = to_2tuple(value)
    if len(size) != 2 or not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in size):
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1, or (height, width).")
    return int(size[0]), int(size[1])


def check_finite(outputs: Tensor, name: object = "") -> Tensor:
    """Return a model's outputs unchanged; raise ValueError, which names the image, if a value is infinite or NaN."""
    if not outputs.numel():
        return outputs
    least, most = outputs.amin(), outputs.amax()  # both are NaN if any value is; a mask would need more memory
    if not (least.isfinite() and most.isfinite()):
        place = f"{name}: " if name else ""
        raise ValueError(f"{place}the model returns NaN or infinity: use other weights, or --amp none")
    return outputs


def parse_weighted_sum(text: str, names: Collection[str]) -> dict[str, float]:
    """Parse a weighted sum of losses such as "charbonnier+0.1*fft"; return the weights by name.

    Raises:
        ValueError: a name is unknown or repeated, or a weight is not a number above 0.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        first, star, second = term.strip().partition("*")
        name = (second if star else first).strip()
        check_choice("loss", name, names)
        if name in weights:
            raise ValueError(f"loss is {text!r}, which has {name} twice; keep one")
        weights[name] = to_number(first) if star else 1.0
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"loss is {text!r}, but the weight of {name} must be a number above 0, as in 0.1*{name}")
    return weights
