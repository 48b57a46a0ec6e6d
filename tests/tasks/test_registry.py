"""Test that only the registry and the folders of the tasks name tasks, and that the registry finds their parts."""

import ast
import re
from pathlib import Path

import pytest

import metamix
from metamix.tasks import registry
from metamix.tasks.find import task_of_folder
from metamix.tasks.registry import TASKS, find_task, register_task

PACKAGE = Path(metamix.__file__).parent
OWN = [PACKAGE / name for name in ("classification", "detection", "segmentation", "restoration")]
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != Path(registry.__file__) and not any(path.is_relative_to(folder) for folder in OWN)
]
NAMES = re.compile(r"\b(classification|detection|segmentation|restoration)\b")


def names_of_tasks(code):
    """Yield the imports and the string literals, except docstrings, that name a task."""
    tree = ast.parse(code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            words = f"{node.module} {' '.join(alias.name for alias in node.names)}"
        elif isinstance(node, ast.Import):
            words = " ".join(alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words = node.value
        else:
            continue
        if NAMES.search(words):
            yield f"line {node.lineno}: {words}"


def test_only_the_registry_and_the_tasks_folders_name_a_task():
    lines = [f"{path.relative_to(PACKAGE)} {line}" for path in SOURCES for line in names_of_tasks(path.read_text())]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "code", ["from metamix.detection import load", "import metamix.restoration", "task = 'segmentation'"]
)
def test_imports_and_strings_that_name_a_task_are_found(code):
    assert list(names_of_tasks(f'"""Documentation may say segmentation."""\n{code}'))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("role", ["task", "load", "predict", "verify", "export", "exported"])
def test_every_task_has_every_part(name, role):
    assert callable(find_task(name).part(role))


def test_public_names_are_attributes_of_metamix():
    for name in (*registry.PUBLIC, "load", "export"):
        assert callable(getattr(metamix, name)) and name in dir(metamix)
    assert metamix.detection.load_detector is metamix.load_detector
    with pytest.raises(AttributeError, match="has no attribute 'load_nothing'"):
        metamix.load_nothing  # noqa: B018


def test_a_second_task_with_the_same_name_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "TASKS", dict(TASKS))
    spec = find_task("detection")
    register_task(spec)
    with pytest.raises(ValueError, match="there is already a task 'segmentation': choose another name"):
        register_task(type(spec)(**vars(spec) | {"name": "segmentation"}))


@pytest.mark.parametrize(
    "task, folders",
    [
        ("detection", ["annotations", "images"]),
        ("segmentation", ["train/images", "train/masks"]),
        ("restoration", ["test/input", "test/target"]),
        ("restoration", ["input", "target"]),
        (None, ["train/cat", "train/dog"]),
        (None, []),
    ],
)
def test_the_task_of_a_data_folder_is_recognized(task, folders, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert task_of_folder(tmp_path) == task
