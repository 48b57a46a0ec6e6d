"""Join the processes of a run, exchange values between them, and stop them at a signal."""

import os
import signal
import sys
import threading
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

from metamix.utils.system import prepare_device
from metamix.utils.text import printable_lines

SIGHUP = getattr(signal, "SIGHUP", None)  # not on Windows


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among the processes of the run, and its device.

    In a run of several processes, leaving the `with` block of a group ends the process.
    """

    rank: int
    world_size: int
    device: torch.device
    agent: int | None = None  # process id of the torchrun agent that started this process

    @property
    def orphaned(self) -> bool:
        """Return whether the torchrun agent is gone, so that nobody stops or restarts this process."""
        return self.agent is not None and os.getppid() != self.agent

    @property
    def launched(self) -> bool:
        """Return whether torchrun started this process."""
        return self.agent is not None or self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which writes the files."""
        return self.rank == 0

    @classmethod
    def start(cls, device: str = "auto") -> "ProcessGroup":
        """Join the group that torchrun's environment describes: NCCL between GPUs, gloo otherwise."""
        world_size, rank, local_rank = (
            int(os.environ.get(key, single)) for key, single in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
        )
        chosen = prepare_device(device, local_rank)
        if world_size > 1 and not dist.is_initialized():
            store, rank, world_size = next(dist.rendezvous("env://"))
            if os.environ.get("GROUP_WORLD_SIZE") == "1":
                # torchrun keeps its store across restarts, so a new process could find the address of a dead one in it.
                store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            dist.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(hours=2),  # the other ranks wait while one rank downloads
            )
        return cls(rank, world_size, chosen, agent=os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None)

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Print the error and end this process without destroying the group, if the run has several processes.

        Destroying a gloo group can hang: its destructor (torch 2.13) holds the GIL while it joins a thread that needs
        the GIL. All other ranks would then wait for the rank that failed.
        """
        if self.world_size == 1:
            return
        if isinstance(error, SystemExit):
            message = str(error.code or "")
        elif isinstance(error, KeyboardInterrupt) or (error is not None and is_lost_rank(error)):
            message = f"stopped: {str(error)[:200] or 'Ctrl-C'}"  # no traceback: nothing is wrong here
        else:
            message = "".join(traceback.format_exception(error)) if error else ""
        if message:
            print(printable_lines(f"[rank {self.rank}] {message}"), file=sys.stderr)
        else:
            dist.barrier()  # a rank must not leave while another still receives from it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if message else 0)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block on the first process of each machine, then on the others, which use its downloads.

        Raises:
            SystemExit: on the other processes, if the first process of any machine fails. Only that process prints why.
        """
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not first and not all(self.all_gather(True)):
            raise SystemExit("stopped: the first process of a machine failed; its message says why")
        done = False
        try:
            yield
            done = True
        finally:
            if first:
                self.all_gather(done)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum tensors over all ranks, in place; every rank gets the same sums."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of ranks; every rank gets them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def exists_for_all(self, exists: bool, path: Path) -> bool:
        """Return `exists`, which says whether this rank sees `path`; raise ValueError if the ranks disagree."""
        seen = self.all_gather(exists)
        if any(seen) and not all(seen):
            raise ValueError(f"rank {seen.index(False)} does not see {path}; all nodes must share the run folder")
        return all(seen)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the tensors of rank 0 over the tensors of all other ranks."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error says that another process of the run ended. Gloo raises a plain RuntimeError for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Stopped(SystemExit):
    """A signal, or the loss of the torchrun agent, stopped the run; its checkpoint has been written.

    The exit code is the code that shells report for a program that the signal ended. Under torchrun, which restarts
    stopped runs unless all ranks exit with 0, it is 0.
    """

    def __init__(self, number: int = signal.SIGTERM, *, launched: bool = False):
        super().__init__(0 if launched else 128 + number)


class StopSignal:
    """Remember a SIGTERM, Ctrl-C or SIGHUP (the terminal was closed) inside a `with` block.

    A second SIGTERM, or a second Ctrl-C, has its usual effect. A second SIGHUP is ignored, since the kernel and the
    shell both send one. Under nohup, which ignores SIGHUP from the start, the first SIGHUP is ignored here too.

    Python delivers signals to the main thread only, so in other threads no signal is received.
    """

    def __init__(self) -> None:
        self.received = False
        self.number = signal.SIGTERM  # the last signal that was received
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        self.received = False
        if threading.current_thread() is threading.main_thread():
            for number in filter(None, (signal.SIGTERM, signal.SIGINT, SIGHUP)):
                if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number in list(self._handlers):
            signal.signal(number, self._handlers.pop(number))

    def _receive(self, number: int, _frame: Any) -> None:
        self.received, self.number = True, signal.Signals(number)
        if number == SIGHUP:
            self._handlers[self.number] = signal.SIG_IGN
        signal.signal(number, self._handlers[signal.Signals(number)])
