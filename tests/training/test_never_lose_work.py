"""Runs that are killed, stopped, starved of disk or fed with NaN, and go on to the very same result."""

import os
import random
import resource
import signal
import time

import pytest
import torch
from PIL import Image
from running import Process, assert_same_run, metrics, train

from metamix.utils.tensor_files import load_checkpoint

# All that could be forgotten: dropout, stochastic depth, average, clipping, held-out scores; three epochs of 10 steps.
RECIPE = [
    "--epochs",
    3,
    "--batch-size",
    128,
    "--holdout",
    0.1,
    "--ema",
    "--clip-grad",
    1,
    "--drop-rate",
    0.1,
    "--drop-path",
    0.2,
    "--lr",
    3e-3,
    "--mixup",
    0.2,
]
EVERY_STEP = ["--log-every", 1, "--checkpoint-minutes", 0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Run folders of undisturbed runs, by the way the data are read."""
    done = {}

    def run(memory):
        if memory not in done:
            done[memory] = tmp_path_factory.mktemp("reference") / memory
            train(*RECIPE, "--memory", memory, "--workers", 0, "--output", done[memory])
        return done[memory]

    return run


def wait_for_checkpoints(process, folder, count):
    """Until the process has replaced the checkpoint `count` times."""

    def written():
        path = folder / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.exists() else None

    last, end = written(), time.monotonic() + 120
    while count:
        assert process.running() and time.monotonic() < end, process.text()
        if written() != last:
            count, last = count - 1, written()
        time.sleep(0.0005)


@pytest.mark.parametrize("memory, workers, kills", [("yes", 0, 2), ("no", 0, 1), ("no", 2, 2)])
def test_killed_at_random_moments(memory, workers, kills, reference, tmp_path):
    chance = random.Random(os.getpid())
    print(f"random.Random({os.getpid()})")  # pytest shows it where the test fails
    words = [*RECIPE, *EVERY_STEP, "--memory", memory, "--workers", workers, "--output", tmp_path]
    steps = []
    for _ in range(kills):
        process = Process(*words, log=tmp_path / "said")
        wait_for_checkpoints(process, tmp_path, chance.randint(1, 8))
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        steps.append(load_checkpoint(tmp_path / "checkpoint.pt")["step"])
    assert (
        f"resumed {tmp_path / 'checkpoint.pt'} at step {steps[-1]} of 30"
        in Process(*words, log=tmp_path / "said").output()
    )
    assert_same_run(tmp_path, reference(memory))


def test_another_seed_is_another_run(reference, tmp_path):
    """The control: what the comparison above compares does differ between runs."""
    train(*RECIPE, "--memory", "yes", "--seed", 1, "--output", tmp_path)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, reference("yes"))


def test_sigterm_saves_and_says_how_to_go_on(reference, tmp_path):
    words = [*RECIPE, "--memory", "no", "--workers", 2, "--output", tmp_path]
    process = Process(*words, *EVERY_STEP, log=tmp_path / "said")
    wait_for_checkpoints(process, tmp_path, 4)
    process.kill(signal.SIGTERM)  # as a cluster does: the loader's workers get it too
    text = process.output()
    step = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    assert f"stopped at step {step} of 30" in text and "The same command goes on from there" in text
    Process(*words, log=tmp_path / "said").output()
    assert_same_run(tmp_path, reference("no"))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    """A limit on file sizes stands for the disk: writing fails in the middle of the file, as on a full one."""
    words = ["--epochs", 1, "--batch-size", 256, "--output", tmp_path]
    train(*words)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
        with pytest.raises(
            SystemExit,
            match=r"could not be written .*stopped at step 10, and the last good checkpoint is "
            r".*checkpoint.pt, step 5\. Make room, and give the same command again",
        ):
            train(*words, "--epochs", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp"))
    train(*words, "--epochs", 2)
    assert [row["epoch"] for row in metrics(tmp_path)] == ["1", "2"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """The check comes after the bad step but before it can be saved."""
    words = ["--batch-size", 256, "--output", tmp_path, "--warmup-epochs", 0, "--schedule", "constant", "--epochs", 1]
    train(*words)
    with pytest.raises(
        SystemExit,
        match=r"(loss is (nan|inf) at step \d+|a weight is not finite after step \d+), learning "
        r"rate 1e\+30; the last good checkpoint is .*checkpoint.pt, step 5\. Try a lower --lr",
    ):
        train(*words, "--epochs", 2, "--lr", 1e30, "--log-every", 3)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["step"] == 5 and all(torch.isfinite(weight).all() for weight in saved["model"].values())


def test_a_longer_schedule_goes_on_and_says_so(tmp_path, capsys):
    words = ["--batch-size", 256, "--output", tmp_path, "--warmup-epochs", 0, "--schedule", "constant"]
    train(*words, "--epochs", 1)
    capsys.readouterr()
    train(*words, "--epochs", 3)
    assert "changed on resume: epochs was 1 and is now 3" in capsys.readouterr().out
    train(*words, "--epochs", 3)
    assert "is finished" in capsys.readouterr().out
    straight = tmp_path / "straight"
    train(*words[:2], "--output", straight, *words[4:], "--epochs", 3)
    assert_same_run(tmp_path, straight)  # the rate being constant, the longer schedule is the same run


@pytest.mark.parametrize(
    "change, said",
    [
        (["--lr", 2e-3], "lr was 0.001 and is now 0.002"),
        (["--epochs", 1], "epochs was 2 and is now 1"),
        (["--smoothing", 0.1], "smoothing was 0.0 and is now 0.1"),
    ],
)
def test_a_finished_run_is_not_given_another_recipe(change, said, tmp_path, capsys):
    """Its summary would then say what it was not trained with. Other weights of it may be scored."""
    words = ["--batch-size", 256, "--epochs", 2, "--warmup-epochs", 0, "--ema", "--output", tmp_path]
    train(*words)
    before = (tmp_path / "summary.json").read_text()
    with pytest.raises(SystemExit, match=f"has trained 2 epochs already, and none is left .*: {said}. Take the"):
        train(*words, *change)
    assert (tmp_path / "summary.json").read_text() == before
    train(*words, "--score", "last")
    assert "(last weights)" in capsys.readouterr().out


def test_a_finished_run_without_its_checkpoint_is_not_trained_over(tmp_path, capsys):
    words = ["--batch-size", 256, "--warmup-epochs", 0, "--output", tmp_path]
    train(*words, "--epochs", 1)
    (tmp_path / "checkpoint.pt").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    words_of_it = r"holds a finished run of another recipe \(epochs was 1 and is now 2\), and no checkpoint.pt to go on"
    with pytest.raises(SystemExit, match=words_of_it):
        train(*words, "--epochs", 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    capsys.readouterr()
    train(*words, "--epochs", 1)
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, said",
    [
        (
            ["--model", "metaformer_pooling_nano"],
            "model was 'metaformer_identity_nano' and is now 'metaformer_pooling_nano'",
        ),
        (["--holdout", 0.2], "holdout was 0.0 and is now 0.2"),
        (["--batch-size", 128], "batch_size was 256 and is now 128"),
        (["--seed", 3], "seed was 0 and is now 3"),
        (["--opt-args", "{eps: 0.1}"], r"opt_args was \{\} and is now \{'eps': 0.1\}"),
    ],
)
def test_another_model_or_other_data_are_refused(change, said, tmp_path):
    words = ["--batch-size", 256, "--epochs", 1, "--output", tmp_path]
    train(*words)
    with pytest.raises(
        SystemExit,
        match=f"cannot be continued with another recipe: {said}. Use the old values, or start a new run with --output",
    ):
        train(*words, "--epochs", 2, *change)


def test_another_set_of_the_same_name_is_refused(tmp_path):
    """The options are the same: what lies in the folder is not."""
    for place, shade in (("a", 50), ("b", 90)):
        for split in ("train", "val"):
            for label in ("ant", "bee"):
                path = tmp_path / place / "images" / split / label
                path.mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (16, 16), (shade, 20 * i, 9)).save(path / f"{i}.png")
    words = ["--data", "folder", "--batch-size", 4, "--output", tmp_path / "run", "--warmup-epochs", 0]
    train(*words, "--epochs", 1, "--data-dir", tmp_path / "a" / "images")
    (tmp_path / "a").rename(tmp_path / "moved")
    train(*words, "--epochs", 2, "--data-dir", tmp_path / "moved" / "images")
    other = ["--data-dir", tmp_path / "b" / "images"]
    for epochs in (2, 3):  # the run is finished, and could go on
        with pytest.raises(
            SystemExit, match=r"run.* was made with other data; these differ: mean. Give the data of the run"
        ):
            train(*words, "--epochs", epochs, *other)


def test_resume_from_another_folder(tmp_path, capsys):
    """--resume begins from a file; once the folder has a checkpoint of its own, that one is newer."""
    words = ["--batch-size", 256, "--warmup-epochs", 0]
    train(*words, "--epochs", 1, "--output", tmp_path / "a")
    train(*words, "--epochs", 2, "--output", tmp_path / "b", "--resume", tmp_path / "a")
    assert f"resumed {tmp_path / 'a' / 'checkpoint.pt'} at step 5 of 10" in capsys.readouterr().out
    train(*words, "--epochs", 3, "--output", tmp_path / "b", "--resume", tmp_path / "a")
    assert f"resumed {tmp_path / 'b' / 'checkpoint.pt'} at step 10 of 15" in capsys.readouterr().out


def test_two_runs_in_one_folder_are_refused(tmp_path):
    process = Process("--epochs", 100, "--output", tmp_path, *EVERY_STEP, log=tmp_path / "said")
    wait_for_checkpoints(process, tmp_path, 1)
    try:
        with pytest.raises(SystemExit, match=f"another process is training in {tmp_path}"):
            train("--epochs", 100, "--output", tmp_path)
    finally:
        process.kill()
        process.wait()
