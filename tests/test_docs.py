"""Test README and docs: snippets print the text below them, commands are accepted, and links have targets."""

import re
import shlex
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import Mock

import pytest

from metamix.tasks.registry import DEFAULT, TASKS, find_task
from metamix.training.processes import ProcessGroup
from metamix_cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)
SNIPPETS = [
    pytest.param(code, printed, id=f"{page.name}-{i}")
    for page in PAGES
    for i, (code, printed) in enumerate(SNIPPET.findall(page.read_text()))
]
# Packages that snippets import but the extra `test` does not install, each with the extra that installs it.
EXTRAS = {"segmentation_models_pytorch": "segmentation"}
SHELL = re.compile(r"```bash\n(.*?)```", re.S)
LINES = [
    pytest.param(line, page.stem if page.stem in TASKS else DEFAULT, id=f"{page.name}-{i}")
    for page in PAGES
    for i, line in enumerate("".join(SHELL.findall(page.read_text())).replace("\\\n", " ").splitlines())
    if line.strip() and "--import my_task" not in line  # tests/tasks/test_own_task.py runs these
]


@pytest.mark.parametrize("code, printed", SNIPPETS)
def test_python_prints_the_text_below_it(code, printed, capsys, monkeypatch, forget_mixers, forget_models):
    for package, extra in EXTRAS.items():
        if package in code:
            pytest.importorskip(package, reason=f"pip install 'metamix[{extra}]'")
    monkeypatch.chdir(ROOT)
    exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == printed


class Parsed(Exception):
    """Raised when a command has parsed its arguments and would start to work."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses a command line for the task of its page, and then raises Parsed."""

    def run(line, task):
        words = shlex.split(line, comments=True)
        if words[0] == "torchrun":
            words = ["metamix", "train", *words[words.index("train.py") + 1 :]]
        program, *rest = words
        assert program == "metamix"
        for command in ("train", "evaluate"):
            reader = f"metamix.cli.{command}.READER"
            monkeypatch.setattr(reader, replace(resolve_name(reader), default_task=lambda options: task))
        monkeypatch.setattr("metamix.tasks.predict.choose_task", lambda named, words: find_task(named or task))
        main(rest)

    for place in ("classification.predict", "tasks.predict"):  # the images that pages name do not exist here
        monkeypatch.setattr(f"metamix.{place}.paths_inside", lambda places, without=(): {})
    monkeypatch.setattr("metamix.utils.options.check_needs", Mock(side_effect=Parsed))  # `parse_command` ends with this
    monkeypatch.setattr(ProcessGroup, "start", Mock(side_effect=Parsed))  # train and eval call this after parsing
    for module in ("metamix.training.recipe", "metamix.utils.options"):
        monkeypatch.setattr(f"{module}.import_modules", Mock())  # these modules exist only in the docs
    return run


@pytest.mark.parametrize("line, task", LINES)
def test_every_command_is_accepted(line, task, parse):
    with pytest.raises(SystemExit if "--help" in line else Parsed) as ended:
        parse(line, task)
    assert ended.type is Parsed or not ended.value.code


@pytest.mark.parametrize(
    "line, said",
    [
        ("metamix train --data digits --sampling balnced", "--sampling is 'balnced'"),
        ("metamix train --config digits/demos", "there is no config digits/demos"),
        ("metamix eval --checkpoint runs/a --split tset", "--split is 'tset'"),
        ("metamix predict photos --model raft-onnx --threads some", "--threads is 'some'"),
        ("metamix predict photos --checkpoint runs/a --topp 3", "there is no option --topp; did you mean '--top'"),
        ("metamix export metaformer_raft_nano.cifar10", "--output is missing: folder to write"),
        ("metamix verify folder --worker 2", "there is no option --worker; did you mean '--workers'"),
    ],
)
def test_a_wrong_command_is_refused(line, said, parse):
    with pytest.raises(SystemExit) as ended:
        parse(line, DEFAULT)
    assert said in str(ended.value.code)


def test_readme_is_short_and_has_two_commands_to_paste():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    commands = [line for line in lines if line.startswith("    python3 -m venv")]
    assert len(commands) == 2 and "train.py --config configs/digits/demo.yaml" in commands[0]
    assert commands[1].endswith("-m pytest")


def test_code_on_the_docs_site_does_not_scroll_sideways():
    for page in (page for page in PAGES if page.name != "README.md"):
        code = "".join(re.findall(r"^```.*?^```", page.read_text(), re.M | re.S))
        assert not [line for line in code.splitlines() if len(line) > 88], page.name


def test_each_heading_of_the_api_page_imports_what_it_documents():
    page = (ROOT / "docs" / "api.md").read_text()
    for path, options in re.findall(r"^::: (\S+)\n(?:    options: \{ (.*) \})?", page, re.M):
        name = dict(re.findall(r"(\w+): ([\w.]+)", options)).get("heading", path)
        assert imported(name) is imported(path), name
    assert "metamix.deploy.fuse.fuse\n" in page, "metamix.deploy.fuse is a module and a function: name the function"


def imported(name):
    """Import the object or the module that a dotted name refers to."""
    place, _, attribute = name.rpartition(".")
    module = import_module(place)
    return getattr(module, attribute) if hasattr(module, attribute) else import_module(name)


def test_links_have_targets():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_lists_are_not_joined_to_other_text():
    """Markdown joins an unindented line to the list item above it, and a list item to the paragraph above it."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for above, line in pairwise(text.splitlines()):
            if above.startswith("- "):
                assert not line or line.startswith(("- ", " ")), f"{page.name}: indent {line!r}"
            if line.startswith("- "):
                assert not above or above.startswith(("- ", " ")), f"{page.name}: leave a line before {line!r}"
