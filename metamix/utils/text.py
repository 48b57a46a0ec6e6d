"""Messages: the nearest name, readable text, errors in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager


def nearest(word: str, words) -> str:
    """The middle of an error message: `; did you mean 'x'?` where one of `words` is close to `word`, else a stop."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def readable(text: str) -> str:
    """Text that any file or picture takes: a byte of a name that is no UTF-8 is written out, as \\udce9."""
    return text.encode(errors="backslashreplace").decode()


@contextmanager
def exit_with_message(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with the message alone of errors that say what was given, what is accepted and what to do."""
    try:
        yield
    except errors as error:
        raise SystemExit(f"error: {error}") from error
