"""Match and suggest names; texts of messages: printable names, counts, errors of one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase


def did_you_mean(word: object, words: Iterable[object]) -> str:
    """End a sentence of an error message: "; did you mean 'x'?" if one of `words` is close to `word`, otherwise "."."""
    close = difflib.get_close_matches(str(word), [str(known) for known in words], n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def matching(patterns: list[str], known: list[str], lists: str) -> list[str]:
    """Return the known names that match a pattern.

    Args:
        patterns: names with wildcards.
        known: all names.
        lists: sentence on what lists all names, for the message.

    Raises:
        ValueError: a pattern matches none.
    """
    for wanted in patterns:
        if not any(fnmatchcase(name, wanted) for name in known):
            part = f"*{wanted.strip('*')}*"
            meant = did_you_mean(wanted, known)
            if any(fnmatchcase(name, part) for name in known):
                meant = f"; did you mean {part!r}?"
            raise ValueError(f"No model matches {wanted!r}{meant} {lists}")
    return [name for name in known if any(fnmatchcase(name, wanted) for wanted in patterns)]


def printable(text: str) -> str:
    """Escape what UTF-8 cannot encode, such as a file name in Latin-1: its byte 0xe9 becomes \\udce9."""
    return text.encode(errors="backslashreplace").decode()


def short_count(count: float) -> str:
    """Write a count with three digits and a unit, such as "1.07 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:  # what rounds to 1,000 of the smaller unit
            return f"{count / size:.3g} {unit}"
    return str(count)


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: "1 image", "1,797 images", "2 batches"."""
    ending = "" if count == 1 else "es" if noun.endswith(("ss", "tch", "x")) else "s"
    return f"{count:,} {noun}{ending}"


@contextmanager
def exit_with_message(*errors: type[Exception]) -> Iterator[None]:
    """Exit with the message of these errors instead of a traceback. A broken pipe is raised as it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except errors as error:
        raise SystemExit(f"error: {error}") from error
