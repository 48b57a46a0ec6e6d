"""Test that a new export format needs only what docs/architecture.md says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metamix
from metamix.deploy.artifact import file_names
from metamix.weights.files import GRAPHS

TOY = """
import torch
from .base import Format

def write(graph, file):
    torch.save(graph.model, file)

def open_toy(file, threads=None, precision="fp32", shape=None):
    model = torch.load(file, weights_only=False)
    return lambda images: [model(torch.from_numpy(images)).detach().numpy()]

REFUSED = {"bf16": "toy has no bf16", "int8": "toy has no int8"}
FORMAT = Format("model.toy", write, open_toy, engine="toy_engine", refused=REFUSED)
"""
RUN = """
import sys
from metamix_cli import main
weights, export = sys.argv[1:]
main(["export", weights, "--output", export, "--format", "toy", "--seconds", "0"])
main(["benchmark", weights, export, "--engines", "eager,toy_engine", "--batch-sizes", "2", "--seconds", "0"])
"""


def test_the_suffixes_of_all_files_are_known_as_exports():
    assert {Path(name).suffix for name in file_names()} == {".json", *GRAPHS}


@pytest.mark.slow
def test_a_new_format_is_exported_and_timed(weights, tmp_path):
    source, output = weights(), str(tmp_path / "exported")
    package = tmp_path / "copy" / "metamix"
    shutil.copytree(Path(metamix.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "deploy" / "formats" / "toy.py").write_text(TOY)
    with (package / "deploy" / "formats" / "__init__.py").open("a") as file:
        file.write("from . import toy\nFORMATS['toy'] = toy.FORMAT\n")
    command = [sys.executable, "-c", RUN, source, output]
    process = subprocess.run(command, cwd=package.parent, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    table = [line.split() for line in process.stdout.splitlines()]
    rows = [tuple(words[:3]) for words in table if words[:1] in ([source], [output])]
    cells = [("eager", "fp32"), ("eager", "bf16"), ("toy_engine", "fp32")]
    assert rows == [*((source, *cell) for cell in cells), (output, "toy_engine", "fp32")]
