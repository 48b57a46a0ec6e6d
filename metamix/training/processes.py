"""The processes of a run: one alone, or as many as torchrun started."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metamix.utils.system import keep_freed_memory


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among the processes of the run, and the device that it computes on.

    A context: where there are several processes, each of them ends at the end of it.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def start(cls, device: str = "auto") -> ProcessGroup:
        """Reads torchrun's environment and joins the group: NCCL between GPUs, gloo otherwise."""
        world, rank, local = (
            int(os.environ.get(key, alone)) for key, alone in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
        )
        chosen = _device(device, local)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        elif chosen.type == "cpu":
            keep_freed_memory()
        if world > 1 and not dist.is_initialized():
            store, rank, world = next(dist.rendezvous("env://"))
            if os.environ.get("GROUP_WORLD_SIZE") == "1":
                # torchrun keeps one store over its restarts, in which a new process may find the address of a dead one.
                store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            dist.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=timedelta(hours=2),  # the others wait while one downloads
            )
        return cls(rank, world, chosen)

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Ends the process, if it is one of several, with its message and without taking the group down.

        To take down a group of gloo's can wait for ever: its destructor (torch 2.13) holds Python's lock and joins a
        thread that needs it. A rank that hung so after an error would let all others wait for it.
        """
        if self.world_size == 1:
            return
        asked = isinstance(error, SystemExit)
        said = str(error.code or "") if asked else "".join(traceback.format_exception(error)) if error else ""
        if said:
            print(f"[rank {self.rank}] {said}", file=sys.stderr)
        else:
            dist.barrier()  # nobody leaves while another still reads what it sent
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if said else 0)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """One process of each machine does what is inside before the others: what it downloads, they find.

        SystemExit on the others where it fails, so that its message is the one that is read.
        """
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not first and not all(self.all_gather(True)):
            raise SystemExit("stopped: the first process of a machine could not do this, and says why")
        done = False
        try:
            yield
            done = True
        finally:
            if first:
                self.all_gather(done)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same on each; `values` is overwritten."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def exists_for_all(self, there: bool, path: Path) -> bool:
        """Whether `path` is there; ValueError where some ranks see it and others do not."""
        found = self.all_gather(there)
        if any(found) and not all(found):
            raise ValueError(
                f"rank {found.index(False)} does not see {path}; all nodes need the run folder, on a file system that "
                f"they share"
            )
        return all(found)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {name!r}; accepted are auto, cpu, cuda, cuda:<number> and mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {name!r}, but this PyTorch sees no Apple GPU; use --device cpu or auto")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device is {name!r}, but this PyTorch sees no CUDA GPU; use --device cpu or auto")
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise ValueError(f"device is {name!r}, but this machine's GPUs are cuda:0 to cuda:{count - 1}")
        if device.index is None and local >= count:
            raise ValueError(
                f"process {local} of this machine needs GPU {local}, but there are only {count}; lower --nproc_per_node"
            )
        if device.index is not None and (processes := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > 1:
            raise ValueError(
                f"device is {name!r}, which the {processes} processes of this machine cannot share; give --device "
                f"cuda, and each takes its own"
            )
        return torch.device("cuda", local if device.index is None else device.index)
    return device
