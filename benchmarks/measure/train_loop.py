"""Compare our training loop with timm's in images per second and memory: results/train_loop.json.

    python -m benchmarks.measure.train_loop --data-dir cifar10
    python -m benchmarks.measure.train_loop --data-dir cifar10 --timm-script pytorch-image-models/train.py

`--data-dir` holds CIFAR-10 as class folders, train/ and val/. There are two cases, both on the CPU in bf16 autocast:
these images, and JPEG files of 256 x 256 pixels made from them. Each library augments with its defaults, except that
timm's colour jitter is off. Both flip images at random. timm crops a random area; metamix crops a random area of the
larger images, and pads and crops the small images.

    ours     the loop of `metamix train` with data, augmentation, schedule and checks: Engine.steps
    bare     the same step (model, optimizer, autocast, freed memory kept) on one random batch; only in the first case
    timm     a loop that calls timm's functions in the order of timm's training script
    script   timm's training script, with the speeds that it prints; it runs alone, after the other loops

Each loop runs in a separate process, because process-wide settings affect its speed. The loops take turns of a few
steps while the others wait. Speeds are medians over the turns. The memory results are the peak of each process, its
memory after the imports (except for the script), and the private memory of its loader's workers.
"""

import argparse
import math
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

from benchmarks.measure.timing import machine
from benchmarks.paths import RESULTS, ROOT, write_json
from metamix.classification.task import Classification, ClassificationOptions
from metamix.training.engine import Engine
from metamix.training.optimization import make_optimizer
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import EngineOptions, Recipe
from metamix.training.run_folder import Run

WORKERS = 2
LR, WEIGHT_DECAY, INTERPOLATION = 1e-3, 0.05, "bilinear"
FILE = RESULTS / "train_loop.json"


@dataclass(frozen=True)
class Case:
    """A model, its images and the loops to compare.

    A turn has `settle` untimed steps, in which the other loops' workers fill their queues, and `steps` timed steps.
    """

    name: str
    folder: Path
    model: str
    size: int
    batch_size: int
    loops: tuple[str, ...]
    settle: int
    steps: int
    turns: int

    @property
    def images(self) -> int:
        """Return the number of images that a run reads, including the first step and batches read ahead."""
        return self.batch_size * (1 + self.turns * (self.settle + self.steps) + 2 * WORKERS)

    def build(self) -> torch.nn.Module:
        model = timm.create_model(self.model, num_classes=10, img_size=self.size)
        return model.train().to(memory_format=torch.channels_last)


def ours(case: Case) -> Iterator:
    """Train with the loop of `metamix train`."""
    options = ClassificationOptions(
        data="folder",
        data_dir=str(case.folder),
        model=case.model,
        img_size=case.size,
        interpolation=INTERPOLATION,
        workers=WORKERS,
    )
    settings = EngineOptions(
        device="cpu",
        amp="bf16",
        batch_size=case.batch_size,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        epochs=1,
        checkpoint_minutes=math.inf,  # writing a checkpoint is not part of a step
    )
    recipe = Recipe("classification", settings, options)
    return Engine(Classification(options), recipe, ProcessGroup.start("cpu"), Run(None, main=False)).steps(0)


def bare(case: Case) -> Iterator:
    """Run the training step of `ours` on one random batch, without loading or augmenting images."""
    ProcessGroup.start("cpu")
    model = case.build()
    optimizer = make_optimizer(model, EngineOptions(lr=LR, weight_decay=WEIGHT_DECAY))
    image = torch.randn(case.batch_size, 3, case.size, case.size).to(memory_format=torch.channels_last)
    target = torch.randint(10, (case.batch_size,))
    while True:
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(image), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def timm_parts(case: Case) -> Iterator:
    """Train with timm's defaults, but without colour jitter and label smoothing, as in metamix's defaults."""
    model = case.build()
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    task = ClassificationTask(model, criterion_kwargs={"smoothing": 0.0})
    loader = create_loader(
        create_dataset("", str(case.folder), split="train", is_training=True),
        input_size=(3, case.size, case.size),
        batch_size=case.batch_size,
        is_training=True,
        color_jitter=None,
        interpolation=INTERPOLATION,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    for image, target in loader:
        image = image.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task(image, target)["loss"]
        loss.backward()
        optimizer.step()
        loss.item()  # timm's meters read the loss at every step
        yield


LOOPS = {"ours": ours, "bare": bare, "timm": timm_parts}


def serve(loop: str, case: Case, pipe: Connection) -> None:
    """Run as many steps of a loop as each message in `pipe` requests.

    First send the memory after the imports. Then, for each number received, run that many steps and send the seconds
    that they took. After a 0, send the memory of this process and of its workers, and stop.
    """
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in an ordinary program
    pipe.send(memory(os.getpid())["process_mib"])
    steps = LOOPS[loop](case)
    next(steps)
    while count := pipe.recv():
        start = time.perf_counter()
        for _ in range(count):
            next(steps)
        pipe.send(time.perf_counter() - start)
    pipe.send(memory(os.getpid()))


def measure(case: Case) -> dict[str, dict]:
    """Measure speed and memory of every loop of the case except the script."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, seconds, result = {}, [], {loop: [] for loop in case.loops}, {}
    for loop in case.loops:
        pipes[loop], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(loop, case, theirs)))
        processes[-1].start()
        theirs.close()  # then `recv` raises EOFError if the loop fails
        result[loop] = {"imports_mib": pipes[loop].recv()}
    for _ in range(case.turns):
        for loop, pipe in pipes.items():
            pipe.send(case.settle)
            pipe.recv()
            pipe.send(case.steps)
            seconds[loop].append(pipe.recv())
    for loop, pipe in pipes.items():
        pipe.send(0)
        result[loop] |= speed([case.batch_size * case.steps / s for s in seconds[loop]]) | pipe.recv()
    for process in processes:
        process.join()
    return result


def speed(speeds: list[float]) -> dict:
    return {"img_per_s": round(statistics.median(speeds)), "turns": [round(value) for value in speeds]}


def run_script(path: Path, case: Case) -> dict:
    """Run timm's training script and end it once it has printed the speeds of enough updates."""
    start = "import runpy, sys, metamix; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    with tempfile.TemporaryDirectory() as output:
        words = (
            f"--model {case.model} --num-classes 10 --batch-size {case.batch_size} --opt adamw --lr {LR} "
            f"--weight-decay {WEIGHT_DECAY} --amp --amp-dtype bfloat16 --channels-last --device cpu "
            f"--workers {WORKERS} --color-jitter 0 --smoothing 0 --train-interpolation {INTERPOLATION} --epochs 1 "
            f"--log-interval 1"
        )
        command = [sys.executable, "-c", start, path, "--data-dir", case.folder, "--output", output, *words.split()]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
        try:
            speeds = updates(process.stdout, case.settle + case.turns * case.steps)[case.settle :]
            used = memory(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    turns = [statistics.harmonic_mean(speeds[i : i + case.steps]) for i in range(0, len(speeds), case.steps)]
    return speed(turns) | used


def updates(lines: Iterable[str], count: int) -> list[float]:
    """Return the images per second of the first `count` updates that timm's training script prints.

    With --log-interval 1, the script prints lines such as
        Train: 0 [   4/390 (  1%)]  Loss: 2.31 (2.33)  Time: 0.131s,  977.10/s  (0.160s,  800.00/s)  LR: 1.000e-05  ...

    Raises:
        ValueError: the output has fewer updates.
    """
    speeds, last = [], []
    for line in lines:
        last = [*last[-4:], line]
        if match := re.search(r"Train: \d+ \[ *\d+/\d+ .*?Time: [\d.]+s, +([\d.]+)/s", line):
            speeds.append(float(match[1]))
            if len(speeds) == count:
                return speeds
    raise ValueError(
        f"timm's script reported {len(speeds)} updates and {count} are needed; it ended with\n{''.join(last)}"
    )


def memory(process: int) -> dict[str, int]:
    """Return the peak of a process in MiB, and the private memory of its children, the loader's workers."""
    proc = Path("/proc")
    workers = (proc / f"{process}/task/{process}/children").read_text().split()
    return {
        "process_mib": kib(proc / f"{process}/status", "VmHWM") // 1024,
        "workers_mib": sum(kib(proc / worker / "smaps_rollup", "Private_") for worker in workers) // 1024,
    }


def kib(path: Path, key: str) -> int:
    return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))


def enlarge(cifar: Path, folder: Path, count: int) -> None:
    """Write `count` images of the train split, and ten of val, as 256 x 256 JPEG files in class folders."""
    for split, number in (("train", count), ("val", 10)):
        files = sorted((cifar / split).glob("*/*"))
        for path in (files[i * len(files) // number] for i in range(number)):
            place = folder / path.relative_to(cifar).with_suffix(".jpg")
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).save(place, quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as class folders: train/ and val/")
    parser.add_argument("--timm-script", type=Path, help="train.py of a clone of timm, to measure it too")
    arguments = parser.parse_args()
    for path in (arguments.data_dir / "train", arguments.data_dir / "val", arguments.timm_script):
        if path and not path.exists():
            parser.error(f"there is no {path}: give CIFAR-10 as class folders, train/ and val/, and timm's train.py")
    results = {"machine": machine(), "cases": []}
    with tempfile.TemporaryDirectory() as temporary:
        cifar, folder = arguments.data_dir.resolve(), Path(temporary)
        small = Case("CIFAR-10", cifar, "metaformer_pooling_nano", 32, 128, tuple(LOOPS), settle=4, steps=8, turns=9)
        large = Case("224 pixels", folder, "metaformer_pooling_s12", 224, 32, ("ours", "timm"), 2, 4, 5)
        enlarge(cifar, folder, large.images)
        for case in (small, large):
            loops = measure(case)
            if arguments.timm_script:
                loops["script"] = run_script(arguments.timm_script.resolve(), case)
            results["cases"].append(
                {"name": case.name, "model": case.model, "batch_size": case.batch_size, "loops": loops}
            )
    write_json(FILE, results)


if __name__ == "__main__":
    main()
