"""Test that a process keeps freed memory for reuse, and what it prints when it is stopped."""

import os
import platform
import resource
import sys

import pytest
import torch

from metamix.training.processes import ProcessGroup
from tests.helpers.running import in_a_process


def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**26  # as large as activations, and freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def check_faults():
    default = count_faults()
    ProcessGroup.start("cpu")
    count_faults()
    kept = count_faults()
    assert default > 1000 and kept < default / 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_is_used_again():
    """Memory that is used again causes no page faults. The control allocates memory with glibc's default setting."""
    assert in_a_process(check_faults) == 0


def test_a_process_is_orphaned_when_its_torchrun_agent_is_gone(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    group = ProcessGroup.start("cpu")
    assert not group.orphaned
    monkeypatch.setattr(os, "getppid", lambda: group.agent + 1)
    assert group.orphaned


def leave_group(error, log):
    sys.stderr = open(log, "w")  # noqa: SIM115
    with ProcessGroup(1, 2, torch.device("cpu")):
        raise error


@pytest.mark.parametrize(
    "error, said",
    [
        (KeyboardInterrupt(), "stopped: Ctrl-C"),
        (RuntimeError("[gloo/pair.cc] Connection reset by peer"), "stopped: [gloo/pair.cc] Connection reset by peer"),
    ],
)
def test_a_rank_that_is_stopped_prints_no_traceback(error, said, tmp_path):
    assert in_a_process(leave_group, error, tmp_path / "log") == 1
    assert (tmp_path / "log").read_text() == f"[rank 1] {said}\n"
