"""Test the estimate of the memory that a training step needs, and the amount of free memory."""

import os
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from metamix.training.memory import TensorMemory, largest_part
from metamix.utils.system import _free_in_control_groups, free_memory, keep_freed_memory
from tests.helpers.running import in_a_process


def test_the_peak_counts_tensors_that_live_at_the_same_time():
    x = torch.zeros(256)  # 1 KiB, made before counting starts
    with TensorMemory() as memory:
        for _ in range(3):
            y = x + 1  # the old y lives until the new one is made
        y.view(16, 16).mul_(2)
    assert memory.peak == 2048
    del y


def test_tensors_kept_for_the_backward_pass_are_counted():
    layers = nn.Sequential(*[nn.Tanh() for _ in range(10)])
    x = torch.zeros(256, requires_grad=True)
    with TensorMemory() as memory:
        loss = layers(x).sum()
        held = memory.peak
        torch.autograd.grad(loss, x)
    assert held >= 10 * 1024 and memory.peak > held


def check_estimate():
    keep_freed_memory()
    model = timm.create_model("metaformer_pooling_nano", num_classes=5, img_size=64).train()

    def step(n):
        loss = model(torch.randn(n, 3, 64, 64)).logsumexp(1).mean()
        torch.autograd.grad(loss, list(model.parameters()))

    def measure(n):
        with TensorMemory() as memory:
            step(n)
        return memory.peak

    def peak():  # in KiB
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    few, more = measure(2), measure(4)
    before = peak()
    step(32)
    assert (few + 15 * (more - few)) / 2**10 == pytest.approx(peak() - before, rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_the_memory_of_32_samples_is_extrapolated_from_two_and_four():
    """Measure in a new process, because other tests have raised the peak of this process."""
    assert in_a_process(check_estimate) == 0


@pytest.mark.parametrize("free, part", [(1000, 32), (319, 16), (45, 4), (10, 1), (9, 0)])
def test_the_micro_batch_is_halved_until_it_fits(free, part):
    assert largest_part(32, lambda samples: 10 * samples, free) == part


@pytest.mark.skipif(sys.platform != "linux", reason="free memory is only read on Linux")
def test_processes_of_a_machine_share_its_free_memory(monkeypatch):
    monkeypatch.setattr("metamix.utils.system._free_in_control_groups", list)  # no limit
    free = free_memory(torch.device("cpu"))
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) < 0.5 * free


@pytest.mark.parametrize(
    "version, line, limit, used",
    [
        (1, "4:memory:/docker/abc", "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        (2, "0::/docker/abc", "memory.max", "memory.current"),
    ],
)
def test_the_limit_of_a_container_bounds_the_free_memory(version, line, limit, used, tmp_path):
    """Inside a container, the container's own control group is the root of the cgroup file system."""
    (tmp_path / "cgroup").write_text(f"7:cpu:/\n{line}\n")
    assert _free_in_control_groups(tmp_path, tmp_path / "cgroup") == []
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("5000\n")
    (tmp_path / used).write_text("3000\n")
    (tmp_path / limit).with_name("memory.stat").write_text("cache 900\ninactive_file 500\n")
    assert _free_in_control_groups(tmp_path, tmp_path / "cgroup") == [2500]
    if version == 2:
        (tmp_path / limit).write_text("max\n")
        assert _free_in_control_groups(tmp_path, tmp_path / "cgroup") == []
