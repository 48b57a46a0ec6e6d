"""Test that training needs no part of Python that Windows lacks. This simulates Windows; nothing runs on it."""

import errno
import subprocess
import sys
from types import SimpleNamespace

import pytest

from metamix.utils.files import lock_folder

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
    words = ["--config", "digits/demo", "--epochs", "1", "--batch-size", "512", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", PRELUDE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("locked\n")
    assert "metaformer_pooling_nano on digits, test: top1" in done.stdout


def test_a_lock_of_windows_refuses_a_second_process(tmp_path, monkeypatch):
    def locking(file, mode, size):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="another process is writing into"):
        lock_folder(tmp_path)
