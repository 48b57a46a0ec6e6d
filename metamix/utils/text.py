"""Match and suggest names; texts of messages: printable names, counts, errors of one sentence; tables as CSV."""

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase


def did_you_mean(word: object, words: Iterable[object]) -> str:
    """End a sentence of an error message: "; did you mean 'x'?" if one of `words` is close to `word`, otherwise ".".

    Dashes at the start of flags are not compared: they make short flags alike.
    """
    by_name = {str(each).lstrip("-"): str(each) for each in words}
    close = difflib.get_close_matches(str(word).lstrip("-"), by_name, n=1)
    return f"; did you mean {by_name[close[0]]!r}?" if close else "."


def matching(patterns: list[str], names: list[str], advice: str) -> list[str]:
    """Return the names that match one of the patterns, which are names with wildcards.

    Raises:
        ValueError: a pattern matches no name. The message ends with `advice`, which says how to list all names.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            part = f"*{pattern.strip('*')}*"
            suggestion = did_you_mean(pattern, names)
            if any(fnmatchcase(name, part) for name in names):
                suggestion = f"; did you mean {part!r}?"
            raise ValueError(f"No model matches {pattern!r}{suggestion} {advice}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


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


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV, with the header as the first of them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextmanager
def exit_with_message(*errors: type[Exception]) -> Iterator[None]:
    """Exit with the message of these errors instead of a traceback. A broken pipe is raised as it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except errors as error:
        raise SystemExit(f"error: {error}") from error
