"""Format tables and paragraphs as Markdown."""

import textwrap
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Format a table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def table_of_filled(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Format a table without the columns whose cells are all empty."""
    filled = [column for column in zip(header, *rows) if any(map(str, column[1:]))]
    header, *rows = zip(*filled)
    return table(header, rows)


def wrap(text: str) -> str:
    """Break a paragraph into lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
