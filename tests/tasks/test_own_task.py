"""The task of docs/extend.md, run from another folder as its page says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from metamix.weights.files import load_weights

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text().partition("## A task")[2]
CODE = re.search(r"```py\n(.*?)```", PAGE, re.S)[1]
COMMANDS = re.search(r"```bash\n(.*?)```", PAGE, re.S)[1].splitlines()
SMALL = ["--epochs", "2", "--batch-size", "20", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with my_task.py, a photo and 60 digits as a data set of numbers."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_task.py").write_text(CODE)
    (folder / "numbers").mkdir()
    digits = load_digits()
    for split, numbers in (("train", range(40)), ("test", range(40, 60))):
        rows = [f"{i}.png,{digits.target[i]}\n" for i in numbers]
        (folder / "numbers" / f"{split}.csv").write_text("".join(rows))
        for i in numbers:
            Image.fromarray((digits.images[i] * 15.9).astype("uint8")).save(folder / "numbers" / f"{i}.png")
    Image.open(folder / "numbers" / "0.png").save(folder / "photo.jpg")
    return folder


def run(folder, line, *more):
    words = [*shlex.split(line)[1:], *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "metamix", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_page_shows_at_most_80_lines():
    assert len(CODE.splitlines()) <= 80


def test_every_command_of_the_page_works(folder):
    train, evaluate, predict, verify, export, predict_exported = COMMANDS
    done = run(folder, train, *SMALL)
    assert "test: error " in done.stdout, done.stderr
    done = run(folder, evaluate, "--workers", "0")
    assert "test (20 images of 32 pixels): error " in done.stdout, done.stderr
    said = run(folder, predict).stdout
    assert re.fullmatch(r"photo.jpg: -?\d+\.\d\d\n", said)
    assert run(folder, verify).returncode == 0
    (folder / "numbers" / "41.png").write_bytes(b"no image")
    done = run(folder, verify)
    assert done.returncode == 1 and "41.png: not an image" in done.stdout
    Image.open(folder / "numbers" / "0.png").save(folder / "numbers" / "41.png")
    done = run(folder, export, "--seconds", "0")
    assert "on 64 images (random images)" in done.stdout, done.stderr
    assert run(folder, predict_exported).stdout == said
    assert (
        "regression      predict a number from an image"
        in run(folder, "metamix predict --import my_task --help").stdout
    )
    assert "there is no task 'regression'. Tasks:" in run(folder, "metamix predict photo.jpg --checkpoint run").stderr


def test_a_run_resumes_exactly(folder):
    train = COMMANDS[0].replace("--output run", "--output half")
    assert run(folder, train, *SMALL, "--epochs", "1", "--schedule", "constant").returncode == 0
    done = run(folder, train, *SMALL, "--schedule", "constant")
    assert "resumed" in done.stdout, done.stdout + done.stderr
    whole = run(folder, train.replace("half", "whole"), *SMALL, "--schedule", "constant")
    assert whole.returncode == 0
    resumed, expected = (load_weights(folder / name)[0] for name in ("half", "whole"))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
