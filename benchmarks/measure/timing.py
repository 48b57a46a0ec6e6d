"""What the benchmarks share: models ready to be timed, interleaved medians, peak memory of a process, result files.

Times of one machine wander by a tenth and more from one minute to the next. So what is compared is timed in turns
within one process, and a comparison is a ratio of two medians of the same turns.

glibc gives freed memory of large tensors back to the system, or does not, as what ran before in the process decides.
Where it does, the pages of each new tensor are cleared anew: a third of the time of fp32 inference of poolformer_s12.
What is timed here keeps freed memory, as train.py does: `metamix.training.processes.keep_freed_memory`. Peak memory is
that of other processes, which do not.
"""

import json
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import timm
import torch
import torch.nn.functional as F

PRECISIONS = ("fp32", "bf16")
MODES = ("infer", "train")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TURN = 0.02  # seconds; a faster call is repeated within its turn, so that the caches it left warm are its own


class Subject:
    """A model and its images in one memory format. Images and labels are random, the same for all.

    A step of inference is the forward pass under `torch.inference_mode`. A training step is the forward pass, the cross
    entropy, the backward pass, SGD's update of every parameter (without momentum) and the clearing of gradients. bf16
    is autocast; weights and their gradients stay fp32.
    """

    def __init__(self, model: torch.nn.Module, batch: int, size: int, memory_format: str, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        channels = getattr(model, "default_cfg", {}).get("input_size", (3,))[0]
        images = torch.randn(batch, channels, size, size, generator=generator)
        place = dict(device=device, memory_format=FORMATS[memory_format])
        self.model, self.images = model.to(**place), images.to(**place)
        self.labels = torch.randint(10, (batch,), generator=generator).to(device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        self.compiled = None
        self.device = device

    def step(
        self, mode: str, precision: str, compiled: bool = False, no_grad=torch.inference_mode
    ) -> Callable[[], None]:
        """A function without arguments that makes one step, to its end on a GPU too; `no_grad` is for inference."""
        if compiled and self.compiled is None:
            # Our models share one forward function, whose compiled forms torch counts: past 8 it would run it eagerly,
            # and of a second size it would make one for all sizes.
            torch._dynamo.config.recompile_limit = 64
            self.compiled = torch.compile(self.model, dynamic=False)
        model = self.compiled if compiled else self.model

        def step():
            autocast = torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16")
            if mode == "infer":
                self.infer(model, autocast, no_grad)
            else:
                self.train(model, autocast)
            if self.device == "cuda":
                torch.cuda.synchronize()

        return step

    def infer(self, model, autocast, no_grad) -> None:
        model.eval()
        with no_grad(), autocast:
            model(self.images)

    def train(self, model, autocast) -> None:
        model.train()
        with autocast:
            loss = F.cross_entropy(model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def interleaved(steps: dict[str, Callable[[], None]], seconds: float, least: int = 5) -> dict[str, float]:
    """Median seconds of each of `steps`, called in turns for about `seconds` in all and at least `least` turns each.

    Each is called once before, untimed. Says so where other programs were at work meanwhile.
    """
    times = {name: [] for name in steps}
    for step in steps.values():
        step()
    start, others = time.perf_counter(), others_seconds()
    end = start + seconds
    turns = 0
    while turns < least or time.perf_counter() < end:
        for name, step in steps.items():
            spent = 0.0
            while spent < TURN:
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)
                spent += times[name][-1]
        turns += 1
    share = (others_seconds() - others) / (time.perf_counter() - start) / os.cpu_count()
    if share > 0.1:
        print(f"Other programs took {share:.0%} of the processor meanwhile: measure again.", file=sys.stderr)
    return {name: median(spent) for name, spent in times.items()}


def others_seconds() -> float:
    """Processor time since the start of the machine that was not idle and not this process's, as Linux tells it."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _iowait, *others = map(int, path.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def in_fresh_process(function: Callable, *args):
    """`function(*args)` in a new interpreter, which imports what this program imports and has measured nothing yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def memory_mib(peak: bool = True, device: str = "cpu") -> float:
    """MiB of this process, or of its tensors on a GPU: the most there were so far, or those now.

    Linux keeps the peak by address space; `getrusage` would also count what the parent held when this one started.
    """
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def machine(device: str = "cpu") -> dict:
    """What times depend on, as far as can be asked: only results of equal machines are comparable."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    info = dict(re.findall(r"^(.+?)\s*: (.*)$", told, re.MULTILINE))
    words = {"cpu": info.get("model name", platform.processor())}
    # Hosts may give several generations one name, and one may be twice as fast as another.
    words |= {"cpu_" + key.split()[-1]: info[key] for key in ("cpu family", "model", "stepping") if key in info}
    words |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device == "cuda":
        words["gpu"] = torch.cuda.get_device_name()
    return words | {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}


def save(path: Path, machine: dict, rows: list[dict], key: tuple[str, ...], **more) -> list[dict]:
    """Write `rows` to `path` beside those of earlier runs on the same machine, which they replace where `key` is equal.

    So a long run may be made in parts; each row names the commit that it was measured at. Rows of another machine or
    other versions are dropped. Returns all rows.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    from metamix.utils.system import commit  # it brings matplotlib, which no process that is measured should hold

    at = commit()
    fresh = {tuple(row[k] for k in key): row | {"commit": at} for row in rows}
    kept = old["rows"] if old.get("machine") == machine else []
    kept = {tuple(row[k] for k in key): row for row in kept}
    rows = list((kept | fresh).values())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **more, "rows": rows}, indent=1) + "\n")
    return rows


def table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
