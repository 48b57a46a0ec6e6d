"""Declare options as dataclass fields, and read them from YAML and from the command line.

A field's name is its key in YAML and, with dashes, its flag. Its annotation is its type, which pydantic checks: bool,
int, float, str, Path, dict, tuple[X, ...], Literal[...], or a union such as `int | None`. Types with a rule, such as
`Share`, also say which values are accepted; see `metamix.utils.rules`.

`metamix.training.recipe.RecipeReader` reads the options of train and eval; `parse_command` reads all others.
"""

import argparse
import copy
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from .files import MAX_NESTING, read_text
from .rules import accepted, fits, members_of, rule, rules_of, shown
from .text import did_you_mean

T = TypeVar("T")
MAX_PLAIN = 3500  # characters of a YAML value without quotes: 1:1:1 is a number, and is read in quadratic time
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", tuple: "A,B", dict: "YAML"}


@dataclass
class Options:
    """Check options: raise ValueError if a value does not fit its type. A Path also fits the type str.

    If a subclass defines `__post_init__`, it must call `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        for name, limits in rules_of(type(self)).items():
            value = getattr(self, name)
            if not fits(value, limits) and not (isinstance(value, Path) and fits(str(value), limits)):
                raise ValueError(f"{name} is {shown(value)}, but it must be {accepted(limits, value)}")


def option(
    default: Any,
    help: str,
    *,
    group: str = "options",
    on_resume: Literal["refuse", "report", "ignore"] = "refuse",
    needs: str = "",
    metavar: str = "",
) -> Any:
    """Declare an option as a field of a dataclass.

    Args:
        default: value if the option is not given; MISSING if it must be given.
        help: one sentence for --help.
        group: heading in --help.
        on_resume: what to do if the value has changed when a run is resumed. "refuse" raises an error, since a run
            with another value is a different run; "report" allows and reports the change; "ignore" allows it, since no
            result depends on the option.
        needs: option without which this option has no effect. Give its name, its name and value ("schedule poly"), or
            alternatives ("mixup or cutmix").
        metavar: word for the value in --help, such as FOLDER; by default it is derived from the type.
    """
    metadata = {"help": help, "group": group, "on_resume": on_resume, "needs": needs, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def positional(help: str, *, metavar: str, default: Any = MISSING) -> Any:
    """Declare a positional argument of a command as a field of a dataclass, like `option`.

    The type `tuple[X, ...]` takes all remaining words; every other type takes one word.
    """
    return field(default=default, metadata={"help": help, "metavar": metavar, "positional": True})


def options_of(*classes: type, defaults: Mapping[str, Any] | None = None) -> dict[str, tuple[Field, Any]]:
    """Return the field and the type of each option of some dataclasses, by name; raise ValueError if names repeat.

    Args:
        defaults: defaults of some options, which replace the defaults of the dataclasses, and which --help shows.
    """
    options: dict[str, tuple[Field, Any]] = {}
    for cls in classes:
        types = get_type_hints(cls, include_extras=True)
        for f in fields(cls):
            if f.name in options:
                raise ValueError(
                    f"{cls.__name__} has an option {f.name!r}, and so has {classes[0].__name__}: rename it"
                )
            if defaults and f.name in defaults:
                f = copy.copy(f)
                f.default = defaults[f.name]
            options[f.name] = f, types[f.name]
    return options


def check_needs(flags: Iterable[str], values: Mapping[str, Any], options: Mapping[str, tuple[Field, Any]]) -> None:
    """Raise ValueError if a given flag has no effect because the option that it needs is not set.

    A flag that switches an option off, such as --no-compile, needs nothing.
    """
    for name in flags:
        if values[name] is None or values[name] is False:
            continue
        needs = [words.split() for words in options[name][0].metadata.get("needs", "").split(" or ") if words]
        if needs and not any(str(values[other]) in wanted if wanted else values[other] for other, *wanted in needs):
            needed = " or ".join(" ".join([_flag(other), *wanted]) for other, *wanted in needs)
            raise ValueError(f"{_flag(name)} has no effect without {needed}; give both or neither")


def changed(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, all required options, and all options of type dict."""
    return {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}


def changed_flags(options: Any, *names: str) -> list[str]:
    """Return command-line arguments for the options in `names` whose values differ from their defaults."""
    words: list[str] = []
    for name, value in changed(options).items():
        if name in names:
            words += [_flag(name)] if value is True else [_flag(name), "none" if value is None else str(value)]
    return words


class Parser(argparse.ArgumentParser):
    """Parse flags, among them `--import`. On an error, raise ValueError instead of printing the usage and exiting."""

    def __init__(self, **settings: Any) -> None:
        layout: Any = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(formatter_class=layout, add_help=False, allow_abbrev=False, **settings)
        self.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="module with mixers, models or tasks of your own; may be repeated",
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def no_option(
    word: object,
    known: Iterable[str],
    *,
    task: str = "",
    tasks: Iterable[str] = (),
    task_options: Callable[[str], type] = lambda task: Options,
    advise: bool = False,
) -> str:
    """Return the error message for an unknown option; `word` is a flag or a key of a config.

    If `tasks` other than `task` have the option, the message names them and, with `advise`, says how to choose one.
    Otherwise it suggests a similar option of `known`. `task_options` returns the dataclass of a task's options.
    """
    text = f"there is no option {word if str(word).startswith('-') else shown(word)}"
    name = str(word).removeprefix("--").removeprefix("no-").replace("-", "_")
    having = [other for other in tasks if other != task and name in options_of(task_options(other))]
    if not having:
        name = "lr" if name == "learning_rate" else str(word)  # the names are too different for a suggestion
        return text + did_you_mean(name, known)
    advice = f": add --task {having[0]}" if advise else ""
    return f"{text} for {task}; it is an option of {' and '.join(having)}{advice}"


def parse_command(
    argv: Sequence[str],
    cls: type[T],
    prog: str,
    *,
    description: str = "",
    epilog: str = "",
    unknown: Callable[[object, Iterable[str]], str] = no_option,
) -> tuple[T, set[str]]:
    """Read a command line into a dataclass. `--import MODULE` imports modules first; `--help` exits with 0.

    Args:
        argv: command-line arguments. After `--`, all of them are positional.
        cls: dataclass, whose fields are declared with `option` and `positional`.
        prog: the command, such as "metamix export".
        description: what the command does; by default the docstring of `cls`.
        unknown: returns the message about an unknown flag; see `no_option`.

    Returns:
        The options, and the names of the options that the command line sets.

    Raises:
        ValueError: an option is unknown, missing, of the wrong type or out of range, or has no effect.
    """
    options = options_of(cls)
    words = [_placeholder(f, hint) for f, hint in options.values() if _is_positional(f)]
    usage = " ".join([prog, *words, "[--option value ...]"])
    parser = Parser(prog=prog, usage=usage, description=description or getdoc(cls), epilog=epilog)
    values = parse_flags(parser, argv, options, unknown)
    for name, (f, _) in options.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{_title(f)} is missing: {f.metadata['help']}. {prog} --help lists all options")
    result = cls(**values)
    check_needs(values, vars(result), options)
    return result, set(values)


def parse_flags(
    parser: Parser,
    argv: Sequence[str],
    options: Mapping[str, tuple[Field, Any]],
    unknown: Callable[[object, Iterable[str]], str],
    other_flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Add --help and a flag for each option to the parser, and return the values that the command line gives.

    Import the modules of `--import`. Flags may have underscores. Raise ValueError for a wrong flag, word or value.

    Args:
        unknown: returns the message about an unknown flag; see `no_option`.
        other_flags: flags that the parser already has.
    """
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    positionals = [f for f, _ in options.values() if _is_positional(f)]
    if positionals:  # argparse does not read them, since it accepts no flags between them
        lines = [f"  {f.metadata['metavar']:<20}  {f.metadata['help']}" for f in positionals]
        parser.description = "\n".join([parser.description or "", "", "arguments:", *lines])
    groups: dict[str, Any] = {"options": parser}
    flags = ["--import", *other_flags]
    for name, (f, hint) in options.items():
        if _is_positional(f):
            continue
        title = f.metadata.get("group", "options")
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        is_switch = bool in members_of(hint)
        kind = {"action": argparse.BooleanOptionalAction} if is_switch else {"metavar": _metavar(f, hint)}
        flag = groups[title].add_argument(_flag(name), dest=name, default=argparse.SUPPRESS, help=_help(f), **kind)
        flags += flag.option_strings
    end = argv.index("--") if "--" in argv else len(argv)
    namespace, words = parser.parse_known_args([_with_dashes(word) for word in argv[:end]])
    import_modules(namespace.imports)
    if wrong := next((word for word in words if word.startswith("-") and word != "-"), None):
        if positionals and not wrong.startswith("--"):
            raise ValueError(f"there is no option {wrong}; write -- before a name that begins with -")
        raise ValueError(unknown(wrong.partition("=")[0], flags))
    words += argv[end + 1 :]
    values: dict[str, Any] = {name: value for name, value in vars(namespace).items() if name in options}
    for f in positionals:
        if words:
            values[f.name], words = (words, []) if _is_list(options[f.name][1]) else (words[0], words[1:])
    if words:
        raise ValueError(f"{words[0]!r} is not an option; write --name value, or --name or --no-name for a switch")
    return {
        name: convert(value, options[name][1], _title(options[name][0]), text=True) for name, value in values.items()
    }


def import_modules(names: Sequence[str]) -> None:
    """Import modules that are in the working folder or installed; raise ValueError if a module cannot be imported."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # Python does not add the working folder for an installed `metamix` command
    for name in names:
        try:
            if not name or name.startswith("."):  # import_module raises ValueError or TypeError for these
                raise ImportError("it is a path" if name else "it is empty")
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"--import {name} failed: {error}; give a module, such as my_mixers for the file my_mixers.py, that is "
                f"in the working folder or installed"
            ) from error


def take_flags(argv: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Import the modules of `--import`; return the values of the flags `names` that are given, and the other words."""
    parser = Parser()
    for name in names:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    namespace, words = parser.parse_known_args(argv)
    import_modules(namespace.imports)
    return {name: value for name, value in vars(namespace).items() if name in names}, words


def convert(value: Any, hint: Any, where: str, *, text: bool = False) -> Any:
    """Convert a value to a type; raise ValueError if it does not fit. A path that begins with ~/ is expanded.

    Args:
        where: where the value was given, for the message.
        text: whether the value is a word of the command line, to be parsed as a number, a list `a,b` or a YAML mapping.
    """
    original, members = value, members_of(hint)
    kinds = {get_origin(member) or member for member in members}
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if NoneType in kinds and str(value).lower() in ("", "none", "null"):
        return None
    value = _expand_home(value)
    if "" in (value if isinstance(value, (list, tuple)) else [value]) and (Path in kinds or hint == tuple[Path, ...]):
        raise ValueError(f"{where} is empty: give a path, or . for the current folder")
    if Path in kinds and isinstance(value, str):
        value = Path(value)
    if text and dict in kinds:
        value = _parse_yaml(value, f"{where} {shown(value)}", "; write '{key: value}'")
    if tuple in kinds and value not in choices:
        value = _as_tuple(value, kinds)
    if "yes" in choices and isinstance(value, bool):  # YAML 1.1 reads yes and no as booleans
        value = "yes" if value else "no"
    limits = rule(hint)
    try:
        return limits.validate_python(value, strict=not text)
    except ValidationError:
        words = "empty" if original is None else shown(original)
        raise ValueError(f"{where} is {words}, but it must be {accepted(limits, original)}") from None


def _as_tuple(value: Any, kinds: Set[type]) -> Any:
    """Convert a list, a word `a,b` or a single item to a tuple. Return values that fit another of `kinds` unchanged."""
    if isinstance(value, str) and ("," in value or int not in kinds):
        value = value.strip()
        inside = value[1:-1] if (value[:1], value[-1:]) in (("[", "]"), ("(", ")")) else value  # but keep stages.[01]
        value = [word.strip() for word in inside.split(",") if word.strip()]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not {int, float} & kinds:
        value = [value]  # in YAML, `crop: 64` is `crop: [64]`
    return tuple(map(_expand_home, value)) if isinstance(value, list) else value


def _expand_home(value: Any) -> Any:
    """Expand ~/ at the start of a path, which no shell expands in YAML or after "="; return other values unchanged."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options; raise ValueError if it is not text or YAML, repeats a key, or holds no mapping."""
    content = _parse_yaml(read_text(Path(path)), str(path))
    if content is None:
        raise ValueError(f"{path} is empty: give lines 'option: value'")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold lines 'option: value', but it holds {shown(content)}")
    return content


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return options as YAML text that `read_yaml` reads."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse_yaml(text: str, where: str, advice: str = "") -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # besides YAMLError: a date that does not exist, or a tag such as !!int on other text
        raise ValueError(f"{where} is not valid YAML{advice}: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Load YAML; reject duplicate keys, deep nesting, and anchors, since their copies may be huge."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if event.anchor is not None:
            raise yaml.YAMLError(f"line {line} has an anchor or an alias (& or *); write the value itself")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_PLAIN and not event.implicit[1]:
            raise yaml.YAMLError(f"line {line} has over {MAX_PLAIN:,} characters in one value; put text in quotes")
        if self.depth == MAX_NESTING:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_NESTING} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            word = str(key.value)
            if word in keys:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} repeats the key {shown(word)}; keep one of them")
            keys.add(word)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write YAML that `_Loader` reads back unchanged."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if len(data) > MAX_PLAIN else None  # the loader refuses text of this length without quotes
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


# YAML 1.1 reads 1e-3, without a point, as text. The dumper quotes text that the loader would read as a number.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_dashes(word: str) -> str:
    """Write the flag in a word such as `--batch_size=64` with dashes."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _is_positional(field: Field) -> bool:
    return "positional" in field.metadata


def _is_list(hint: Any) -> bool:
    return any(get_origin(member) is tuple for member in members_of(hint))


def _title(field: Field) -> str:
    """Return the name of a command-line option, as messages show it."""
    return field.metadata["metavar"] if _is_positional(field) else _flag(field.name)


def _placeholder(field: Field, hint: Any) -> str:
    """Return a positional argument as the usage shows it, such as MODEL... or [PATTERN...]."""
    word = field.metadata["metavar"] + ("..." if _is_list(hint) else "")
    return word if field.default is MISSING else f"[{word}]"


def _help(field: Field) -> str:
    """Return an option's help with its default, unless the default is none, empty or off."""
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    hidden = default is False or default in (None, "", MISSING)
    return f"{field.metadata['help']}{'' if hidden else f' (default: {default})'}".replace("%", "%%")


def _metavar(field: Field, hint: Any) -> str:
    """Return the placeholder of the value in --help, such as N or {cosine,linear}."""
    if field.metadata.get("metavar"):
        return field.metadata["metavar"]
    first = members_of(hint)[0]
    if get_origin(first) is Literal:
        return f"{{{','.join(map(str, get_args(first)))}}}"
    return METAVARS[get_origin(first) or first]
