"""Test that several processes over gloo train the same model as one process, and score each sample once."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import metamix.cli.evaluate
from metamix.weights.files import load_checkpoint
from tests.helpers.running import ROOT, TINY, WITHOUT_BATCH_NORM, free_port, metrics, start_all, train

# An epoch is one step, so metrics.csv has the loss of each step.
TWENTY_STEPS = ["--epochs", 20, "--batch-size", 400, "--lr", 3e-3, "--warmup-epochs", 2, "--amp", "none"]
TWENTY_STEPS += ["--holdout", 0.7, "--eval-every", 20, "--mixup", 0.5, "--ema", "--clip-grad", 1]
TWENTY_STEPS += WITHOUT_BATCH_NORM


def losses(folder):
    return [float(row["train_loss"]) for row in metrics(folder)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(*TWENTY_STEPS, "--output", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("world_size, micro_batch", [(2, 0), (2, 77), (1, 150)])
def test_the_result_does_not_depend_on_processes_or_micro_batches(world_size, micro_batch, alone, tmp_path):
    run = tmp_path / "run"
    words = [*TWENTY_STEPS, "--micro-batch", micro_batch, "--output", run]
    if world_size == 1:
        train(*words)
    else:
        for process in start_all(world_size, *words, logs=tmp_path):
            process.output()
    assert len(losses(run)) == 20
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    one, several = (json.loads((folder / "summary.json").read_text()) for folder in (alone, run))
    assert several["samples"] == one["samples"] and several["top1"] == pytest.approx(one["top1"], abs=0.6)


@pytest.mark.slow
def test_another_seed_gives_other_losses(alone, tmp_path):
    """This is the control: other runs differ by more than 1e-5."""
    train(*TWENTY_STEPS, "--seed", 1, "--output", tmp_path)
    assert max(abs(a - b) for a, b in zip(losses(tmp_path), losses(alone))) > 1e-3


@pytest.mark.slow
def test_a_stopped_run_continues_on_another_number_of_processes(tmp_path):
    run = tmp_path / "run"
    words = ["--epochs", 3, "--batch-size", 150, "--amp", "none", "--holdout", 0.0995, "--log-every", 2]
    words += ["--output", run]
    ranks = start_all(3, *words, logs=tmp_path)
    while not (run / "checkpoint.pt").exists():
        time.sleep(0.01)
        assert ranks[0].running(), ranks[0].text()
    ranks[1].kill(signal.SIGTERM)  # one rank gets the signal; all stop at the next synchronization
    for rank in ranks:
        rank.output()
    step = load_checkpoint(run / "checkpoint.pt")["step"]
    assert 8 < step < 24 and f"stopped at step {step} of 24" in ranks[0].text()
    assert not ranks[2].text()
    for rank in start_all(2, *words, logs=tmp_path):
        rank.output()
    assert "changed on resume: processes was 3 and is now 2\n" in (run / "log.txt").read_text()
    words = [*TINY, "--amp", "none", "--checkpoint", run, "--batch-size", 360, "--output", tmp_path / "eval"]
    metamix.cli.evaluate.main([str(word) for word in words])
    several, one = (json.loads((tmp_path / f).read_text()) for f in ("run/summary.json", "eval/result.json"))
    assert several["steps"] == 24 and several["top1"] == one["top1"]


def test_one_process_of_a_machine_opens_the_data_before_the_others(tmp_path):
    """This way, only one process downloads the data, or reports why the download failed."""
    words = ["--data", "folder", "--data-dir", tmp_path / "nowhere", "--output", tmp_path / "run"]
    first, second = start_all(2, *words, logs=tmp_path)
    assert first.wait() == second.wait() == 1
    assert "nowhere" in first.text() and "nowhere" not in second.text()
    assert "[rank 1] stopped: the first process of a machine failed; its message says why" in second.text()


def test_two_processes_score_each_sample_once_and_warn_about_batch_norms(tmp_path):
    """Two processes with batches of 75 samples must score the 360 test samples as one process does."""
    model = ["--model", "test_resnet", "--model-args", "{}", "--amp", "none"]
    for rank in start_all(2, *model, "--epochs", 1, "--batch-size", 150, "--output", tmp_path / "run", logs=tmp_path):
        rank.output()
    words = [*TINY, *model, "--checkpoint", tmp_path / "run", "--batch-size", 360, "--output", tmp_path / "eval"]
    metamix.cli.evaluate.main([str(word) for word in words])
    several, one = (json.loads((tmp_path / f).read_text()) for f in ("run/summary.json", "eval/result.json"))
    assert (several["top1"], several["top5"]) == (one["top1"], one["top5"])
    assert several["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert re.search(
        r"the model trains \d+ batch norms. Each sees 75 samples at a time instead of the whole batch of 150",
        (tmp_path / "run" / "log.txt").read_text(),
    )


@pytest.mark.slow
def test_the_command_in_the_docs_trains_on_two_nodes(alone, tmp_path):
    """Both nodes are this machine, with one process each."""
    command = re.search(
        r"    (\w+)=(\w) torchrun (--nnodes=2[^$]*?) train\.py", (ROOT / "docs" / "train.md").read_text()
    )
    options = command[3].replace("HOST:29500", f"127.0.0.1:{free_port()}").replace("\\\n", "").split()
    options = ["--nproc_per_node=1" if word.startswith("--nproc_per_node") else word for word in options]
    launch = [sys.executable, "-m", "torch.distributed.run", *options, "--local_addr=127.0.0.1"]
    nodes = [
        subprocess.Popen(
            [*launch, str(ROOT / "train.py"), *TINY, *map(str, TWENTY_STEPS), "--output", str(tmp_path)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", command[1]: command[2]},
        )
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "machine  2 x cpu, 200 samples each" in (tmp_path / "log.txt").read_text()
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
