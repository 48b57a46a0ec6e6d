"""Run the examples: the scripts for one epoch each, and the notebook cell by cell."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.slow


def test_the_mixer_example_trains_and_predicts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_mixer.py"))["main"](str(tmp_path / "run"), epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("predicted: ") and len(lines[-2].split()) == 11
    assert lines[-1].split()[1:] == list("0123456789")


def test_the_detector_example_trains_and_scores(tmp_path, capsys):
    pytest.importorskip("pycocotools", reason="COCO scores need the extra `detection`")
    runpy.run_path(str(EXAMPLES / "finetune_detector.py"))["main"](str(tmp_path), epochs=1, images=8)
    assert "val: AP" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_segmenter_example_trains_and_predicts(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "train_segmenter.py"))["main"](str(tmp_path), epochs=1, images=8)
    assert "test: miou" in capsys.readouterr().out
    assert (tmp_path / "predicted" / "overlays" / "0.png").is_file()


def test_the_notebook_predicts_a_digit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    *_, true_label, first, _, _ = capsys.readouterr().out.splitlines()
    assert true_label == "true label: 7"
    label, probability = first.split(": ")
    assert label == "7" and float(probability.rstrip("%")) > 90
