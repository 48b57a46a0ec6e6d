"""Test the command `metamix`: its subcommands, how it finds tasks, and its errors."""

import io
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamix.tasks.find import task_of
from metamix_cli import COMMANDS, main
from tests.helpers.advice import exit_code
from tests.helpers.running import in_a_process

ROOT = Path(__file__).resolve().parents[2]


def test_usage_lists_every_command(capsys):
    main([])
    text = capsys.readouterr().out
    assert text.startswith("usage: metamix COMMAND")
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_slow(word):
    code = (
        f"import sys, metamix_cli; metamix_cli.main([{word!r}]); "
        f"print([name for name in ('torch', 'timm', 'numpy', 'metamix') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.endswith("\n[]\n") and "metamix" in output


def test_an_unknown_command_is_refused_with_the_nearest_name(capsys):
    assert exit_code(main, "trian") == 2
    assert "there is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_help(name, capsys):
    assert not exit_code(main, name, "--help")
    assert f"usage: metamix {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "eval"])
def test_scripts_of_a_clone_are_the_commands(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: metamix {name} ")


def test_a_closed_pipe_is_not_an_error(tmp_path):
    """A pipe closes early in `metamix models | head -1`."""
    assert in_a_process(list_models_into_a_closed_pipe, tmp_path / "stderr") == 141
    assert (tmp_path / "stderr").read_text() == ""


def list_models_into_a_closed_pipe(stderr):
    read, write = os.pipe()
    os.close(read)
    sys.stdout = open(write, "w")  # noqa: SIM115
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    main(["models"])


@pytest.mark.parametrize("output, said", [(">&-", ""), ("> /dev/full", "error: [Errno 28] No space left on device\n")])
@pytest.mark.parametrize("unbuffered, end", [("", "return"), ("1", "return"), ("", "raise SystemExit(0)")])
def test_an_output_that_is_closed_or_full_leaves_no_traceback(output, said, unbuffered, end):
    code = f"""
import metamix_cli

def answer(words):
    print("text")
    {end}

metamix_cli.answer = answer
metamix_cli.main([])
"""
    command = f"PYTHONUNBUFFERED={unbuffered} exec {shlex.join([sys.executable, '-c', code])} {output}"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1 if said else 0, said)


def test_sigterm_ends_a_command_as_ctrl_c_does():
    command = """
import os, signal, metamix_cli

def answer(words):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("temporary files are removed")

metamix_cli.answer = answer
metamix_cli.main([])
"""
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "temporary files are removed\n", "")


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("metamix.cli.models.main", interrupted)
    assert exit_code(main, "models") == 130


@pytest.mark.parametrize("error, where", [
    (torch.OutOfMemoryError("CUDA out of memory"), "the GPU"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "the machine"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "the machine"),
    (MemoryError(), "the machine"),
])  # fmt: skip
def test_out_of_memory_ends_in_one_sentence(error, where, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr("metamix.cli.train.train_all", fail)
    monkeypatch.setattr("metamix.cli.evaluate.score", fail)
    with pytest.raises(SystemExit, match=f"^error: {where} is out of memory; give a smaller --batch-size, --micro-b"):
        main(["train", "--data", "digits"])
    with pytest.raises(SystemExit, match=f"^error: {where} is out of memory; give a smaller --batch-size$"):
        main(["eval"])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("metamix.tasks.predict.open_trained", fail)
    for task, advice in (
        ("classification", "give a smaller --batch-size"),
        ("detection", "give --device cpu, or smaller images"),
        ("restoration", "give smaller tiles, such as --tile 256"),
        ("segmentation", "give smaller tiles, such as --tile 256"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {where} is out of memory; {advice}$"):
            main(["predict", str(tmp_path / "a.png"), "--task", task, "--checkpoint", "run"])


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("metamix.cli.models.main", lambda argv: print("犬"))
    main(["models"])
    assert stream.buffer.getvalue() == b"\\u72ac\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("metamix.cli.train.train_all", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "--data", "digits"])


def test_predict_without_a_checkpoint_is_refused(capsys):
    assert exit_code(main, "predict", "photo.jpg") == 2
    assert "error: give the weights to predict with, --checkpoint RUN_OR_FILE" in capsys.readouterr().err
    assert exit_code(main, "predict", "photo.jpg", "--checkpoit=run") == 2
    assert "error: there is no option --checkpoit; did you mean '--checkpoint'?" in capsys.readouterr().err


def test_predict_refuses_options_after_two_dashes():
    with pytest.raises(SystemExit, match="^error: --checkpoint comes after --, so it would be read as an image"):
        main(["predict", "--", "-photo.jpg", "--checkpoint", "run"])
    with pytest.raises(SystemExit, match="^error: there is no file nowhere"):
        main(["predict", "--checkpoint", "nowhere", "--", "-photo.jpg"])


def test_predict_and_export_find_the_same_task(tmp_path):
    """An .npz file holds weights of MAXIM, so its task is restoration. A restoration model's name implies it too."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "x.npz").write_bytes(b"half a download")
    with pytest.raises(SystemExit, match=r"error: .*x.npz is not a complete .npz file of arrays"):
        main(shlex.split(f"predict {tmp_path}/a.png --checkpoint {tmp_path}/x.npz --output {tmp_path}/b"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pt")
    for words, task in (
        (["x.npz"], "restoration"),
        (["plain.pt"], "classification"),
        (["plain.pt", "wavemixsr_nano.x2"], "restoration"),
    ):
        assert task_of(str(tmp_path / words[0]), *words[1:]) == (task, tmp_path / words[0])


@pytest.mark.parametrize("words", [["--help"], []])
def test_verify_names_its_tasks(words, capsys):
    assert exit_code(main, "verify", *words) == (0 if words else 2)
    said = capsys.readouterr().out
    assert all(word in said for word in ("  detection ", "  segmentation ", "  restoration ", "--task NAME --help"))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(SystemExit, match="task is 'detecton'; did you mean 'detection'\\?"):
        main(["verify", "folder", "--task", "detecton"])
