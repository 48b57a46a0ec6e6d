"""Format text for people: suggestions, escaped names, counts, one-line errors, tables and CSV.

Anybody may have chosen the names of files, classes and models. Text with such names passes through `printable` before
it is printed or logged, so that a name cannot forge a line or control the terminal.
"""

import csv
import io
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from fnmatch import fnmatchcase
from functools import cache

LONGEST_NAME = 200  # characters; longer words are not compared with others, since this would be slow
LONGEST_MESSAGE = 2000  # characters

# Control characters, surrogates, other line breaks, and marks that change the direction of the text after them.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def did_you_mean(word: object, words: Iterable[object]) -> str:
    """Return the end of an error message: "; did you mean 'x'?" if one of `words` is close to `word`, otherwise ".".

    Dashes at the start of flags are not compared, since they would make short flags look similar.
    """
    if len(str(word)) > LONGEST_NAME:
        return "."
    by_name = {str(each).lstrip("-"): str(each) for each in words}
    close = get_close_matches(str(word).lstrip("-"), by_name)
    matches = {name: SequenceMatcher(None, name, str(word).lstrip("-")) for name in close}
    # Of equally similar names, such as s12 and s36 for s13, the one with the longest common part is suggested.
    best = max(close, key=lambda name: (matches[name].ratio(), matches[name].find_longest_match().size), default=None)
    return "." if best is None else f"; did you mean {by_name[best]!r}?"


def matching(pattern: str | Iterable[str], names: list[str], advice: str) -> list[str]:
    """Return the names that match a pattern, which may have wildcards, or any of several patterns.

    Raise ValueError if a pattern matches no name; its message ends with `advice`, which says how to list all names.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            part = f"*{pattern.strip('*')}*"
            suggestion = did_you_mean(pattern, names)
            if any(fnmatchcase(name, part) for name in names):
                suggestion = f"; did you mean {part!r}?"
            raise ValueError(f"No model matches {pattern!r}{suggestion} {advice}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def printable(text: object) -> str:
    r"""Escape the characters in `UNPRINTABLE`: a newline becomes \n, and the undecodable byte 0xe9 becomes \udce9."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def printable_lines(text: str) -> str:
    """Escape each line of a text as `printable` does. Line breaks stay, so escape the names in the text first."""
    return "\n".join(map(printable, text.split("\n")))


def message(text: object) -> str:
    """Escape a message as `printable` does, and cut a long one in the middle."""
    line = printable(text)
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 300]} ... {line[-295:]}"


def package_logger(name: str) -> logging.Logger:
    """Return the logger of a module. `message` escapes and cuts its records before any handler sees them."""
    logger = logging.getLogger(name)
    if _as_message not in logger.filters:
        logger.addFilter(_as_message)
    return logger


@cache
def warn_once(logger: logging.Logger, text: str) -> None:
    """Log a warning once in a process, since a command may open the same files twice."""
    logger.warning(text)


def _as_message(record: logging.LogRecord) -> bool:
    record.msg, record.args = message(record.getMessage()), None
    return True


def short_count(count: float) -> str:
    """Write a count with three digits and a unit, such as "1.07 M"; counts below 1000 get no unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:  # 999,500 is 1 M, since it would round to 1000 k
            return f"{count / size:.3g} {unit}"
    return str(count)


def speed_text(speed: float) -> str:
    """Write a speed: "1234 img/s", or "0.4 img/s" for less than one image per second."""
    return f"{speed:.0f} img/s" if speed >= 1 else f"{speed:.1g} img/s"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: "1 image", "1,797 images", "2 batches"."""
    ending = "" if count == 1 else "es" if noun.endswith(("ss", "tch", "x")) else "s"
    return f"{count:,} {noun}{ending}"


def list_names(names: Iterable[object], most: int = 5) -> str:
    """Join names with commas. If there are more than `most`, count the others: "a, b and 3 more"."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def aligned(rows: Iterable[Sequence[object]], right: Collection[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns. Columns whose index is in `right` are aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join(f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in cells
    ]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV text; the first row is the header.

    Text is escaped as in `printable`. An apostrophe is put before text that a spreadsheet would take for a formula.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_csv_cell, row) for row in rows)
    return text.getvalue()


def _csv_cell(value: object) -> object:
    if value is None or isinstance(value, (int, float)):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and math.isnan(to_number(text)) else text


def to_number(text: str) -> float:
    """Read a number; return NaN for other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@contextmanager
def exit_with_message(*errors: type[Exception]) -> Iterator[None]:
    """Exit with a message instead of a traceback if one of `errors` is raised. A broken pipe is raised unchanged."""
    try:
        yield
    except BrokenPipeError:
        raise
    except errors as error:
        raise SystemExit(f"error: {message(error)}") from error
