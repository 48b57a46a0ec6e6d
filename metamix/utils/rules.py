"""State what an option or an entry of a file may be in the type of a dataclass field, and check it.

    size: Annotated[int, whole(1, 16)]
    flip: Share

`rules_of` reads the rules of a dataclass. Options check them when they are made; `check_entries` checks a file's.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeGuard, Union, get_args, get_origin, get_type_hints

METAMIX_FILE = "Give a file that metamix train wrote"


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes:
        accepted: in words.
        check: whether a value is accepted.
    """

    accepted: str
    check: Callable[[Any], bool]


def whole(low: int, high: int | None = None) -> Rule:
    """Accept whole numbers from `low` to `high`."""
    accepted = f"of at least {low}" if high is None else f"from {low} to {high:,}"
    return Rule(f"a whole number {accepted}", lambda value: is_whole(value, low, high))


def number(accepted: str, within: Callable[[float], bool]) -> Rule:
    """Accept finite numbers that `within` accepts; `accepted` says which."""
    return Rule(f"a number {accepted}", lambda value: is_number(value) and within(value))


def one_of(choices: Collection[str]) -> Rule:
    """Accept one of the words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: is_text(value) and value in choices)


def list_of(accepted: str, check: Callable[[Any], bool], least: int, most: int) -> Rule:
    """Accept lists of `least` to `most` values that `check` accepts; `accepted` says it in words."""
    return Rule(accepted, lambda value: is_list(value, check, least, most))


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is a string."""
    return isinstance(value, str)


def is_whole(value: object, low: int, high: int | None = None) -> TypeGuard[int]:
    """Return whether a value is a whole number from `low` to `high`; true and false do not count."""
    return type(value) is int and low <= value and (high is None or value <= high)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number; true and false do not count."""
    # Not math.isfinite, which raises OverflowError for an int that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_list(value: object, check: Callable[[Any], bool], least: int, most: int) -> bool:
    """Return whether a value is a list of `least` to `most` values that `check` accepts."""
    return isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(check, value))


SHARE = number("from 0 to 1", lambda n: 0 <= n <= 1)
SHARE_BELOW_ONE = number("of at least 0 and below 1", lambda n: 0 <= n < 1)

Text = Annotated[str, Rule("a string", is_text)]
Flag = Annotated[bool, Rule("true or false", lambda value: isinstance(value, bool))]
Share = Annotated[float, SHARE]
PositiveShare = Annotated[float, number("above 0 and at most 1", lambda n: 0 < n <= 1)]
ShareBelowOne = Annotated[float, SHARE_BELOW_ONE]
NotNegative = Annotated[float, number("that is finite and at least 0", lambda n: n >= 0)]
Positive = Annotated[float, number("that is finite and above 0", lambda n: n > 0)]
Natural = Annotated[int, whole(0)]
Count = Annotated[int, whole(1)]


def rules_of(cls: type) -> Mapping[str, Rule]:
    """Return the rules in the types of a dataclass's fields, by name.

    A type such as `Share | None` accepts None, too, and `Share | Literal["auto"]` the word.
    """
    rules: dict[str, Rule] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
        words += [None] * (NoneType in members)
        for member in members:
            for rule in getattr(member, "__metadata__", ()):
                if isinstance(rule, Rule):
                    rules[name] = accept_also(words, rule) if words else rule
    return rules


def accept_also(words: Collection[str | None], rule: Rule) -> Rule:
    """Accept some words, or None, and what another rule accepts. Messages do not mention them."""
    return replace(rule, check=lambda value: value in words or rule.check(value))


def check_entries(
    values: Mapping[str, Any],
    rules: Mapping[str, Rule],
    source: object,
    place: str = "the metadata",
    remedy: str = METAMIX_FILE,
) -> None:
    """Check entries of a file.

    Args:
        values: the entries.
        rules: of the entries; each must be there.
        source: the file, for messages.
        place: where the entries are in the file.
        remedy: what to do about a bad file.

    Raises:
        ValueError: an entry is missing, or its rule does not accept it.
    """
    for name, rule in rules.items():
        if name not in values:
            raise ValueError(f"{source}: there is no {name} in {place}. {remedy}")
        if not rule.check(values[name]):
            refuse_entry(name, values[name], rule.accepted, source, place, remedy)


def refuse_entry(
    name: str,
    value: object,
    accepted: str,
    source: object,
    place: str = "the metadata",
    remedy: str = METAMIX_FILE,
) -> NoReturn:
    """Raise ValueError for an entry of a file; see `check_entries`."""
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    raise ValueError(f"{source}: {name} in {place} is {shown}; accepted is {accepted}. {remedy}")
