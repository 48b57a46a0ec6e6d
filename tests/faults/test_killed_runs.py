"""Test that runs which are killed or stopped at any moment resume to the same result, bit for bit."""

import json
import os
import random
import signal
import time
from unittest.mock import Mock

import pytest

from metamix.training.engine import Engine
from metamix.training.processes import StopSignal
from metamix.training.run_folder import Run
from metamix.weights.files import load_checkpoint
from tests.helpers.running import Process, assert_same_run, train

# Options with state that a checkpoint could lose, such as dropout's random numbers and the held-out scores.
RECIPE = ["--epochs", 3, "--batch-size", 128, "--holdout", 0.1, "--ema", "--clip-grad", 1, "--lr", 3e-3]
RECIPE += ["--drop-rate", 0.1, "--drop-path", 0.2, "--mixup", 0.2]
EVERY_STEP = ["--log-every", 1, "--checkpoint-minutes", 0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return a function that trains without interruption, once per value of `--memory`, and returns the run folder."""
    done = {}

    def run(memory):
        if memory not in done:
            done[memory] = tmp_path_factory.mktemp("reference") / memory
            train(*RECIPE, "--memory", memory, "--workers", 0, "--output", done[memory])
        return done[memory]

    return run


def wait_for_checkpoints(process, folder, count):
    """Wait until the process has written the checkpoint `count` times."""

    def written():
        path = folder / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.exists() else None

    last, end = written(), time.monotonic() + 120
    while count:
        assert process.running() and time.monotonic() < end, process.text()
        if written() != last:
            count, last = count - 1, written()
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.parametrize("memory, workers, kills", [("yes", 0, 2), ("no", 0, 1), ("no", 2, 2)])
def test_a_run_that_is_killed_at_random_moments_resumes_exactly(memory, workers, kills, reference, tmp_path):
    chance = random.Random(os.getpid())
    print(f"random.Random({os.getpid()})")  # pytest shows it if the test fails
    run = tmp_path / "run"
    words = [*RECIPE, *EVERY_STEP, "--memory", memory, "--workers", workers, "--output", run]
    steps = []
    for _ in range(kills):
        process = Process(*words, log=tmp_path / "log")
        wait_for_checkpoints(process, run, chance.randint(1, 8))
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        steps.append(load_checkpoint(run / "checkpoint.pt")["step"])
    text = Process(*words, log=tmp_path / "log").output()
    assert f"resumed {run / 'checkpoint.pt'} at step {steps[-1]} of 30" in text
    assert_same_run(run, reference(memory))


@pytest.mark.slow
def test_another_seed_gives_another_run(reference, tmp_path):
    """This is the control: `assert_same_run` fails for a run with another seed."""
    train(*RECIPE, "--memory", "yes", "--seed", 1, "--output", tmp_path)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, reference("yes"))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_stops_the_run(number, code, tmp_path, monkeypatch, capsys):
    original = Run.set_state

    def set_state(run, state):
        if state == "running":
            os.kill(os.getpid(), number)
        original(run, state)

    monkeypatch.setattr(Run, "set_state", set_state)
    with pytest.raises(SystemExit) as stopped:
        train(*RECIPE, "--memory", "yes", "--workers", 0, "--output", tmp_path)
    assert stopped.value.code == code and (tmp_path / "state.txt").read_text() == "stopped\n"
    assert "stopped at step 1 of 30; the state is saved in" in capsys.readouterr().out


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_with_an_exit_code_and_no_other_model_starts(number, code, tmp_path):
    """`train.py ... && deploy` must not deploy a stopped run."""
    models = ["--model", "metaformer_identity_tiny,metaformer_pooling_tiny"]
    process = Process(*models, "--epochs", 50, *EVERY_STEP, "--output", tmp_path / "runs", log=tmp_path / "log")
    run = tmp_path / "runs" / "metaformer_identity_tiny"
    wait_for_checkpoints(process, run, 2)
    assert (run / "state.txt").read_text() == "running\n"
    process.kill(number)
    assert process.wait() == code
    assert "not trained yet: metaformer_pooling_tiny; repeat the command" in process.text()
    assert (run / "state.txt").read_text() == "stopped\n" and not (tmp_path / "runs/metaformer_pooling_tiny").exists()


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_the_same_command_resumes(reference, tmp_path):
    run = tmp_path / "run"
    words = [*RECIPE, "--memory", "no", "--workers", 2, "--output", run]
    process = Process(*words, *EVERY_STEP, log=tmp_path / "log")
    wait_for_checkpoints(process, run, 4)
    process.kill(signal.SIGTERM)  # to the whole group, as a cluster does, so the loader's workers get it too
    assert process.wait() == 143
    step = load_checkpoint(run / "checkpoint.pt")["step"]
    assert f"stopped at step {step} of 30" in process.text()
    assert "The same command continues from there" in process.text()
    Process(*words, log=tmp_path / "log").output()
    assert_same_run(run, reference("no"))
    assert (run / "state.txt").read_text() == "finished\n"


def test_sighup_stops_the_run_even_if_it_comes_twice(tmp_path):
    """The kernel and the shell each send a SIGHUP, and the loader's workers get both too."""
    run = tmp_path / "run"
    words = ["--epochs", 100, "--memory", "no", "--workers", 2, "--output", run]
    process = Process(*words, *EVERY_STEP, log=tmp_path / "log")
    wait_for_checkpoints(process, run, 2)
    process.kill(signal.SIGHUP)
    process.kill(signal.SIGHUP)
    assert process.wait(60) == 129
    step = load_checkpoint(run / "checkpoint.pt")["step"]
    assert f"stopped at step {step} of" in process.text() and (run / "state.txt").read_text() == "stopped\n"


def test_a_closed_terminal_stops_the_run(tmp_path):
    """Nothing more can be printed, but the last line of the log says how to continue."""
    run = tmp_path / "run"
    screen, terminal = os.openpty()
    process = Process("--epochs", 100, *EVERY_STEP, "--output", run, log=os.ttyname(terminal))
    while not (run / "checkpoint.pt").exists():
        assert process.running() and os.read(screen, 4096)
    os.close(terminal)
    os.close(screen)
    assert process.wait(60) == 129
    assert (run / "state.txt").read_text() == "stopped\n"
    assert "The same command continues from there" in (run / "log.txt").read_text().splitlines()[-1]


def test_sighup_that_is_ignored_from_the_start_stays_ignored():
    """nohup starts its command with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal() as stop:  # the control
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received and stop.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("state_before", ["scored", "failed"])
def test_pictures_that_were_not_drawn_are_drawn_the_next_time(state_before, tmp_path, monkeypatch, capsys):
    words = ["--batch-size", 256, "--epochs", 1, "--output", tmp_path]
    set_state = Run.set_state

    def die_once_scored(self, state):
        if state != "scored" or state == state_before:
            set_state(self, state)
        if state == "scored":
            raise KeyboardInterrupt  # the summary is written, but the pictures are missing

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "set_state", die_once_scored)
        train(*words)
    before = json.loads((tmp_path / "summary.json").read_text())
    assert (tmp_path / "state.txt").read_text() == f"{state_before}\n"
    assert before["pictures"] == ["curves.png"] and not (tmp_path / "test_confusion.png").exists()
    train(*words)
    after = json.loads((tmp_path / "summary.json").read_text())
    assert "test_confusion.png" in after["pictures"] and (tmp_path / "test_confusion.png").exists()
    same = ("top1", "loss", "steps")
    assert [after[name] for name in same] == [before[name] for name in same]
    capsys.readouterr()
    train(*words)
    assert "is finished" in capsys.readouterr().out


def test_a_run_that_was_killed_before_it_wrote_its_recipe_starts_again(tmp_path, monkeypatch):
    words = ["--batch-size", 512, "--epochs", 1, "--output", tmp_path]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("metamix.training.run_folder.write_text", Mock(side_effect=KeyboardInterrupt))
        train(*words)
    assert not (tmp_path / "recipe.yaml").exists() and not (tmp_path / "state.txt").exists()
    train(*words)
    assert (tmp_path / "state.txt").read_text() == "finished\n"


def test_a_second_ctrl_c_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "fit", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train("--batch-size", 512, "--epochs", 1, "--output", tmp_path)
    assert (tmp_path / "state.txt").read_text() == "failed\n"
    assert (tmp_path / "log.txt").read_text().endswith("error: KeyboardInterrupt\n")


def test_two_runs_in_one_folder_are_refused(tmp_path):
    run = tmp_path / "run"
    process = Process("--epochs", 100, "--output", run, *EVERY_STEP, log=tmp_path / "log")
    wait_for_checkpoints(process, run, 1)
    try:
        with pytest.raises(SystemExit, match=f"another process is writing into {run}"):
            train("--epochs", 100, "--output", run)
    finally:
        process.kill()
        process.wait()
