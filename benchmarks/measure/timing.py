"""Provide what all measurements need: arguments, steps of models, the memory of a process, and result files.

Timed processes keep freed memory (`metamix.utils.system.keep_freed_memory`), as training on a CPU does. The exceptions
are `ceiling`, `deploy profile` and the loops `timm` and `script` of `train_loop`. By default, glibc may return large
freed blocks to the system, and the kernel clears the pages when they are used again, which takes a third of the fp32
inference time of poolformer_s12. Processes that measure peak memory do not keep freed memory, except `memory
restoration`, `memory photograph` and the loops `ours` and `bare` of `train_loop`.
"""

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from benchmarks.paths import read_json, write_json
from metamix.utils.files import write_text
from metamix.utils.system import commit, cpu_fields
from metamix.utils.text import did_you_mean, plural

PRECISIONS = ("fp32", "bf16")
MODES = ("infer", "train")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def list_of(accepted: Sequence[str]) -> Callable[[str], list[str]]:
    """Make an argparse type for a comma-separated list of some of `accepted`."""

    def parse(words: str) -> list[str]:
        chosen = words.split(",")
        for word in chosen:
            if word not in accepted:
                raise argparse.ArgumentTypeError(
                    f"unknown name {word!r}{did_you_mean(word, accepted)} Accepted: {', '.join(accepted)}."
                )
        return chosen

    return parse


def add_cells(parser: argparse.ArgumentParser) -> None:
    """Add --mode, --precision, --batch, --size, --seconds and --device."""
    parser.add_argument("--mode", type=list_of(MODES), default=[*MODES], help="infer, train or infer,train")
    parser.add_argument("--precision", type=list_of(PRECISIONS), default=[*PRECISIONS], help="fp32, bf16 or fp32,bf16")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images in pixels")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds for each model, mode and precision; at least five turns"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))


class Subject:
    """A model and random images in one memory format.

    A step of inference is the forward pass under `torch.inference_mode`. A training step is forward, cross entropy,
    backward, an SGD update of every parameter (without momentum) and clearing the gradients. bf16 means autocast;
    weights and gradients stay fp32.
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
        """Return a function that runs a step, "infer" or "train" in "fp32" or "bf16", and waits for its end."""
        if compiled and self.compiled is None:
            # Our models share one forward function. By default, torch runs it eagerly after 8 compiled versions, and
            # compiles one version for all sizes when it sees a second image size.
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


def in_fresh_process(function: Callable, *args):
    """Call `function(*args)` in a new interpreter and return the result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def memory_mib(peak: bool = True, device: str = "cpu") -> float:
    """Return the memory of this process, or of its tensors on a GPU, in MiB: the peak so far, or the present value."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    # getrusage would also count the memory that the parent process held when this process started.
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def machine(device: str = "cpu") -> dict:
    """Describe the machine and the versions. Compare only results of the same machine and versions."""
    info = cpu_fields()
    facts = {"cpu": info.get("model name", platform.processor())}
    # Several processor generations may share a name, although one generation may be twice as fast as another.
    facts |= {"cpu_" + key.split()[-1]: info[key] for key in ("cpu family", "model", "stepping") if key in info}
    facts |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}


def save(path: Path, machine: dict, rows: list[dict], key: tuple[str, ...]) -> None:
    """Merge `rows` into a result file.

    Rows of earlier runs on the same machine are kept unless a new row has the same `key` fields, so a long
    measurement can be made in parts. Rows of a different machine or of different versions are dropped, with a note.
    Each new row gets the commit and the date.
    """
    old = read_json(path, {})
    origin = {"commit": commit(), "date": today()}
    fresh = {tuple(row[k] for k in key): row | origin for row in rows}
    kept = old.get("rows", [])
    if kept and old["machine"] != machine:
        print(f"note: {path}: dropped {plural(len(kept), 'row')} of a different machine or of different versions")
        kept = []
    kept = {tuple(row[k] for k in key): row for row in kept}
    write_json(path, {"machine": machine, "rows": list((kept | fresh).values())})


def append_row(path: Path, row: dict) -> None:
    """Append a row, on its own line, to a JSON file that holds a list of rows.

    The file is read first, since another process may have added rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in [*read_json(path, []), row]) + "\n]\n")


def today() -> str:
    """Return the date in UTC, such as "2026-11-26"."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")
