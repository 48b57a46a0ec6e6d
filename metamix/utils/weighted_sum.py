"""Read weighted sums of named losses, such as "charbonnier+0.1*fft"."""

from collections.abc import Collection

from .text import did_you_mean


def parse_weighted_sum(text: str, names: Collection[str]) -> dict[str, float]:
    """Read a weighted sum of losses into weights by name.

    Args:
        text: terms "name" or "weight*name", joined by "+".
        names: names of all losses.

    Raises:
        ValueError: an unknown or repeated name, or a weight that is not a number above 0.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        first, star, second = term.strip().partition("*")
        name = (second if star else first).strip()
        if name not in names:
            raise ValueError(f"there is no loss {name!r}{did_you_mean(name, names)} Known: {', '.join(names)}.")
        if name in weights:
            raise ValueError(f"loss is {text!r}, which has {name} twice; keep one of them")
        try:
            weights[name] = float(first) if star else 1.0
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"loss is {text!r}, but the weight of {name} must be a number above 0: 0.1*{name}")
    return weights
