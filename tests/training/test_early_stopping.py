"""Test early stopping: when a run ends, which weights it saves as its result, and how it is resumed."""

import copy
import json
import math
import os
import signal

import pytest
import torch
from torch import nn

from metamix.training.early_stopping import is_exhausted, updated
from metamix.training.engine import Engine
from metamix.weights.files import load_checkpoint, load_weights
from tests.helpers.running import assert_same_run, metrics, stopped_at, train

WORDS = ["--img-size", 16, "--batch-size", 256, "--warmup-epochs", 0, "--schedule", "constant", "--holdout", 0.2]
STEPS = 4  # per epoch


@pytest.fixture
def scores(monkeypatch):
    """Return a list to fill with held-out top-1 scores: entry N - 1 replaces the score of epoch N.

    The weights that do not choose the best epoch get the negative scores.
    """
    values = []
    evaluate = Engine.evaluate

    def scripted(engine, split, weights="last"):
        result, states = evaluate(engine, split, weights)
        sign = 1 if weights == engine.options.score else -1
        return ({"top1": sign * values[len(engine.history)]} if split == "holdout" else result), states

    monkeypatch.setattr(Engine, "evaluate", scripted)
    return values


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("average", [[], ["--ema", "--ema-decay", 0.5]], ids=["last", "ema"])
def test_the_result_has_the_weights_of_the_best_epoch(average, scores, tmp_path, capsys):
    scores += [10.0, 30.0, 20.0, 30.0, 99.0]  # an equal score is not better
    words = [*WORDS, *average]
    train(*words, "--epochs", 5, "--early-stopping", 2, "--output", tmp_path / "early")
    said = capsys.readouterr().out
    assert "stopped early, after epoch 4 of 5: epoch 2 has the best held-out top1, 30, and its weights are" in said
    which = "ema" if average else "last"
    assert f"({which} weights of epoch 2); 4 epochs in" in said
    summary = json.loads((tmp_path / "early/summary.json").read_text())
    assert (summary["best_epoch"], summary["epochs"], summary["steps"]) == (2, 4, 4 * STEPS)
    train(*words, "--epochs", 2, "--output", tmp_path / "two")
    tensors = load_weights(tmp_path / "early/model.safetensors")[0]
    assert same(tensors, load_weights(tmp_path / "two/model.safetensors")[0])
    assert summary["top1"] == json.loads((tmp_path / "two/summary.json").read_text())["top1"]
    train(*words, "--epochs", 4, "--output", tmp_path / "four")
    assert not same(tensors, load_weights(tmp_path / "four/model.safetensors")[0])
    train(*words, "--epochs", 5, "--early-stopping", 2, "--output", tmp_path / "early")
    assert "is finished" in capsys.readouterr().out
    four, early = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("four", "early"))
    assert same(four["model"], early["model"])  # a longer run would resume from the last epoch, not from the best


def test_a_run_that_does_not_stop_early_also_keeps_the_best_epoch(scores, tmp_path, capsys, monkeypatch):
    scores += [10.0, 30.0, 20.0]
    scored, averages = Engine.evaluate, []

    def record(engine, split, weights="last"):
        if (split, weights) == ("holdout", "ema"):
            averages.append(copy.deepcopy(engine.stepper.weights("ema").state_dict()))
        return scored(engine, split, weights)

    monkeypatch.setattr(Engine, "evaluate", record)
    train(*WORDS, "--ema", "--epochs", 3, "--early-stopping", 2, "--output", tmp_path)
    said = capsys.readouterr().out
    assert "stopped early" not in said and "epoch 2 has the best held-out top1" in said
    assert same(load_weights(tmp_path / "model.safetensors")[0], averages[1])


@pytest.mark.slow
@pytest.mark.parametrize("step", [2 * STEPS, 3 * STEPS + 1, 4 * STEPS])
def test_a_resumed_run_equals_an_uninterrupted_one(step, scores, tmp_path):
    scores += [10.0, 30.0, 20.0, 25.0, 99.0]
    words = [*WORDS, "--epochs", 5, "--early-stopping", 2]
    train(*words, "--output", tmp_path / "straight")
    with stopped_at(step):
        train(*words, "--output", tmp_path / "resumed")
    train(*words, "--output", tmp_path / "resumed")
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    a, b = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("resumed", "straight"))
    assert same(a, b)


def test_a_run_whose_scores_are_all_nan_stops_early_with_the_last_weights(scores, tmp_path, capsys):
    scores += [math.nan] * 3
    train(*WORDS, "--epochs", 3, "--early-stopping", 1, "--output", tmp_path / "early")
    assert "stopped early, after epoch 2 of 3: the held-out top1 is NaN in all scored epochs" in capsys.readouterr().out
    assert "best_epoch" not in json.loads((tmp_path / "early/summary.json").read_text())
    train(*WORDS, "--epochs", 2, "--output", tmp_path / "two")
    a, b = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("early", "two"))
    assert same(a, b)


def test_a_stop_during_the_final_scoring_keeps_the_checkpoint_of_the_last_epoch(scores, tmp_path, monkeypatch):
    scores += [30.0, 10.0]
    words = [*WORDS, "--epochs", 2, "--early-stopping", 1]
    train(*words, "--output", tmp_path / "straight")
    scored = Engine.evaluate

    def interrupted(engine, split, weights="last"):
        if split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(engine, split, weights)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Engine, "evaluate", interrupted)
        train(*words, "--output", tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    train(*words, "--output", tmp_path / "stopped")
    a, b = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("stopped", "straight"))
    assert same(a, b)


def test_a_stop_between_the_scores_of_an_epoch_does_not_end_the_run(scores, tmp_path, monkeypatch):
    """An epoch scores the last weights, then their average. A score may end the run only after both are computed."""
    scores += [30.0, 10.0]
    words = [*WORDS, "--epochs", 3, "--early-stopping", 1, "--ema", "--score", "last"]
    train(*words, "--output", tmp_path / "straight")
    scored = Engine.evaluate

    def interrupted(engine, split, weights="last"):
        if weights == "ema" and len(engine.history) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(engine, split, weights)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Engine, "evaluate", interrupted)
        train(*words, "--output", tmp_path / "stopped")
    train(*words, "--output", tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def test_early_stopping_cannot_be_added_to_a_run(scores, tmp_path):
    """The weights of the first epochs were not kept, so the best of them could not be the result."""
    scores += [30.0, 10.0]
    train(*WORDS, "--epochs", 1, "--output", tmp_path)
    with pytest.raises(SystemExit, match="has 1 scored epoch without early stopping, so .*: leave out --early"):
        train(*WORDS, "--epochs", 2, "--early-stopping", 2, "--output", tmp_path)


def test_a_run_resumes_with_more_patience_but_not_with_other_changes(scores, tmp_path, capsys):
    scores += [30.0, 10.0, 20.0, 40.0]
    words = [*WORDS, "--epochs", 4, "--ema", "--output", tmp_path]
    train(*words, "--early-stopping", 2)
    assert len(metrics(tmp_path)) == 3
    with pytest.raises(SystemExit, match="0.001 and is now 0.002. Use the old values, give a larger --early-stop"):
        train(*words, "--early-stopping", 2, "--lr", 2e-3)
    with pytest.raises(SystemExit, match="was chosen with other weights: score was 'ema' and is now 'l"):
        train(*words, "--early-stopping", 2, "--score", "last")
    train(*words, "--early-stopping", 3)
    assert "epoch 4 has the best held-out top1, 40" in capsys.readouterr().out


def test_a_run_without_a_held_out_split_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="early_stopping is 3, but no split is held out .*: add --holdout 0.1"):
        train("--early-stopping", 3, "--output", tmp_path)


@pytest.mark.parametrize(
    "values, lower_is_better, best", [([2, 3, 1], False, 2), ([2, 3, 1], True, 3), ([math.nan, 1, math.nan], False, 2)]
)
def test_the_epoch_with_the_best_score_is_kept(values, lower_is_better, best):
    kept = {}
    for epoch, value in enumerate(values, start=1):
        kept = updated(kept, epoch, {"score": float(value), "loss": 0.0}, nn.Linear(1, 1), lower_is_better)
    assert (kept["epoch"], kept["scored"]) == (best, 3)


def test_epochs_without_a_score_do_not_end_a_run():
    """With --eval-every 5, epochs without a score do not count as worse than the best."""
    best = updated({}, 5, {"score": 1.0}, nn.Linear(1, 1), lower_is_better=False)
    assert not is_exhausted(best, 3)
    assert is_exhausted(updated(best, 10, {"score": 0.5}, nn.Linear(1, 1), lower_is_better=False), 3)
    assert not is_exhausted(best, 0)
