"""Test that neither foreign files in an output folder nor the targets of planted links are overwritten."""

import os

import pytest
from PIL import Image

from metamix.training.run_folder import Run, check_output
from metamix.utils.files import atomic_write, write_text
from tests.helpers.limits import seconds
from tests.helpers.running import metamix_command, train

SHORT = ["--epochs", 1, "--batch-size", 512, "--warmup-epochs", 0]


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": "somebody's weights"},
        {"model.safetensors": "weights", "recipe.yaml": "flour: 500 g"},
        {"recipe.yaml": "- not\n- a mapping"},
        {"log.txt": "a log", "thesis.tex": "years of work"},
    ],
)
def test_a_folder_without_a_run_is_refused(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=f"error: {tmp_path} is not empty and holds no run of metamix: there is '.*,"):
        train(*SHORT, "--output", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_failed_start_does_not_block_the_folder(tmp_path):
    with pytest.raises(SystemExit, match="freeze names 'stage'"):
        train(*SHORT, "--freeze", "stage", "--output", tmp_path)
    (tmp_path / "log.txt").write_text("error: ...")
    (tmp_path / "state.txt").write_text("running\n")
    (tmp_path / "checkpoint.pt.tmp").write_text("half")
    (tmp_path / ".DS_Store").touch()
    check_output(tmp_path)
    check_output(tmp_path / "new")


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    """The temporary file has a random name. If a link has this name, nothing is written."""
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


@pytest.mark.parametrize("name", ["state.txt", "log.txt", ".lock", "wandb"])
def test_links_in_the_folder_of_a_run_are_refused(name, tmp_path):
    """If log.txt led to ~/.bashrc, a line of the log could run as a command."""
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    precious.write_text("mine")
    (run / name).symlink_to(precious)
    with pytest.raises(SystemExit, match=f"{run / name} is a link or a pipe, so data written to it would go elsew"):
        train(*SHORT, "--output", run)
    precious.unlink()  # the link leads nowhere
    with pytest.raises(SystemExit, match=f"{run / name} is a link or a pipe"):
        train(*SHORT, "--output", run)
    assert not precious.exists()


def test_a_pipe_in_the_folder_of_a_run_is_refused(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    with seconds(60), pytest.raises(SystemExit, match="log.txt is a link or a pipe"):
        train(*SHORT, "--output", tmp_path)


def test_a_run_with_a_link_among_its_files_is_not_resumed(tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    train(*SHORT, "--output", run)
    (run / "metrics.csv").rename(precious)
    (run / "metrics.csv").symlink_to(precious)
    before = precious.read_text()
    with pytest.raises(SystemExit, match="metrics.csv is a link or a pipe"):
        train("--epochs", 2, *SHORT[2:], "--output", run)
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    (run / "metrics.csv").unlink()
    train("--epochs", 2, *SHORT[2:], "--output", tmp_path / "link")  # the user chose this link
    assert precious.read_text() == before


def test_links_in_the_folder_of_an_export_are_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").symlink_to(tmp_path / "precious")
    with pytest.raises(SystemExit, match="report.json is a link or a pipe"):
        words = ["--format", "torch", "--seconds", 0, "--output", tmp_path / "out"]
        metamix_command("export", "metaformer_pooling_nano.digits", *words)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["restored.json", "a.png"])
def test_links_in_the_folder_of_predictions_are_refused(name, tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    (out / "restored.json").write_text("[]")
    (out / name).unlink(missing_ok=True)
    precious.write_text("mine")
    (out / name).symlink_to(precious)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=f"{out / name} is a link to a file that would be replaced: give another --ou"):
        metamix_command("predict", tmp_path / "a.png", "--model", "wavemixsr_nano.x2", "--pretrained", "--output", out)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoint.pt", "curves.png", "test_confusion.png"])
def test_files_that_a_killed_run_left_half_written_are_removed(name, tmp_path):
    """Temporary files have random names, so they would pile up, and some are as large as a checkpoint."""
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / name):
        (half,) = tmp_path.glob(f"{name}.*.tmp")
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


def test_a_run_folder_with_a_file_of_the_user_is_accepted_again(tmp_path):
    train(*SHORT, "--output", tmp_path)
    (tmp_path / "notes.md").write_text("it went well")
    check_output(tmp_path)
