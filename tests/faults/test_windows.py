"""Test that training needs no part of Python that Windows lacks. This simulates Windows; nothing runs on it."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from metamix.training.run_folder import Run
from metamix.utils.files import lock_folder
from tests.helpers.running import MODEL, TINY

# Imports that look for the real system come first.
PRELUDE = """
import os, signal, sys, types
import matplotlib.pyplot, sklearn.datasets, sklearn.metrics, timm, torchvision
sys.modules |= {"fcntl": None, "resource": None}
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda file, mode, size: print("locked"))
del signal.SIGHUP, os.O_NONBLOCK, os.sched_getaffinity
sys.platform = "win32"
from metamix.cli.train import main
main(sys.argv[1:])
"""


def test_training_works_without_posix(tmp_path):
    words = [*TINY, "--config", "digits/demo", "--epochs", "1", "--batch-size", "512", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", PRELUDE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("locked\n")
    assert f"{MODEL} on digits, test: top1" in done.stdout


def test_a_lock_of_windows_refuses_a_second_process(tmp_path, monkeypatch):
    def locking(file, mode, size):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="another process is writing into"):
        lock_folder(tmp_path)


def test_training_goes_on_while_excel_holds_metrics_csv_open(tmp_path, monkeypatch, capsys):
    replace = os.replace

    def refuse(source, target):
        if target.name == "metrics.csv":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        replace(source, target)

    rows = [{"epoch": 1, "step": 5, "train_loss": 2.0}, {"epoch": 2, "step": 10, "train_loss": 1.0}]
    run = Run(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        run.record(rows[:1], last=False)
    said = "metrics.csv could not be written (Permission denied); if a program has it open, close it: the next epoch, "
    assert said + "if any" in capsys.readouterr().out
    run.record(rows, last=True)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,step,train_loss", "1,5,2", "2,10,1"]
