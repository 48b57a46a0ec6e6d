"""Several processes over gloo: the same result as one, every sample scored once, and restarts after a loss."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from running import ROOT, TINY, Process, metrics, train

import metamix.cli.evaluate
from metamix.utils.tensor_files import load_checkpoint

# An epoch is one step, so metrics.csv has the loss of each of the 20.
TWENTY_STEPS = [
    "--epochs",
    20,
    "--batch-size",
    400,
    "--lr",
    3e-3,
    "--warmup-epochs",
    2,
    "--amp",
    "none",
    "--holdout",
    0.7,
    "--eval-every",
    20,
    "--mixup",
    0.5,
    "--ema",
    "--clip-grad",
    1,
]


def start_all(world, *words, log):
    """The processes of a run, as torchrun would start them."""
    port = free_port()
    return [
        Process(
            *words,
            log=log / f"rank{rank}",
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(world)
    ]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def losses(folder):
    return [float(row["train_loss"]) for row in metrics(folder)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(*TWENTY_STEPS, "--output", folder)
    return folder


@pytest.mark.parametrize("world, micro_batch", [(2, 0), (2, 77), (1, 150)])
def test_the_result_does_not_depend_on_processes_or_micro_batches(world, micro_batch, alone, tmp_path):
    words = [*TWENTY_STEPS, "--micro-batch", micro_batch, "--output", tmp_path]
    if world == 1:
        train(*words)
    else:
        for process in start_all(world, *words, log=tmp_path):
            process.output()
    assert len(losses(tmp_path)) == 20
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    one, several = (json.loads((folder / "summary.json").read_text()) for folder in (alone, tmp_path))
    assert several["samples"] == one["samples"] and several["top1"] == pytest.approx(one["top1"], abs=0.6)


def test_another_batch_gives_other_losses(alone, tmp_path):
    """The control: losses within 1e-5 are not a matter of course."""
    train(*TWENTY_STEPS, "--seed", 1, "--output", tmp_path)
    assert max(abs(a - b) for a, b in zip(losses(tmp_path), losses(alone))) > 1e-3


def test_every_sample_is_scored_once_and_a_signal_stops_all(tmp_path):
    """360 test samples over 2 processes in batches of 65, scored like those of one process."""
    words = [
        "--epochs",
        2,
        "--batch-size",
        150,
        "--amp",
        "none",
        "--holdout",
        0.0995,
        "--output",
        tmp_path,
        "--log-every",
        2,
    ]
    ranks = start_all(3, *words, log=tmp_path)
    while not (tmp_path / "checkpoint.pt").exists():
        time.sleep(0.01)
        assert ranks[0].running(), ranks[0].text()
    ranks[1].kill(signal.SIGTERM)  # one rank hears it; they agree at their next meeting
    for rank in ranks:
        rank.output()
    step = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    assert 8 < step < 16 and f"stopped at step {step} of 16" in ranks[0].text()
    assert not ranks[2].text()
    for rank in start_all(2, *words, log=tmp_path):  # on two processes it goes on as well
        rank.output()
    summary = json.loads((tmp_path / "summary.json").read_text())
    metamix.cli.evaluate.main(
        [
            *TINY,
            "--checkpoint",
            str(tmp_path),
            "--output",
            str(tmp_path / "eval"),
            "--batch-size",
            "360",
            "--amp",
            "none",
        ]
    )
    scored = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert summary["steps"] == 16 and summary["top1"] == scored["top1"] and summary["top5"] == scored["top5"]
    assert summary["loss"] == pytest.approx(scored["loss"], abs=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    for rank in start_all(2, "--batch-size", 33, "--output", tmp_path, log=tmp_path):
        assert rank.wait() == 1
        assert re.search(
            r"\[rank \d\] error: batch_size is 33, which 2 processes cannot share equally; take a multiple of 2",
            rank.text(),
        )


def test_one_process_of_a_machine_opens_the_data_before_the_others(tmp_path):
    """So that one alone downloads; and where it cannot, one alone says why."""
    words = ["--data", "folder", "--data-dir", tmp_path / "nowhere", "--output", tmp_path / "run"]
    first, second = start_all(2, *words, log=tmp_path)
    assert first.wait() == second.wait() == 1
    assert "nowhere" in first.text() and "nowhere" not in second.text()
    assert "[rank 1] stopped: the first process of a machine failed at this; its message says why" in second.text()


def test_batch_norm_is_warned_about(tmp_path):
    words = ["--model", "test_resnet", "--model-args", "{}", "--epochs", 1, "--batch-size", 512, "--output", tmp_path]
    for rank in start_all(2, *words, log=tmp_path):
        rank.output()
    assert re.search(
        r"the model has \d+ batch norms. Each sees 256 samples at a time instead of the whole batch of 512",
        (tmp_path / "log.txt").read_text(),
    )


def test_an_error_ends_every_rank_with_its_message(tmp_path):
    """Right after a collective, when a group of gloo's could not be taken down."""
    words = [
        "--epochs",
        400,
        "--batch-size",
        256,
        "--lr",
        1e30,
        "--warmup-epochs",
        0,
        "--log-every",
        1,
        "--output",
        tmp_path,
    ]
    for number, rank in enumerate(start_all(2, *words, log=tmp_path)):
        assert rank.wait() == 1
        assert re.search(
            rf"\[rank {number}\] error: (the loss is (nan|inf) at step|a weight is not finite)", rank.text()
        )


def test_torchrun_restarts_from_the_last_checkpoint(tmp_path):
    """One rank is killed; torchrun starts all again, and they go on by themselves."""
    words = ["--epochs", 10, "--batch-size", 256, "--output", tmp_path, "--log-every", 1, "--checkpoint-minutes", 0]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--max_restarts=1",
            "--monitor_interval=0.1",
            str(ROOT / "train.py"),
            *TINY,
            *map(str, words),
        ],
        text=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        while not (tmp_path / "checkpoint.pt").exists():
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()[0]
        os.kill(child_of(process.pid, rank=1), signal.SIGKILL)
        text = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0, text
    assert re.search(r"resumed .*checkpoint.pt at step \d+ of 50", text)
    assert len(metrics(tmp_path)) == 10


def test_two_nodes_share_a_run_by_the_command_of_the_readme(alone, tmp_path):
    """Both nodes are this machine, and each has one process."""
    command = re.search(r"    (\w+)=(\w) torchrun (--nnodes=2[^$]*?) train\.py", (ROOT / "README.md").read_text())
    options = command[3].replace("HOST:29500", f"127.0.0.1:{free_port()}").replace("\\\n", "").split()
    options = ["--nproc_per_node=1" if word.startswith("--nproc_per_node") else word for word in options]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, "--local_addr=127.0.0.1"]
            + [str(ROOT / "train.py"), *TINY, *map(str, TWENTY_STEPS), "--output", str(tmp_path)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", command[1]: command[2]},
        )
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "machine  2 x cpu, 200 samples each" in (tmp_path / "log.txt").read_text()
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)


def child_of(launcher, rank):
    """The process of a rank, among the children of torchrun."""
    with open(f"/proc/{launcher}/task/{launcher}/children") as file:
        children = file.read().split()
    for child in children:
        with open(f"/proc/{child}/environ", "rb") as file:
            if f"RANK={rank}".encode() in file.read().split(b"\0"):
                return int(child)
    raise AssertionError(f"no child of {launcher} is rank {rank}")
