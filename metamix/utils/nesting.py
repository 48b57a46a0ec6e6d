"""Refuse JSON text that is nested so deeply that Python's recursive reader would fail."""

import re

MAX_NESTING = 64  # levels of lists and mappings
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{\]}]', re.DOTALL)  # brackets, and strings, whose brackets do not count


def check_nesting(text: str, source: str) -> None:
    """Raise ValueError if JSON text, valid or not, is nested deeper than `MAX_NESTING`; `source` begins the message."""
    depth = 0
    for part in _PARTS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if depth > MAX_NESTING:
            raise ValueError(f"{source} is nested deeper than {MAX_NESTING} levels; give another file")
