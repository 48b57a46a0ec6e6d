"""The machine and the software: memory, versions, the commit."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import torch

from metamix.version import __version__


def peak_memory(device: torch.device) -> float:
    """GiB: the most that the run has held on the GPU, or this process in memory where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {"python": sys.version.split()[0], "metamix": __version__} | found


def commit() -> str | None:
    """The commit of the clone that this code runs from, with + where tracked files differ; None outside of a clone."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one; other C libraries are left as they are.

    By default it returns large blocks to the kernel, which clears every page of them anew at the next step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)  # bytes; older versions take no more
        mallopt(m_trim_threshold, 2**31 - 1)
