"""Check the entries of files, which are untrusted.

What an entry may be stands in the type of a dataclass field: `size: Annotated[int, whole(1, 16)]`. `rules_of` reads the
rules of a dataclass, and `check_entries` applies them.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NoReturn, TypeGuard, get_args, get_type_hints

METAMIX_FILE = "Give a file that metamix train wrote"


@dataclass(frozen=True)
class Rule:
    """What an entry of a file may be.

    Attributes:
        accepted: in words.
        check: whether a value is accepted.
    """

    accepted: str
    check: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """Accept whole numbers from `low` to `high`."""
    return Rule(f"a whole number from {low} to {high:,}", lambda value: is_whole(value, low, high))


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


def is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    """Return whether a value is a whole number from `low` to `high`; true and false do not count."""
    return type(value) is int and low <= value <= high


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number; true and false do not count."""
    # Not math.isfinite, which raises OverflowError for an int that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_list(value: object, check: Callable[[Any], bool], least: int, most: int) -> bool:
    """Return whether a value is a list of `least` to `most` values that `check` accepts."""
    return isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(check, value))


Text = Annotated[str, Rule("a string", is_text)]
Flag = Annotated[bool, Rule("true or false", lambda value: isinstance(value, bool))]


def rules_of(cls: type) -> dict[str, Rule]:
    """Return the rules in the types of a dataclass's fields, by name. A type `... | None` accepts None, too."""
    rules: dict[str, Rule] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        members = [hint, *get_args(hint)]
        found = [rule for member in members for rule in getattr(member, "__metadata__", ()) if isinstance(rule, Rule)]
        if found and type(None) in members:
            rules[name] = replace(found[0], check=_or_none(found[0].check))
        elif found:
            rules[name] = found[0]
    return rules


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


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)
