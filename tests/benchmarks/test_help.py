"""Test that every script of benchmarks/ answers --help with its docstring, before it does anything else."""

import ast
import runpy
import sys

import pytest

from benchmarks.paths import ROOT

SCRIPTS = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert not ended.value.code
    assert ast.get_docstring(ast.parse(path.read_text())) in capsys.readouterr().out
