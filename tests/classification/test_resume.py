"""Test that a run resumes after its data moved, and that evaluation scores the split that training scored."""

import json
import shutil

import pytest

from tests.helpers.running import train

WORDS = ["--batch-size", 4, "--amp", "none", "--warmup-epochs", 0, "--data", "folder"]


@pytest.fixture
def run(folder, tmp_path):
    """Make a finished run of one epoch; return the folders of the run and of its data."""
    root = folder()
    train(*WORDS, "--data-dir", root, "--epochs", 1, "--output", tmp_path / "run")
    return tmp_path / "run", root


def test_a_run_resumes_after_its_data_moved(run, tmp_path, capsys):
    output, root = run
    shutil.move(root, tmp_path / "moved")
    train(*WORDS, "--data-dir", tmp_path / "moved", "--epochs", 2, "--output", output)
    assert "resumed" in capsys.readouterr().out


def test_evaluation_scores_the_split_that_training_scored(folder, image, tmp_path, capsys):
    import metamix.cli.evaluate

    root = folder()
    for label in "cat", "dog", "eel":
        (root / "test" / label).mkdir(parents=True)
        image().save(root / "test" / label / "0.png")
    train(*WORDS, "--data-dir", root, "--epochs", 1, "--test-on", "test", "--output", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["samples"] == {"train": 12, "test": 3}
    words = ["--checkpoint", tmp_path / "run", "--data", "folder", "--data-dir", root, "--output", tmp_path / "out"]
    metamix.cli.evaluate.main(list(map(str, [*words, "--device", "cpu"])))
    assert "on set, test (3 images" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["by_class"].keys() == {"cat", "dog", "eel"} and result["by_class"]["cat"]["images"] == 1
