"""The command `metamix`: finding a subcommand, and saying so where there is none."""

import subprocess
import sys

import pytest

import metamix
from metamix.cli.main import COMMANDS, main


def test_usage_lists_every_command(capsys):
    main([])
    text = capsys.readouterr().out
    assert text.startswith("usage: metamix COMMAND")
    assert all(f"  {name} " in text for name in COMMANDS)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"metamix {metamix.__version__}\n"


def test_unknown_command_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "there is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    assert f"usage: metamix {name}" in capsys.readouterr().out


def test_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "metamix", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"metamix {metamix.__version__}\n"


def test_predict_without_a_checkpoint_says_how(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "photo.jpg"])
    assert ended.value.code == 2
    assert "error: give the weights to predict with, --checkpoint RUN_OR_FILE" in capsys.readouterr().err


def test_unknown_task_names_the_nearest():
    with pytest.raises(SystemExit, match="there is no task 'detecton'; did you mean 'detection'\\?"):
        main(["verify", "folder", "--task", "detecton"])
