"""Test training, resuming, scoring and predicting from the command line, with a tiny model."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import metamix.cli.evaluate
import metamix.cli.train
import metamix.tasks.predict
import metamix_cli
from metamix.segmentation.load import load_segmenter
from metamix.segmentation.options import SegmentationEvalOptions, SegmentationOptions
from metamix.segmentation.task import Segmentation
from metamix.weights.files import load_checkpoint
from tests.helpers.advice import exit_code
from tests.helpers.running import assert_same_run, metrics, start_all, stopped_at

TINY = ["--model", "metaformer_identity_nano", "--model-args", "{depths: [1, 1, 1], dims: [8, 8, 16]}"]
SMALL_HEAD = ["--head-args", "{neck_channels: 16, head_channels: 16}"]
WORDS = ["--task", "segmentation", "--device", "cpu", "--workers", 0, "--batch-size", 2, "--amp", "none"]
WORDS += ["--warmup-epochs", 0, "--epochs", 1, "--crop", "32,32", *TINY]


def train(*words):
    metamix.cli.train.main(list(map(str, [*WORDS, *words])))


def evaluate(*words):
    words = ["--device", "cpu", "--workers", 0, "--amp", "none", *words]  # no --task: the weights name it
    metamix.cli.evaluate.main(list(map(str, words)))


def test_training_scoring_and_predicting_agree(scenes, tmp_path, capsys, request):
    root, run, out, new = scenes(train=32, test=2), tmp_path / "run", tmp_path / "out", tmp_path / "new"
    words = ["--loss", "ce", "--class-weights", "log", "--epochs", 8, "--batch-size", 4, "--optimizer", "muon"]
    train(*SMALL_HEAD, *words, "--lr", 2e-2, "--scales", "0.75,1.5", "--data-dir", root, "--output", run)
    said = capsys.readouterr().out
    assert "scenes: 32 train, 2 test" in said and "scores of whole images, at the size of the masks" in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scores"] == ["miou", "pixel_accuracy", "mean_accuracy", "boundary_f"]
    assert summary["miou"] > 35  # a constant prediction scores at most 25

    request.getfixturevalue("rendered_figures")
    evaluate("--checkpoint", run, "--data-dir", root, "--output", out, "--test-flip", "--test-scales", "0.75,1")
    said = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["miou"] == summary["miou"] and result["augmented_miou"] > 35
    assert result["measured"] == summary["measured"] and "augmented_measured" not in summary
    assert result["augmented_measured"].startswith("scores of whole images, mean over scales 0.75, 1 and flips")
    assert "whole images, mean over scales 0.75, 1 and flips" in said and "boundary F" in said
    assert list(result["by_class"]) == ["sky", "ground", "house", "tree"]
    with open(out / "test_confusion.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", "sky", "ground", "house", "tree"]
    assert sum(int(n) for row in rows[1:] for n in row[1:]) == 2 * 48 * 39  # one row of each mask is ignored
    assert Image.open(out / "test_images.png").size[0] > 500 and Image.open(out / "test_confusion.png").size[0] > 200

    images = [root / "test" / "images" / f"{i}.png" for i in range(2)]
    words = ["predict", *images, "--checkpoint", run, "--output", new, "--device", "cpu"]
    assert exit_code(metamix_cli.main, *words) == 0
    assert (new / "classes.txt").read_text() == "sky\nground\nhouse\ntree\n"
    trained = metamix.load(run)
    assert trained.spec.classes == trained.metadata.classes == ("sky", "ground", "house", "tree")
    assert trained.metadata.task == "segmentation"
    labels = trained.predict([images[0], Image.open(images[1])])
    confusion = np.zeros((4, 4), dtype=int)
    for i in range(2):
        predicted, overlay = (Image.open(new / kind / f"{i}.png") for kind in ("masks", "overlays"))
        assert predicted.mode == "P" and overlay.mode == "RGB" and overlay.size == (48, 40)
        assert labels[i].dtype == torch.uint8 and np.array_equal(labels[i], predicted)
        truth = np.array(Image.open(root / "test" / "masks" / f"{i}.png"))
        np.add.at(confusion, (truth[truth < 255], np.array(predicted)[truth < 255]), 1)
    assert confusion.tolist() == [[int(n) for n in row[1:]] for row in rows[1:]]


def test_scores_name_their_split(scenes, tmp_path, capsys):
    root, run, out = scenes(train=2, val=1), tmp_path / "run", tmp_path / "out"  # no test split: val is scored
    train(*SMALL_HEAD, "--data-dir", root, "--output", run)
    said = capsys.readouterr().out
    assert "on scenes, val: " in said and "on scenes, test" not in said
    assert json.loads((run / "summary.json").read_text())["test_split"] == "val"
    evaluate("--checkpoint", run, "--data-dir", root, "--output", out, "--test-on", "train")
    assert "on scenes, train (2 images)" in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text())["test_split"] == "train"


def test_a_note_says_that_a_scored_split_was_trained_on(scenes, tmp_path):
    root, run = scenes(), tmp_path / "run"
    train(*SMALL_HEAD, "--data-dir", root, "--train-on", "train,val", "--output", run)

    def open_task(**changes):
        return Segmentation.for_evaluation(SegmentationEvalOptions(checkpoint=str(run), data_dir=str(root), **changes))[
            0
        ]

    for split in "train", "val":
        assert f"the segmenter was trained on the split {split}" in open_task(test_on=split).notes
    task = open_task()
    assert list(task.data.parts) == ["test"] and not any("trained on" in note for note in task.notes)
    assert open_task(test_on="test").title.endswith("-test")  # the results folder is named after the title
    assert list(open_task(test_on="test").data.parts) == ["test"]  # only the scored split is opened


@pytest.mark.slow
def test_an_interrupted_run_equals_an_uninterrupted_one(scenes, tmp_path):
    words = [*SMALL_HEAD, "--data-dir", scenes(), "--epochs", 2, "--ema", "--schedule", "poly"]
    train(*words, "--output", tmp_path / "whole")
    with stopped_at(3):
        train(*words, "--output", tmp_path / "parts")
    assert not (tmp_path / "parts" / "summary.json").exists()
    train(*words, "--output", tmp_path / "parts", "--workers", 1, "--memory", "no")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_two_processes_train_nearly_the_same_weights_as_one(scenes, tmp_path):
    words = ["--head", "wavemix", "--head-args", "{head_channels: [8, 8, 8, 8]}", "--data-dir", scenes(), "--seed", 1]
    words = list(map(str, [*WORDS, *words, "--model", "metaformer_identity_s12", "--batch-size", 4]))
    train(*words, "--output", tmp_path / "one")
    ranks = start_all(2, *words, "--output", tmp_path / "two", logs=tmp_path)
    for rank in ranks:
        rank.output()
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert {key: float(value) for key, value in a.items()} == pytest.approx(
            {key: float(value) for key, value in b.items()}, rel=1e-4, abs=1e-6
        )
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_fine_tuning_starts_from_a_segmenter_with_other_classes(scenes, tmp_path, capsys):
    root = scenes()
    statistics = ["--mean", "0.3,0.4,0.5", "--std", "0.2,0.2,0.2"]
    train(*SMALL_HEAD, "--data-dir", root, *statistics, "--output", tmp_path / "first")
    (root / "classes.txt").write_text("sky\nground\nhouse\ntree\nbox\n")
    with pytest.raises(SystemExit, match="has 4 classes .sky, ground, house, tree., and .* has 5 .sky, .*, box"):
        evaluate("--checkpoint", tmp_path / "first", "--data-dir", root)
    capsys.readouterr()
    train(*SMALL_HEAD, "--data-dir", root, "--checkpoint", tmp_path / "first", "--output", tmp_path / "second")
    assert "new: head.classifier.weight, head.classifier.bias" in capsys.readouterr().out
    assert load_segmenter(tmp_path / "second").spec.mean == (0.3, 0.4, 0.5)  # the mean of the first run is kept
    words = ["--head", "wavemix", "--data-dir", root, "--checkpoint", tmp_path / "first"]
    with pytest.raises(SystemExit, match="was trained with the head semantic_fpn, not wavemix: give --head semantic_f"):
        train(*words, "--output", tmp_path / "third")


def test_a_run_continues_without_the_weights_that_it_started_from(scenes, tmp_path):
    words = [*SMALL_HEAD, "--data-dir", scenes()]
    train(*words, "--output", tmp_path / "first")
    words += ["--checkpoint", tmp_path / "first", "--output", tmp_path / "second"]
    train(*words)
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    train(*words, "--epochs", 2)
    assert len(metrics(tmp_path / "second")) == 2


@pytest.mark.slow
def test_batch_norms_of_a_loaded_segmenter_are_frozen(scenes, tmp_path):
    root, first = scenes(), tmp_path / "first"
    words = ["--model", "metaformer_identity_nano", "--data-dir", root]
    train(*SMALL_HEAD, *words, "--output", first)
    for thawed, head_args in ((False, "{neck_channels: 16, head_channels: 16}"), (True, "{frozen_norms: false}")):
        head_args = f"{head_args[:-1]}, neck_channels: 16, head_channels: 16}}" if thawed else head_args
        run = tmp_path / f"run{thawed}"
        train("--head-args", head_args, *words, "--checkpoint", first, "--output", run)
        (a, b) = (load_segmenter(path).model.state_dict() for path in (first, run))
        means = [name for name in a if name.startswith("backbone.body") and name.endswith("running_mean")]
        assert means and all(a[name].equal(b[name]) != thawed for name in means)
        assert load_segmenter(run).spec.frozen_norms != thawed
    words = ["--head-args", "{neck_channels: 16, head_channels: 16}", *words, "--checkpoint", first, "--epochs", 2]
    train(*words, "--output", tmp_path / "whole")
    with stopped_at(3):
        train(*words, "--output", tmp_path / "parts")
    train(*words, "--output", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "words, note",
    [
        (["--checkpoint", "metaformer_identity_nano.cifar10"], "the backbone from metaformer_identity_nano.cifar10"),
        (["--pretrained"], "published weights of the backbone: metaformer_identity_nano.cifar10"),
    ],
)
def test_the_backbone_starts_from_a_classifier(words, note, scenes, tmp_path, capsys):
    model = ["--model", "metaformer_identity_nano", "--model-args", "{}"]
    train(*model, *words, "--data-dir", scenes(), "--output", tmp_path / "run")
    assert note in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mean"] == pytest.approx([0.49, 0.48, 0.45], abs=0.01)  # CIFAR-10's, not ImageNet's


def test_mask_options_of_training_are_ignored_for_a_data_set_with_known_mask_values(scenes, tmp_path):
    root, run = scenes(train=2, val=1), tmp_path / "run"
    train(*SMALL_HEAD, "--data-dir", root, "--ignore-index", 255, "--reduce-zero-label", "--output", run)
    options = SegmentationEvalOptions(checkpoint=str(run), data="voc", data_dir=str(root))
    with pytest.raises(FileNotFoundError, match="not found or corrupted"):  # no error about mask options
        Segmentation.for_evaluation(options)
    options.reduce_zero_label = True
    with pytest.raises(ValueError, match="voc has known mask names and values: leave --reduce-zero-label out"):
        Segmentation.for_evaluation(options)


def test_a_split_without_labelled_pixels_is_refused_before_training(scenes, tmp_path):
    root = scenes()
    for path in (root / "test" / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.full_like(mask, 255)).save(path)
    with pytest.raises(SystemExit, match="all pixels of the masks in .*test/masks are ignored: none can be scored"):
        train(*SMALL_HEAD, "--data-dir", root, "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_backbone_of_fixed_size_is_scored_in_tiles(scenes, tmp_path):
    root, run = scenes(), tmp_path / "run"
    words = [*SMALL_HEAD, "--model", "mixer_s32_224", "--model-args", "{mlp_ratio: [0.1, 0.1]}"]
    train(*words, "--tile", 32, "--overlap", 4, "--data-dir", root, "--output", run)
    with pytest.raises(SystemExit, match="mixer_s32_224 takes 32 x 32 pixels at most: give --tile 32 --overlap 4"):
        evaluate("--checkpoint", run, "--data-dir", root)
    evaluate("--checkpoint", run, "--data-dir", root, "--tile", 32, "--overlap", 4, "--output", tmp_path / "out")
    words = [root / "train" / "images", "--checkpoint", run, "--output", tmp_path / "labelled", "--device", "cpu"]
    assert "pixels at most: give --tile 32 --ov" in exit_code(metamix.tasks.predict.main, *words)
    assert exit_code(metamix.tasks.predict.main, *words, "--tile", 32, "--overlap", 4) == 0


MISTAKES = [
    (["--head-args", "{num_classes: 8}"], "head_args has num_classes, which comes from the data set"),
    (
        ["--head", "uperne", "--data-dir", "nowhere"],
        "head is 'uperne', but it must be one of .*; did you mean 'upernet",
    ),
    (["--class-weights", "1,2"], "class_weights has 2 numbers, and there are 4 classes"),
    (["--crop", 64, "--no-pad", "--scales", "1,1"], "has 40 x 48 pixels at the smallest scale, less than the crop of"),
    (["--train-on", "trian"], "split is 'trian'; did you mean 'train'"),
    (["--train-on", "train,test"], "test is among the splits to train on"),
    (["--data", "ade20k"], "there is no .*objectInfo150.txt: it comes with ADEChallengeData2016"),
    (["--data", "cityscapes", "--ignore-index", 7], "cityscapes has known mask names and values: leave --ignore-index"),
    (["--data", "cityscapes"], "there is no .*scenes/leftImg8bit/train: --data-dir must hold leftImg8bit and gtFine"),
    (["--head-args", "{auxiliary: maybe}"], "auxiliary is 'maybe', but it must be true or false"),
    (["--aux-weight", 0.2], "aux_weight is 0.2, but this semantic_fpn has no auxiliary head: .* '{auxiliary: true}'"),
    (["--data", "voc", "--mask-name", "{name}_m"], "voc has known mask names and values: leave --mask-name out"),
    (["--data-dir", "nowhere", "--download"], "there is no folder nowhere"),
    (["--data", "voc"], "not found or corrupted. You can use --download"),
    (["--model", "mixer_s32_224", "--model-args", "{}"], "takes 32 x 32 pixels at most.*--tile 32"),
    (["--mean", "0.5,0.5,0.5"], "mean is given, but std is not: give both or neither"),
    (["--ignore-index", "none"], r"0.png has the value 255 at 48 pixels, but there are 4 classes.* values 0 to 3"),
]


@pytest.mark.parametrize("words, message", MISTAKES)
def test_wrong_options_are_refused(words, message, scenes, tmp_path):
    command = [*SMALL_HEAD, "--data-dir", scenes(), "--output", tmp_path / "run", *words]
    with pytest.raises(SystemExit, match=message):
        train(*command)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_data_without_images_to_score_are_refused(scenes, tmp_path):
    root = scenes()
    for split in ("val", "test"):
        shutil.rmtree(root / split, ignore_errors=True)
    with pytest.raises(SystemExit, match="there are no images to score: the data have only the split train. Move some"):
        train(*SMALL_HEAD, "--data-dir", root, "--output", tmp_path / "run")


def test_options_reach_the_loss_and_the_predictors(scenes):
    options = dict(data_dir=str(scenes()), crop=(32,), aux_weight=0.7, tile=24, overlap=8, test_flip=True)
    task = Segmentation(SegmentationOptions(**options))
    assert task.loss.aux_weight == 0.7
    assert [(each.tile, each.overlap) for each in task.metric.predictors.values()] == [(24, 8)] * 2
