"""Test continuing runs with the same command, a longer schedule, another recipe or another run's checkpoint."""

import pytest
import torch

from metamix.weights.files import load_weights
from tests.helpers.running import assert_same_run, train


def test_a_longer_schedule_continues_the_run_and_says_so(tmp_path, capsys):
    words = ["--batch-size", 256, "--output", tmp_path, "--warmup-epochs", 0, "--schedule", "constant"]
    train(*words, "--epochs", 1)
    capsys.readouterr()
    train(*words, "--epochs", 2)
    assert "changed on resume: epochs was 1 and is now 2" in capsys.readouterr().out
    train(*words, "--epochs", 2)
    assert "is finished" in capsys.readouterr().out
    straight = tmp_path / "straight"
    train(*words[:2], "--output", straight, *words[4:], "--epochs", 2)
    assert_same_run(tmp_path, straight)  # at a constant rate, a longer schedule changes no step


def test_another_recipe_is_refused_for_a_finished_run(tmp_path, capsys):
    """The summary would name a recipe that was not used. Only `score` and options such as `--workers` may change."""
    words = ["--batch-size", 256, "--epochs", 2, "--warmup-epochs", 0, "--ema", "--output", tmp_path]
    train(*words)
    before = (tmp_path / "summary.json").read_text()
    for change, said in (
        (["--lr", 2e-3], "lr was 0.001 and is now 0.002"),
        (["--epochs", 1], "epochs was 2 and is now 1"),
        (["--smoothing", 0.1], "smoothing was 0.0 and is now 0.1"),
    ):
        with pytest.raises(SystemExit, match=f"after 2 epochs, so no epoch would use the new recipe: {said}. Use"):
            train(*words, *change)
        assert (tmp_path / "summary.json").read_text() == before
    train(*words, "--score", "last")
    assert "(last weights)" in capsys.readouterr().out


def test_missing_weights_of_a_finished_run_are_written_again(tmp_path):
    words = ["--batch-size", 256, "--epochs", 1, "--output", tmp_path]
    train(*words)
    weights = tmp_path / "model.safetensors"
    before = load_weights(weights)[0]
    weights.unlink()
    train(*words)
    assert all(torch.equal(before[name], tensor) for name, tensor in load_weights(weights)[0].items())


def test_a_finished_run_without_its_checkpoint_is_not_replaced(tmp_path, capsys):
    words = ["--batch-size", 256, "--warmup-epochs", 0, "--output", tmp_path]
    train(*words, "--epochs", 1)
    (tmp_path / "checkpoint.pt").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=r"finished run of another recipe \(epochs was .*\), and no checkpoint.pt to"):
        train(*words, "--epochs", 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    capsys.readouterr()
    train(*words, "--epochs", 1)
    assert "is finished" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run_of_one_epoch(tmp_path_factory):
    words = ["--batch-size", 256, "--epochs", 1, "--output", tmp_path_factory.mktemp("run")]
    train(*words)
    return words


@pytest.mark.parametrize(
    "change, said",
    [
        (["--model", "metaformer_pooling_nano"], "model was .* and is now 'metaformer_pooling_nano'"),
        (["--batch-size", 128], "batch_size was 256 and is now 128"),
        (["--opt-args", "{eps: 0.1}"], r"opt_args was \{\} and is now \{'eps': 0.1\}"),
    ],
)
def test_another_model_batch_size_or_optimizer_is_refused(change, said, run_of_one_epoch):
    with pytest.raises(
        SystemExit, match=f"cannot be continued with another recipe: {said}. Use .*; metamix eval scores"
    ):
        train(*run_of_one_epoch, "--epochs", 2, *change)


def test_resume_reads_another_folder_until_the_run_has_a_checkpoint(tmp_path, capsys):
    words = ["--batch-size", 256, "--warmup-epochs", 0]
    train(*words, "--epochs", 1, "--output", tmp_path / "a")
    train(*words, "--epochs", 2, "--output", tmp_path / "b", "--resume", tmp_path / "a")
    assert f"resumed {tmp_path / 'a' / 'checkpoint.pt'} at step 5 of 10" in capsys.readouterr().out
    train(*words, "--epochs", 3, "--output", tmp_path / "b", "--resume", tmp_path / "a")
    assert f"resumed {tmp_path / 'b' / 'checkpoint.pt'} at step 10 of 15" in capsys.readouterr().out
