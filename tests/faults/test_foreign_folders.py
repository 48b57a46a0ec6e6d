"""Train into folders that hold something else: nothing in them is replaced."""

import pytest

from metamix.training.run_folder import check_output
from tests.helpers.running import train

SHORT = ["--epochs", 1, "--batch-size", 512, "--warmup-epochs", 0]


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": "somebody's weights"},
        {"model.safetensors": "weights", "recipe.yaml": "flour: 500 g"},
        {"recipe.yaml": "- not\n- a mapping"},
        {"recipe.yaml": "seed: 0\nseed: 1"},
        {"log.txt": "a log", "thesis.tex": "years of work"},
    ],
)
def test_a_folder_without_a_run_is_refused(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=f"error: {tmp_path} is not empty and holds no run of metamix: there is '.*,"):
        train(*SHORT, "--output", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_what_a_failed_start_leaves_is_no_obstacle(tmp_path):
    with pytest.raises(SystemExit, match="freeze names 'stage'"):
        train(*SHORT, "--freeze", "stage", "--output", tmp_path)
    (tmp_path / "log.txt").write_text("error: ...")
    (tmp_path / "state.txt").write_text("running\n")
    (tmp_path / "checkpoint.pt.tmp").write_text("half")
    check_output(tmp_path)
    check_output(tmp_path / "new")


def test_the_folder_of_a_run_is_taken_again(tmp_path):
    train(*SHORT, "--output", tmp_path)
    (tmp_path / "notes.md").write_text("it went well")
    check_output(tmp_path)
