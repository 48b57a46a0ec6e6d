"""Write into folders that hold something else, such as planted links: nothing in them is replaced."""

import os

import pytest

from metamix.training.run_folder import Run, check_output
from metamix.utils.files import atomic_write, write_text
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


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    """The name of the temporary file is random, and if a link has it all the same, the link is refused."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "state.txt.tmp").symlink_to(precious)
    write_text(tmp_path / "state.txt", "running\n")
    assert precious.read_text() == "mine" and (tmp_path / "state.txt").read_text() == "running\n"

    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "state.txt.0000000000000000.tmp").symlink_to(precious)
    with pytest.raises(OSError, match=r"state.txt could not be written \(File exists\)"):
        write_text(tmp_path / "state.txt", "stopped\n")
    assert precious.read_text() == "mine" and (tmp_path / "state.txt").read_text() == "running\n"


def test_files_that_a_killed_run_left_half_written_are_removed(tmp_path):
    """Their names are random, so they would pile up, each as large as a checkpoint."""
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "checkpoint.pt"):
        (half,) = tmp_path.glob("checkpoint.pt.*.tmp")
        (tmp_path / "kept").hardlink_to(half)
        raise KeyboardInterrupt
    (tmp_path / "kept").rename(half)
    (tmp_path / "notes.tmp").write_text("the user's")
    Run(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.tmp"]


def test_new_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_folder_of_a_run_is_taken_again(tmp_path):
    train(*SHORT, "--output", tmp_path)
    (tmp_path / "notes.md").write_text("it went well")
    check_output(tmp_path)
