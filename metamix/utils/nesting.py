"""Refuse JSON text that is nested so deeply that reading or copying it would exhaust the stack."""

import re

MAX_NESTING = 64
# A string, which may hold brackets, or a bracket. A string without an end is taken to the end of the text; otherwise
# each of its quotes would be tried as the first one, in quadratic time.
TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def check_nesting(text: str, source: str) -> None:
    """Raise ValueError if JSON text has lists and mappings nested deeper than 64.

    Args:
        text: the text, which need not be valid JSON.
        source: name of the file that holds it, for the message.
    """
    depth = 0
    for token in TOKENS.finditer(text):
        first = text[token.start()]
        depth += (first in "[{") - (first in "]}")
        if depth > MAX_NESTING:
            raise ValueError(
                f"{source} has lists or mappings nested more than {MAX_NESTING} deep, and metamix writes none that "
                f"are: use another copy of the file"
            )
