"""Describe the machine and the software (devices, memory, versions, commit), and prepare devices and memory."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metamix.version import __version__


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in GiB of the tensors on a CUDA GPU, or else of this process; on Windows, return 0."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def free_memory(device: torch.device) -> float | None:
    """Return the bytes that this process can still allocate on a device; None if the system does not say.

    On the CPU, the limits of control groups, such as a container's, are respected, and the free memory is divided among
    torchrun's processes on this machine. Memory that the C library keeps is returned to the system first.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or sys.platform != "linux":
        return None
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = {words[0]: 1024.0 * int(words[1]) for words in lines}["MemAvailable:"]
    return min([free, *_free_in_control_groups()]) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _free_in_control_groups(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> list[float]:
    """Return the free bytes of each control group of this process that has a limit."""
    files = {  # file names in version 2 and version 1 of control groups
        "": ("memory.max", "memory.current", "memory.stat"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
    }
    free = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controller, path = line.split(":", 2)
        folder = root / controller / path.lstrip("/")  # in a container, only a parent of the folder may exist
        for place in (folder, *folder.parents) if controller in files else ():
            paths = [place / name for name in files[controller]]
            if all(path.exists() for path in paths):
                limit, used, statistics = (path.read_text().strip() for path in paths)
                cache = dict(line.split() for line in statistics.splitlines()).get("inactive_file", 0)  # reclaimable
                free += [float(limit) - float(used) + float(cache)] if limit != "max" else []
    return free


@contextmanager
def exit_if_out_of_memory(advice: str) -> Iterator[None]:
    """Exit with a message and `advice` instead of a traceback when a GPU or the machine has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "the machine"
        raise SystemExit(f"error: {place} is out of memory; {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU or the machine has no memory left."""
    texts = "can't allocate memory", "MPS backend out of memory"
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)


def prepare_device(name: str, local_rank: int = 0) -> torch.device:
    """Choose the device of this process, check that the machine has it, and prepare torch or the C library for it.

    Args:
        name: auto, cpu, cuda, cuda:1 or mps; auto is a GPU if there is one.
        local_rank: rank of this process on its machine, and the index of the GPU that `cuda` stands for.

    Raises:
        ValueError: the name is wrong, the machine has no such device, or processes would share a GPU.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise ValueError(f"device is {name!r}, but it must be auto, cpu, cuda, cuda:<number> or mps")
    if not available[device.type]:
        maker = "CUDA" if device.type == "cuda" else "Apple"
        raise ValueError(f"device is {name!r}, but this PyTorch sees no {maker} GPU; use --device cpu or auto")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise ValueError(f"device is {name!r}, but the last GPU of this machine is cuda:{count - 1}")
        if device.index is None and local_rank >= count:
            raise ValueError(
                f"process {local_rank} needs its own GPU, but there are only {count}: lower --nproc_per_node"
            )
        if device.index is not None and (processes := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > 1:
            raise ValueError(f"device is {name!r}, which {processes} processes cannot share: give --device cuda")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def versions() -> dict[str, str]:
    """Return the versions of Python, metamix, torch, torchvision and timm."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {"python": sys.version.split()[0], "metamix": __version__} | libraries


def cpu_fields() -> dict[str, str]:
    """Return the fields of /proc/cpuinfo for one CPU, such as "model name"; empty if the system is not Linux."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_flags() -> set[str]:
    """Return the names of the CPU's instruction sets, such as "avx2"; empty if the system is not Linux."""
    fields = cpu_fields()
    return set(fields.get("flags", fields.get("Features", "")).split())  # Features: on ARM


def processor() -> dict[str, Any]:
    """Return the CPU's name, its number of logical cores and, on Linux, its instruction sets that speed up models."""
    flags = cpu_flags()
    fast = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
    return {
        "cpu": cpu_fields().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [name for name in fast if name in flags],
    }


def usable_workers(workers: int | None) -> int:
    """Return `workers`, but at most the number of usable cores, above which torch's DataLoader warns.

    None stands for 2. A GPU takes images faster, so if this process uses one, None stands for its share of the cores:
    the number of cores divided by the number of training processes on the machine, at least 2 and at most 16.
    """
    cores_of = getattr(os, "sched_getaffinity", lambda process: range(os.cpu_count() or 1))
    cores = len(cores_of(0))
    if workers is None:
        workers = 2
        if torch.cuda.is_initialized():
            count = os.environ.get("LOCAL_WORLD_SIZE")
            # A launcher may bind this process to a part of the launcher's cores, so the launcher's cores are divided.
            share = len(cores_of(os.getppid())) // int(count) if count else cores
            workers = min(max(share, 2), 16)
    return min(workers, cores)


def commit() -> str | None:
    """Return the commit of the clone that this code runs from, with + if tracked files differ; None outside a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # the package may be installed inside another project's clone
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step. This does nothing with other C libraries.

    By default glibc returns large blocks to the kernel, which clears every page again at the next step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)  # bytes; older versions accept only 2^25
        mallopt(m_trim_threshold, 2**31 - 1)
