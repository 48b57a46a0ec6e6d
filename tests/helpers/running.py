"""Run train.py in tests, in this process or in new processes, with a model that takes milliseconds per step."""

import csv
import multiprocessing
import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import metamix.cli.train
import metamix_cli
from metamix.training.engine import Engine
from metamix.weights.files import load_checkpoint

torch.set_num_threads(1)  # tests share the machine

ROOT = Path(__file__).resolve().parents[2]
MODEL = "metaformer_identity_tiny"
TINY = ["--model", MODEL, "--model-args", "{depths: [1, 1, 1], dims: [8, 8, 16]}", "--device", "cpu"]
# Batch statistics depend on how many samples a process sees at a time.
WITHOUT_BATCH_NORM = ["--model", "metaformer_identity_s12", "--img-size", 32]
WITHOUT_BATCH_NORM += ["--model-args", "{depths: [1, 1, 1], dims: [8, 8, 16]}"]
MACHINE_COLUMNS = ("seconds", "img_per_s", "memory_gib")


def train(*words):
    """Run `metamix train` with the tiny model in this process."""
    metamix.cli.train.main([*TINY, *map(str, words)])


def metamix_command(*words):
    """Run a subcommand of `metamix` in this process; return its exit code, or raise SystemExit with its message."""
    try:
        metamix_cli.main(list(map(str, words)))
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        return end.code or 0
    return 0


_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.conftest", "tests.helpers.running", "sklearn.datasets"])


def in_a_process(function, *args):
    """Call a function in a new process, forked from a server that has imported torch; return the exit code.

    Return None if the process takes over two minutes.
    """
    process = _forkserver.Process(target=function, args=args)
    process.start()
    process.join(120)
    ended = process.exitcode
    process.kill()
    return ended


class Process:
    """A new process that runs train.py and leads its process group, as if a shell had started it.

    It is forked from a server that has already imported torch and timm, which saves seconds. The server has imported
    `tests.conftest` too, so the process renders no figures.
    """

    def __init__(self, *words, log, env=None):
        self.log = Path(log)
        self.process = _forkserver.Process(target=_main, args=([*TINY, *map(str, words)], str(log), env or {}))
        self.process.start()
        self.pid = self.process.pid

    def text(self):
        """Return what the process has printed so far, without the lines that torch 2.9 adds."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def running(self):
        """Return whether the process is still running."""
        return self.process.is_alive()

    def kill(self, number=signal.SIGKILL):
        """Send a signal to the whole group, including the loader's workers."""
        os.killpg(self.pid, number)

    def wait(self, timeout=300):
        """Wait until the process ends and return its exit code."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self.text()}")
        return self.process.exitcode

    def output(self):
        """Wait until the process ends, assert that it succeeded, and return what it printed."""
        assert self.wait() == 0, self.text()
        return self.text()


@contextmanager
def stopped_at(step):
    """Send this process SIGTERM after the given step of training, and expect it to exit."""
    train_step = Engine.train_step

    def train_and_stop(engine, batch):
        train_step(engine, batch)
        if engine.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(Engine, "train_step", train_and_stop), pytest.raises(SystemExit):
        yield


def start_all(world_size, *words, logs):
    """Start the processes of a run as torchrun would; rank R prints to the file rankR in the folder `logs`."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Process(*words, log=logs / f"rank{rank}", env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]


def free_port():
    """Find a free TCP port on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _main(words, log, env):
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest may run under nohup
    # If the log is a terminal, it becomes the controlling terminal.
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as if train.py were the program
    torch.set_num_threads(1)
    metamix.cli.train.main(words)


def metrics(folder):
    """Read the rows of metrics.csv without the columns that depend on the machine."""
    with open(folder / "metrics.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in MACHINE_COLUMNS} for row in csv.DictReader(file)
        ]


def assert_same_run(folder, other):
    """Assert that two runs have the same metrics and training state to the bit, except for time, speed and memory."""
    assert metrics(folder) == metrics(other)
    a, b = load_checkpoint(folder / "checkpoint.pt"), load_checkpoint(other / "checkpoint.pt")
    for key in ("step", "sums", "best", "model", "ema", "optimizer", "scaler"):
        assert_same(a[key], b[key], key)
    assert_same(
        *([{k: v for k, v in row.items() if k not in MACHINE_COLUMNS} for row in x["history"]] for x in (a, b)),
        "history",
    )


def assert_same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
