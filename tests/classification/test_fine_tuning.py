"""Test image size, normalisation, batch size and micro-batch in fine-tuning: defaults, options and resumed runs."""

import json
import re

import pytest
import yaml

import metamix.classification.data
import metamix.training.engine
from metamix.weights.files import load_checkpoint
from tests.helpers.classifiers import small_task
from tests.helpers.running import assert_same_run, train

NANO = {"model": "metaformer_pooling_nano.cifar10", "model_args": {}}
WORDS = ["--amp", "none", "--warmup-epochs", 0, "--workers", 0, "--data", "folder"]


@pytest.fixture
def photos(folder, image):
    """Make a folder of three classes with 33 training images of two sizes."""
    root = folder(train=10, size=(40, 60))
    for label in "cat", "dog", "eel":
        image((70, 50)).save(root / "train" / label / "other.png")
    return root


def test_image_size_and_statistics_are_taken_from_the_weights(photos):
    task = small_task(**NANO, pretrained=True, data="folder", data_dir=str(photos))
    model = task.model.build()
    assert task.data.size == 32 and task.data.mean == tuple(model.pretrained_cfg["mean"]) != (0.485, 0.456, 0.406)
    assert next(iter(task.data.train_loader(8, 0, 1, 0).epoch(0)))["image"].shape == (8, 3, 32, 32)
    assert next(iter(task.data.eval_loaders(6, 0, 1)["test"]))["image"].shape == (6, 3, 32, 32)
    assert task.notes[-1].startswith("taken from the initial weights: images of 32 pixels (--img-size), mean")
    about = task.model.describe(model)
    assert about["img_size"] == 32 and tuple(about["mean"]) == task.data.mean
    assert small_task(data="folder", data_dir=str(photos)).data.size == 224  # the default for images of several sizes


def test_flags_win_over_the_weights(photos):
    options = dict(img_size=48, mean=(0.5,) * 3, std=(0.25,) * 3, data="folder", data_dir=str(photos))
    task = small_task(**NANO, pretrained=True, **options)
    assert (task.data.size, task.data.mean, task.data.as_weights) == (48, (0.5,) * 3, "")
    with pytest.raises(ValueError, match="mean is given, but std is not: give both or neither"):
        small_task(**NANO, pretrained=True, **options | {"std": None})


def test_statistics_for_grey_images_are_means_over_the_channels(weights):
    path, _ = weights(in_chans=3, mean=[0.3, 0.4, 0.5], std=[0.2, 0.2, 0.2], img_size=28)
    digits = small_task(checkpoint=path).data
    assert digits.size == 28 and digits.mean == pytest.approx((0.4,)) and digits.std == pytest.approx((0.2,))
    # Weights for oblong images do not set the size, so it is the size of the data set.
    assert small_task(checkpoint=weights(img_size=[24, 40])[0]).data.size == 32


def test_a_run_of_an_older_version_keeps_its_image_size_and_batch(weights, tmp_path, monkeypatch, capsys):
    """Without options, older versions took image size and statistics from the data set, and 128 as the batch size."""
    words = ["--checkpoint", weights(img_size=24, mean=[0.5], std=[0.5])[0], "--amp", "none", "--warmup-epochs", 0]
    constant = [*words, "--schedule", "constant"]
    with monkeypatch.context() as older:
        older.setattr(metamix.classification.data, "describe_initial_weights", lambda options: None)
        train(*constant, "--batch-size", 128, "--epochs", 2, "--output", tmp_path / "straight")
        train(*constant, "--batch-size", 128, "--epochs", 1, "--output", tmp_path / "run")
    train(*constant, "--epochs", 1, "--output", tmp_path / "run")
    assert "is finished" in capsys.readouterr().out
    train(*constant, "--epochs", 2, "--output", tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["img_size"] == 32


def test_a_run_continues_without_the_file_that_it_started_from(weights, tmp_path):
    path, _ = weights(img_size=24, mean=[0.5], std=[0.5])
    words = ["--checkpoint", path, "--batch-size", 256, "--warmup-epochs", 0, "--output", tmp_path / "run"]
    train(*words, "--epochs", 1)
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    train(*words, "--epochs", 2)
    (tmp_path / "w.safetensors").unlink()
    train(*words, "--epochs", 3)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["epochs"], summary["img_size"], summary["mean"]) == (3, 24, [0.5])


def test_the_default_batch_is_small_for_few_images(photos, tmp_path, capsys):
    words = [*WORDS, "--data-dir", photos, "--img-size", 32]
    train(*words, "--epochs", 1, "--output", tmp_path / "run")
    text = capsys.readouterr().out
    assert "note: a batch has 8 samples, since there are only 33 in train; set another size with --batch-size" in text
    assert "1 epoch of 4 steps of 8 samples" in text
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["batch_size"] == 8
    train(*words, "--epochs", 1, "--output", tmp_path / "run")
    assert "is finished" in capsys.readouterr().out
    train(*words, "--epochs", 1, "--batch-size", 32, "--output", tmp_path / "other")
    text = capsys.readouterr().out
    assert "1 step of 32 samples" in text and "since there are only" not in text


def test_the_same_command_continues_with_the_batch_of_the_run(photos, tmp_path, capsys):
    words = [*WORDS, "--data-dir", photos, "--img-size", 32, "--output", tmp_path / "run"]
    train(*words, "--epochs", 1, "--batch-size", 16)
    train(*words, "--epochs", 2)
    assert "2 epochs of 2 steps of 16 samples" in capsys.readouterr().out


def set_free_memory(monkeypatch, gib):
    monkeypatch.setattr(metamix.training.engine, "free_memory", lambda device: gib * 2**30)


DIGITS = ["--model", "metaformer_pooling_nano", "--model-args", "{}", "--amp", "none", "--epochs", 1]


def test_a_step_that_does_not_fit_in_memory_is_split(monkeypatch, capsys):
    set_free_memory(monkeypatch, 0.06)
    train(*DIGITS, "--batch-size", 32, "--dry-run")
    text = capsys.readouterr().out
    assert "note: a step with 32 samples at a time needs about 0.16 GiB of memory" in text
    assert "but 0.06 GiB are free, so the model trains on 8 samples at a time (--micro-batch)" in text
    assert "Each sees 8 samples at a time instead of the whole batch of 32" in text
    set_free_memory(monkeypatch, 0.04)
    train(*DIGITS, "--batch-size", 32, "--dry-run", "--grad-checkpointing")
    assert float(re.search("needs about ([0-9.]+) GiB", capsys.readouterr().out)[1]) < 0.12


def test_a_split_step_is_kept_on_resume(tmp_path, monkeypatch, capsys):
    words = ["--batch-size", 256, "--warmup-epochs", 0, "--output", tmp_path]
    set_free_memory(monkeypatch, 0.006)
    train(*words, "--epochs", 1)
    micro = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["micro_batch"]
    assert 0 < micro < 256
    set_free_memory(monkeypatch, 8)
    train(*words, "--epochs", 2)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["recipe"]["micro_batch"] == micro
    assert f"in parts of {micro}" in capsys.readouterr().out


def test_a_micro_batch_that_is_given_is_kept_with_a_warning(monkeypatch, capsys):
    set_free_memory(monkeypatch, 0.006)
    train("--epochs", 1, "--batch-size", 256, "--micro-batch", 256, "--dry-run")
    text = capsys.readouterr().out
    assert "GiB are free; if the run is killed, lower --micro-batch or --batch-size" in text


def test_a_sample_that_does_not_fit_in_memory_is_refused(monkeypatch):
    set_free_memory(monkeypatch, 0.001)
    with pytest.raises(SystemExit, match="too little for a single sample: give a smaller model or smaller images"):
        train(*DIGITS, "--dry-run")


def test_no_note_if_memory_is_enough(monkeypatch, capsys):
    set_free_memory(monkeypatch, 8)
    train("--epochs", 1, "--batch-size", 256, "--dry-run")
    assert "GiB are free" not in capsys.readouterr().out
