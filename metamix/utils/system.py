"""Facts about machine and software: memory, versions, the commit."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metamix.version import __version__


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in GiB: allocated on the GPU, or held by this process if it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


@contextmanager
def exit_if_out_of_memory(advice: str) -> Iterator[None]:
    """Exit with a message instead of a traceback when a GPU or the machine has no memory left.

    Args:
        advice: what needs less memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not gpu and not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise SystemExit(f"error: {'the GPU' if gpu else 'the machine'} is out of memory; {advice}") from error


def versions() -> dict[str, str]:
    """Return the versions of Python, metamix, torch, torchvision and timm."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {"python": sys.version.split()[0], "metamix": __version__} | found


def cpu_fields() -> dict[str, str]:
    """Return the fields of /proc/cpuinfo for one CPU, such as "model name"; none where Linux does not run."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_flags() -> set[str]:
    """Return the names of the CPU's instruction sets, such as "avx2"; none where Linux does not run."""
    fields = cpu_fields()
    return set(fields.get("flags", fields.get("Features", "")).split())  # Features: on ARM


def processor() -> dict[str, Any]:
    """Return the CPU's name, the number of logical cores and its instructions for 8 and 16 bits, where Linux knows."""
    flags = cpu_flags()
    fast = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
    return {
        "cpu": cpu_fields().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [name for name in fast if name in flags],
    }


def commit() -> str | None:
    """Return the commit of the clone that this code runs from, with + if tracked files differ; None outside a clone."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[2]:
            return None  # the package is installed inside another project's clone
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; does nothing with other C libraries.

    By default glibc returns large blocks to the kernel, which clears every page again at the next step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)  # bytes; the limit of older versions
        mallopt(m_trim_threshold, 2**31 - 1)
