"""Check values against types with pydantic, and describe in words what a type accepts.

    size: Annotated[int, Field(ge=1, le=16)]
    head: Literal["small", "large"]
    crop: Annotated[tuple[Side, Side], Field(description="height and width in pixels")]

Options and entries of files are checked in the same way: True, 3.0 and "3" do not count as whole numbers, NaN and
infinity do not count as numbers, and a list is accepted for a tuple. The words in messages are derived from the
type, unless `Field(description=...)` or `where` gives them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import core_schema

from .text import did_you_mean

REMEDY = "Give a file that metamix train wrote"

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ShareBetween = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "path": "a path",
    "boolean": "true or false",
    "object": "a mapping {key: value}",
    "null": "none",
}
LIMITS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}

Rule: TypeAlias = TypeAdapter[Any]


def rule(hint: Any) -> Rule:
    """Make the rule that accepts the values of a type."""
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def rules_of(cls: Any, *without: str) -> dict[str, Rule]:
    """Return the rules of a dataclass's fields by name, except for the fields in `without`."""
    return dict(_rules(cls, without))


@cache  # making the rules of all options of a command takes 15 ms
def _rules(cls: Any, without: tuple[str, ...]) -> dict[str, Rule]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: rule(hints[field.name]) for field in fields(cls) if field.name not in without}


def one_of(words: Iterable[str]) -> GetPydanticSchema:
    """Limit a string type to the given words."""
    return GetPydanticSchema(lambda _, handler: handler(Literal.__getitem__(tuple(words))))


def where(check: Callable[[Any], object], accepted: str) -> GetPydanticSchema:
    """Limit a type to values that `check` accepts; `accepted` describes these values in messages."""

    def validate(value: Any) -> Any:
        if not check(value):
            raise ValueError
        return value

    return GetPydanticSchema(
        lambda hint, handler: core_schema.no_info_after_validator_function(validate, handler(hint)),
        lambda schema, handler: handler(schema) | {"description": accepted},
    )


def members_of(hint: Any) -> list[Any]:
    """Return the member types of a union without their constraints, or the type itself if it is not a union."""
    if get_origin(hint) is Annotated:
        return members_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for part in get_args(hint) for member in members_of(part)]
    return [hint]


def fits(value: object, rule: Rule) -> bool:
    """Return whether a rule accepts a value."""
    if isinstance(value, list):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    try:
        rule.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def accepted(rule: Rule, value: object) -> str:
    """Describe what a rule accepts instead of `value`, and suggest the most similar word if there is one."""
    schema = rule.json_schema()
    words = [word for part in schema.get("anyOf", [schema]) for word in part.get("enum", [part.get("const", "")])]
    return f"{_describe(schema)}{did_you_mean(value, words)}"


def _describe(schema: Mapping[str, Any]) -> str:
    """Say which values a JSON schema accepts."""
    if "description" in schema:
        return schema["description"]
    if "anyOf" in schema:
        return ", or ".join(map(_describe, schema["anyOf"]))
    if "const" in schema:  # before pydantic 2.10, there is an enum too
        return schema["const"]
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    parts = schema.get("items") or schema.get("prefixItems", [None])[0] or schema.get("additionalProperties")
    if isinstance(parts, Mapping):
        items = re.sub("^a ((finite |whole )?number|string|path)", r"\1s", _describe(parts))
        least, most = schema.get("minItems", 0), schema.get("maxItems", 0)
        if schema["type"] == "object":
            return f"a mapping {{key: value}} of {items}"
        if most:
            return f"a list of {least if least == most else f'{least} to {most:,}'} {items}"
        return f"a list [a, b] of {items}"
    words = WORDS[schema.get("format", schema["type"])]
    if {"minimum", "maximum"} <= schema.keys():
        return f"{words} from {schema['minimum']:,.10g} to {schema['maximum']:,.10g}"
    limits = [f"{limit} {schema[key]:,.10g}" for key, limit in LIMITS.items() if key in schema]
    if words == "a number" and limits and not {"maximum", "exclusiveMaximum"} & schema.keys():
        words = "a finite number"
    return " ".join([words, " and ".join(limits)]).rstrip()


def shown(value: object) -> str:
    """Format a value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_entries(
    values: Mapping[str, Any],
    rules: Mapping[str, Rule],
    source: object,
    place: str | None = "the metadata",
    remedy: str = REMEDY,
) -> None:
    """Raise ValueError if an entry of a file is missing, or if its rule does not accept it.

    The message names the file (`source`) and the part of it that holds the entries (`place`; None: the whole file).
    It ends with `remedy`, which says what to do.
    """
    inside = f" in {place}" if place else ""
    for name, rule in rules.items():
        if name not in values:
            raise ValueError(f"{source}: {name} is missing{inside}. {remedy}")
        if not fits(values[name], rule):
            must = accepted(rule, values[name])
            raise ValueError(f"{source}: {name}{inside} is {shown(values[name])}, but it must be {must} {remedy}")


def refuse_entry(name: str, value: object, accepted: str, source: object, remedy: str = REMEDY) -> NoReturn:
    """Raise the error of `check_entries` for an entry that another check refuses; `accepted` says what it must be."""
    raise ValueError(f"{source}: {name} in the metadata is {shown(value)}, but it must be {accepted}. {remedy}")
