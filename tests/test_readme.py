"""The README says what is true: its snippets print what stands below them, and its tables are fresh."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", README, re.S)


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


def test_every_snippet_says_what_it_prints():
    assert README.count("```python") == len(SNIPPETS) > 0


@pytest.mark.parametrize("code, printed", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(code, printed):
    done = run("-W", "error::UserWarning", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == re.sub("^    ", "", printed, flags=re.M)
