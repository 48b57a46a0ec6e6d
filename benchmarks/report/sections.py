"""Replace marked sections of Markdown pages.

A section is the text between `<!-- name -->` and `<!-- /name -->`. Only that text is replaced.
"""

import re
from collections.abc import Callable, Mapping

from metamix.utils.text import did_you_mean

SECTION = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def fill(page: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with every marked section made anew.

    Args:
        page: Markdown text.
        sections: functions that make the text of a section, by name.

    Raises:
        ValueError: a marker names no section, or is not closed.
    """
    for name in re.findall(r"<!-- ([\w-]+) -->", page):
        if name not in sections:
            raise ValueError(f"<!-- {name} --> names no section{did_you_mean(name, sections)}")
        if page.count(f"<!-- {name} -->") != 1 or page.count(f"<!-- /{name} -->") != 1:
            raise ValueError(f"<!-- {name} --> must appear once, and <!-- /{name} --> once after it")
    return SECTION.sub(lambda match: f"<!-- {match[1]} -->\n\n{sections[match[1]]()}\n\n<!-- /{match[1]} -->", page)
