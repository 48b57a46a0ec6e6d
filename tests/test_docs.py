"""README and docs say what is true: their Python prints what stands below it, and their commands parse."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from metamix.cli.main import COMMANDS, main
from metamix.cli.tasks import TASKS
from metamix.training.recipe import find_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)
SNIPPETS = [
    pytest.param(code, printed, id=f"{page.name}-{i}")
    for page in PAGES
    for i, (code, printed) in enumerate(SNIPPET.findall(page.read_text()))
]
EXTRAS = {"segmentation_models_pytorch": "segmentation"}  # packages that snippets import and `test` does not bring
SHELL = re.compile(r"```bash\n(.*?)```", re.S)
LINES = [
    pytest.param(line, id=f"{page.name}-{i}")
    for page in PAGES
    for i, line in enumerate("".join(SHELL.findall(page.read_text())).replace("\\\n", " ").splitlines())
    if line.strip()
]


@pytest.mark.parametrize("code, printed", SNIPPETS)
def test_python_prints_what_stands_below_it(code, printed, capsys, monkeypatch, forget_mixers):
    for package, extra in EXTRAS.items():
        if package in code:
            pytest.importorskip(package, reason=f"pip install 'metamix[{extra}]'")
    monkeypatch.chdir(ROOT)
    exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("line", LINES)
def test_command_has_options_that_exist(line, capsys):
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["metamix", "train", *words[words.index("train.py") + 1 :]]
    assert words[0] == "metamix" and words[1] in COMMANDS, line
    task = next((name for name in TASKS if name in line), "detection" if "bccd" in line else "classification")
    given = ["--task", task] if words[1] != "models" else []
    with pytest.raises(SystemExit) as ended:
        main([words[1], *given, "--help"])
    assert not ended.value.code
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | {"--task", "--import"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
    if "--config" in words:
        assert find_config(words[words.index("--config") + 1]).is_file()


def test_readme_is_short_and_opens_with_its_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    commands = [line for line in lines if line.startswith("    python3 -m venv")]
    assert len(commands) == 2 and "train.py --config configs/digits/demo.yaml" in commands[0]
    assert commands[1].endswith("-m pytest")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_lists_are_whole():
    """Markdown joins a line that is not indented to the item above it, and an item to the paragraph above it."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for above, line in pairwise(text.splitlines()):
            if above.startswith("- "):
                assert not line or line.startswith(("- ", " ")), f"{page.name}: indent {line!r}"
            if line.startswith("- "):
                assert not above or above.startswith(("- ", " ")), f"{page.name}: leave a line before {line!r}"
