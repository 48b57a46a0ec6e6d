"""Test runs of several processes in which a rank is killed, gets a signal or fails, or torchrun is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metamix.weights.files import load_checkpoint
from tests.helpers.running import ROOT, TINY, metrics, start_all

EVERY_STEP = ["--log-every", 1, "--checkpoint-minutes", 0]


@pytest.fixture
def torchrun():
    """Return a function that starts train.py under torchrun with two processes. At the end, kill torchrun."""
    started = []

    def start(*words, **pipes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["--max_restarts=1", "--monitor_interval=0.1", str(ROOT / "train.py"), *TINY, *map(str, words)]
        process = subprocess.Popen(
            command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def wait_for(path, running):
    while not path.exists():
        time.sleep(0.01)
        assert running()


def child_of(launcher, rank):
    """Find the process of a rank among the children of torchrun."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with open(f"/proc/{child}/environ", "rb") as file:
            if f"RANK={rank}".encode() in file.read().split(b"\0"):
                return int(child)
    raise AssertionError(f"no child of {launcher} is rank {rank}")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(torchrun, tmp_path):
    """After one rank is killed, torchrun starts all ranks again and they resume."""
    run = tmp_path / "run"
    words = ["--epochs", 10, "--batch-size", 256, "--output", run, *EVERY_STEP]
    process = torchrun(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(run / "checkpoint.pt", lambda: process.poll() is None)
    os.kill(child_of(process.pid, rank=1), signal.SIGKILL)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 0, text
    assert re.search(r"resumed .*checkpoint.pt at step \d+ of 50", text)
    assert len(metrics(run)) == 10


@pytest.mark.slow
def test_ranks_stop_after_a_step_when_torchrun_is_killed(torchrun, tmp_path):
    run = tmp_path / "run"
    with open(tmp_path / "log", "w") as log:
        process = torchrun("--epochs", 1000, "--output", run, *EVERY_STEP, stdout=log, stderr=log)
    wait_for(run / "checkpoint.pt", lambda: process.poll() is None)
    ranks = [child_of(process.pid, rank) for rank in (0, 1)]
    process.kill()
    end = time.monotonic() + 60
    while any(map(alive, ranks)):
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    step = load_checkpoint(run / "checkpoint.pt")["step"]
    assert f"stopped at step {step} of " in (tmp_path / "log").read_text()
    assert (run / "state.txt").read_text() == "stopped\n"


def test_a_signal_to_one_rank_stops_all_ranks_with_exit_code_0(tmp_path):
    """Any other code would make torchrun restart the ranks; state.txt tells a stopped run from a finished one."""
    run = tmp_path / "run"
    ranks = start_all(2, "--epochs", 100, "--batch-size", 150, *EVERY_STEP, "--output", run, logs=tmp_path)
    wait_for(run / "checkpoint.pt", ranks[0].running)
    ranks[1].kill(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [0, 0]
    step = load_checkpoint(run / "checkpoint.pt")["step"]
    assert f"stopped at step {step} of" in ranks[0].text() and not ranks[1].text()
    assert (run / "state.txt").read_text() == "stopped\n"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_lost_a_rank_ends_with_an_error_and_the_state_stopped(lost, tmp_path):
    """Rank 0 writes all files; if rank 0 is killed, another rank writes state.txt."""
    run = tmp_path / "run"
    ranks = start_all(2, "--epochs", 1000, "--batch-size", 150, *EVERY_STEP, "--output", run, logs=tmp_path)
    wait_for(run / "checkpoint.pt", ranks[0].running)
    ranks[lost].kill()
    other = ranks[1 - lost]
    assert other.wait() == 1
    said = r"error: another process of this run ended \(.*\); the same command continues from the last checkpoint\n"
    assert re.search(said, other.text()), other.text()
    assert (run / "state.txt").read_text() == "stopped\n"


def test_an_error_ends_every_rank_with_its_message(tmp_path):
    """This holds even right after a collective operation, when a gloo group cannot be destroyed."""
    words = ["--epochs", 400, "--batch-size", 256, "--lr", 1e6, "--warmup-epochs", 0, "--log-every", 1]
    for number, rank in enumerate(start_all(2, *words, "--output", tmp_path / "run", logs=tmp_path)):
        assert rank.wait() == 1
        problem = rf"\[rank {number}\] error: (the loss is (nan|inf) at step|a weight is not finite)"
        assert re.search(problem, rank.text())
    assert (tmp_path / "run" / "state.txt").read_text() == "failed\n"
