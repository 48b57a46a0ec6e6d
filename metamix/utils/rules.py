"""Declare in the type of a dataclass field which values an option or an entry of a file may have, and check them.

    size: Annotated[int, whole(1, 16)]
    flip: Share

`rules_of` reads the rules of a dataclass. Options check their values when they are made, and `check_entries` checks
those of a file.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeGuard, Union, get_args, get_origin, get_type_hints

from .text import did_you_mean

REMEDY = "Give a file that metamix train wrote"


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes:
        accepted: in words.
        check: whether a value is accepted.
        choices: words that are accepted; messages name the nearest.
    """

    accepted: str
    check: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def whole(low: int, high: int | None = None) -> Rule:
    """Accept whole numbers from `low` to `high`."""
    accepted = f"of at least {low}" if high is None else f"from {low} to {high:,}"
    return Rule(f"a whole number {accepted}", lambda value: is_whole(value, low, high))


def number(accepted: str, within: Callable[[float], bool]) -> Rule:
    """Accept finite numbers that `within` accepts; `accepted` says it in words."""
    return Rule(accepted, lambda value: is_number(value) and within(value))


def one_of(choices: Collection[str]) -> Rule:
    """Accept one of the words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: is_text(value) and value in choices, tuple(choices))


def list_of(accepted: str, check: Callable[[Any], bool], least: int, most: int) -> Rule:
    """Accept lists of `least` to `most` values that `check` accepts; `accepted` says it in words."""
    return Rule(accepted, lambda value: is_list(value, check, least, most))


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is a string."""
    return isinstance(value, str)


def is_whole(value: object, low: int, high: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an int from `low` to `high`. True, False and numpy's integers are not accepted."""
    return type(value) is int and low <= value and (high is None or value <= high)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number. True and False are not accepted."""
    # Not math.isfinite, which raises OverflowError for an int that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_list(value: object, check: Callable[[Any], bool], least: int, most: int) -> bool:
    """Return whether a value is a list of `least` to `most` values that `check` accepts."""
    return isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(check, value))


SHARE = number("a number from 0 to 1", lambda n: 0 <= n <= 1)
POSITIVE_SHARE = number("a number above 0 and at most 1", lambda n: 0 < n <= 1)

Text = Annotated[str, Rule("a string", is_text)]
Flag = Annotated[bool, Rule("true or false", lambda value: isinstance(value, bool))]
Share = Annotated[float, SHARE]
PositiveShare = Annotated[float, POSITIVE_SHARE]
ShareBelowOne = Annotated[float, number("a number of at least 0 and below 1", lambda n: 0 <= n < 1)]
ShareBetween = Annotated[float, number("a number above 0 and below 1", lambda n: 0 < n < 1)]
NotNegative = Annotated[float, number("a finite number of at least 0", lambda n: n >= 0)]
Positive = Annotated[float, number("a finite number above 0", lambda n: n > 0)]
Natural = Annotated[int, whole(0)]
Count = Annotated[int, whole(1)]


def rules_of(cls: type) -> dict[str, Rule]:
    """Return the rules in the types of a dataclass's fields, by name.

    A type such as `Share | None` accepts None, too, and `Share | Literal["auto"]` the word.
    """
    rules: dict[str, Rule] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        members = members_of(hint)
        words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
        if NoneType in members:
            words.append(None)
        for member in members:
            for rule in getattr(member, "__metadata__", ()):
                if isinstance(rule, Rule):
                    rules[name] = accept_also(words, rule) if words else rule
    return rules


def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def accept_also(words: Collection[str | None], rule: Rule) -> Rule:
    """Accept what another rule accepts, and some words, or None."""
    accepted = " or ".join("none" if word is None else word for word in words)
    check = rule.check
    return replace(rule, accepted=f"{rule.accepted}, or {accepted}", check=lambda value: value in words or check(value))


def shown(value: object) -> str:
    """Write a value for a message: the first 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_entries(
    values: Mapping[str, Any],
    rules: Mapping[str, Rule],
    source: object,
    place: str = "the metadata",
    remedy: str = REMEDY,
) -> None:
    """Check entries of a file.

    Args:
        values: the entries.
        rules: rule of each entry, by its name. An entry that is missing is an error.
        source: the file, for messages.
        place: where the entries are in the file.
        remedy: what to do about a bad file.

    Raises:
        ValueError: an entry is missing, or its rule does not accept it.
    """
    for name, rule in rules.items():
        if name not in values:
            raise ValueError(f"{source}: there is no {name} in {place}. {remedy}")
        check_entry(name, values[name], rule, source, place, remedy)


def check_entry(
    name: str, value: Any, rule: Rule, source: object, place: str = "the metadata", remedy: str = REMEDY
) -> None:
    """Check one entry as `check_entries` does."""
    if not rule.check(value):
        accepted = f"{rule.accepted}{did_you_mean(value, rule.choices)}"
        raise ValueError(f"{source}: {name} in {place} is {shown(value)}; accepted is {accepted} {remedy}")


def refuse_entry(name: str, value: object, accepted: str, source: object, remedy: str = REMEDY) -> NoReturn:
    """Raise the error of `check_entry` for an entry that does not fit another; `accepted` says what would."""
    raise ValueError(f"{source}: {name} in the metadata is {shown(value)}; accepted is {accepted}. {remedy}")
