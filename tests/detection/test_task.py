"""Test detection in train, eval and predict: training, scores, resuming, fine-tuning and wrong options."""

import json
import os
import re
import shlex

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import metamix.cli.evaluate
from metamix.detection.data import DetectionData
from metamix.detection.metric import score
from metamix.detection.pictures import draw_grid, draw_image
from metamix.detection.task import Detection, DetectionEvalOptions, DetectionOptions
from metamix.tasks.predict import main as predict
from metamix.tasks.verify import main as verify
from metamix.training.engine import Engine
from metamix.training.processes import Stopped
from metamix.weights.files import load_weights, save_weights
from tests.helpers import shapes
from tests.helpers.advice import exit_code
from tests.helpers.detectors import DETECTION, SMALL
from tests.helpers.running import assert_same_run, metrics, start_all, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("data") / "shapes", train=48, val=8, test=12)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fcos"
    words = shlex.split(
        "--detector fcos --epochs 6 --batch-size 4 --lr 2e-3 --eval-every 3 --scales 0.9,1.1 --flip-vertical 0.5 "
        "--model-args '{depths: [1, 1, 1], dims: [24, 48, 96]}'"
    )
    train(*DETECTION, *words, "--data-dir", data, "--output", folder)
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_training_finds_squares_and_discs(trained):
    result = summary(trained)
    assert result["scores"] == ["AP", "AP50", "AP75", "AP_small"] and result["AP50"] > 80 and result["AP"] > 30
    assert result["samples"] == {"train": 48, "test": 12, "holdout": 8} and result["data"] == "shapes"
    assert float(metrics(trained)[2]["holdout_AP50"]) > 20
    assert result["pictures"] == ["curves.png", "test_curves.png", "test_images.png", "test_scores.json"]
    assert all((trained / name).stat().st_size > 0 for name in result["pictures"])
    assert "\nall classes " in (trained / "log.txt").read_text()
    by_class = json.loads((trained / "test_scores.json").read_text())
    assert by_class["all"]["AP50"] == pytest.approx(result["AP50"], abs=1e-3)
    mean = sum(scores["AP50"] for scores in by_class["classes"].values()) / 2
    assert by_class["classes"].keys() == {"disc", "square"} and mean == pytest.approx(result["AP50"], abs=1e-3)


def test_scores_of_the_same_states_are_computed_once(data, monkeypatch):
    calls = []
    monkeypatch.setattr("metamix.detection.metric.score", lambda *args: calls.append(args) or score(*args))
    task = Detection(DetectionOptions(data_dir=str(data), detector="retinanet"))
    for count in (1, 2):
        states = [task.metric.start() | {"split": "test", "seen": task.data.scored["test"].ids}]
        task.metric.result(states), task.pictures.report(states), task.metric.result(states)
        assert len(calls) == count


@pytest.mark.slow
@pytest.mark.usefixtures("rendered_figures")
def test_eval_repeats_the_scores_of_training(trained, data, tmp_path, capsys):
    words = f"--data-dir {data} --checkpoint {trained} --output {tmp_path}"
    metamix.cli.evaluate.main(shlex.split(f"--task detection --device cpu --amp none --workers 0 {words}"))
    result = json.loads((tmp_path / "result.json").read_text())
    for name in summary(trained)["scores"]:
        assert result[name] == summary(trained)[name]
    printed = capsys.readouterr().out
    assert re.search(r"^square +[\d.]+ +[\d.]+$", printed, re.M) and "AR 100" in printed
    assert (tmp_path / "test_images.png").exists()

    task, model, metadata = Detection.for_evaluation(DetectionEvalOptions(data_dir=str(data), checkpoint=str(trained)))
    assert not model.training
    assert (
        task.model.describe(model)["parameters"] == summary(trained)["parameters"]
        and metadata.extra["detector"] == "fcos"
    )


def test_eval_needs_no_images_of_training(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=2, val=2, test=2)
    task, model = build(folder, train_on=("train", "val"))
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))
    for split in "train", "val":
        for image in (folder / "images").glob(f"{split}_*.png"):
            image.unlink()
    options = DetectionEvalOptions(data_dir=str(folder), checkpoint=str(tmp_path / "d.safetensors"))
    task, model, _ = Detection.for_evaluation(options)
    assert list(task.data.scored) == ["test"]
    assert task.model.describe(model)["train_on"] == ["train", "val"]
    options.test_on = "val"
    with pytest.raises(ValueError, match="2 of the 2 images of .*_val.json are missing .*val_0.png.; metamix verify"):
        Detection.for_evaluation(options)


@pytest.mark.parametrize("kept", [["square", "disc"], ["square"], ["disc"]])
def test_eval_matches_classes_by_name(kept, tmp_path):
    """The model numbers disc 1 and square 2; the data number them the other way round, or lack a class."""
    task, model = build(shapes.write(tmp_path / "shapes", train=2, test=2))
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))

    def change(split, data):
        names = {category["id"]: category["name"] for category in data["categories"]}
        data["categories"] = [{"id": number, "name": name} for number, name in enumerate(kept)]
        data["annotations"] = [each for each in data["annotations"] if names[each["category_id"]] in kept]
        for each in data["annotations"]:
            each["category_id"] = kept.index(names[each["category_id"]])

    folder = shapes.write(tmp_path / "others", train=8, test=8, change=change)
    options = DetectionEvalOptions(data_dir=str(folder), checkpoint=str(tmp_path / "d.safetensors"))
    task, _, _ = Detection.for_evaluation(options)
    assert task.data.classes == ("disc", "square") and len(task.data.training_images()) == 8
    split = task.data.scored["test"]
    # False positives count for both classes.
    assert [split.coco.cats[i]["name"] for i in split.category_ids] == ["disc", "square"]
    state, colours = task.metric.start(), torch.tensor([[[30, 60, 250]], [[250, 140, 20]]])
    for batch in task.data.eval_loaders(1, 0, 1)["test"]:
        ((image,), (truth,)) = batch["image"], batch["target"]
        middles = truth["boxes"].view(-1, 2, 2).mean(1).long()
        nearest = [1 + int((colours - image[:, y, x]).abs().sum(-1).argmin()) for x, y in middles.tolist()]
        labels = torch.tensor([*nearest, 1, 2])  # the last two boxes cover no object
        boxes = torch.cat([truth["boxes"], torch.tensor([[0, 0, 3, 3], [0, 0, 3, 3]])])
        scores = torch.tensor([0.9] * len(nearest) + [0.1] * 2)
        task.metric.update(state, [{"boxes": boxes, "labels": labels, "scores": scores}], batch)
    assert task.metric.result([state])["AP"] == pytest.approx(100)
    assert task.metric.by_class([state]).keys() == set(kept)
    assert task.pictures.draw([state], tmp_path)[1].exists()

    def rename(split, data):
        data["categories"][0]["name"] = "ring"

    options.data_dir = str(shapes.write(tmp_path / "unknown", train=2, test=2, change=rename))
    with pytest.raises(ValueError, match="has 2 classes .disc, square., and .* has 2 .disc, ring.; give another"):
        Detection.for_evaluation(options)


def test_missing_images_are_refused_before_training(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=2, val=2, test=2)
    (folder / "images" / "test_1.png").unlink()
    with pytest.raises(ValueError, match="1 of the 2 images of .*_test.json are missing"):
        Detection(DetectionOptions(data_dir=str(folder)))


@pytest.mark.slow
def test_predict_finds_the_objects(trained, data, tmp_path, capsys):
    truth = json.loads((data / "annotations" / "instances_test.json").read_text())
    image = truth["images"][0]
    path = data / "images" / image["file_name"]
    assert exit_code(predict, path, "--checkpoint", trained, "--output", tmp_path, "--threshold", 0.3) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    assert record["image"] == str(path) and (record["width"], record["height"]) == (96, 64)
    assert (tmp_path / "test_0.png").stat().st_size > 0
    objects = {shapes.SQUARE: "square", shapes.DISC: "disc"}
    for annotation in truth["annotations"]:
        if annotation["image_id"] == image["id"]:
            x, y, side, _ = annotation["bbox"]
            middle = x + side / 2, y + side / 2
            near = [
                o["class"]
                for o in record["objects"]
                if o["box"][0] < middle[0] < o["box"][2] and o["box"][1] < middle[1] < o["box"][3]
            ]
            assert near[:1] == [objects[annotation["category_id"]]]

    assert exit_code(predict, __file__, path, "--checkpoint", trained, "--output", tmp_path) == 1
    assert "left out: " in (told := capsys.readouterr().err) and "test_task.py: not an image of a known" in told
    assert [r["image"] for r in json.loads((tmp_path / "predictions.json").read_text())] == [str(path)]


@pytest.mark.parametrize("detector", ["retinanet", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_resumed_run_equals_an_uninterrupted_one(few, tmp_path, monkeypatch, detector):
    words = f"--data-dir {few} --detector {detector} --epochs 2 --batch-size 2 --eval-every 2 --photometric 0.5 --ema "
    words += "--iou-crop 0.5 --layer-decay 0.9 --freeze backbone.body.model.stem"
    words = [*DETECTION, *shlex.split(words)]
    train(*words, "--output", tmp_path / "whole")
    finish = Engine._finish_epoch

    def stop(engine, epoch):
        finish(engine, epoch)
        raise Stopped

    monkeypatch.setattr(Engine, "_finish_epoch", stop)
    with pytest.raises(SystemExit, match="143"):
        train(*words, "--output", tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "summary.json").exists()
    train(*words, "--output", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert ("mask_AP" in summary(tmp_path / "parts")["scores"]) == (detector == "mask_rcnn")
    if detector == "retinanet":
        with pytest.raises(SystemExit, match=r"anchor_scale was [\d.]+ and is now 3.5"):
            train(*words, "--anchor-scale", 3.5, "--output", tmp_path / "whole")

    torch.manual_seed(0)
    tensors, _ = load_weights(tmp_path / "whole")
    start = Detection(DetectionOptions(**SMALL, data_dir=str(few), detector=detector)).model.build().state_dict()
    still = [name for name in tensors if torch.equal(tensors[name], start[name])]
    assert [name for name in still if "stem" not in name and ".norm1.bias" not in name] == []
    assert [name for name in tensors if "stem" in name and name not in still] == []


@pytest.mark.slow
def test_two_processes_equal_one(few, tmp_path):
    words = [*DETECTION, "--data-dir", few, "--epochs", 3, "--batch-size", 4, "--lr", 1e-3, "--eval-every", 3]
    train(*words, "--output", tmp_path / "one")
    for rank in start_all(2, *words, "--output", tmp_path / "two", logs=tmp_path):
        rank.output()
    one, two = ([float(row["train_loss"]) for row in metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 3 and two == pytest.approx(one, abs=1e-4)
    assert summary(tmp_path / "two")["AP"] == pytest.approx(summary(tmp_path / "one")["AP"], abs=1)


def build(data, **options):
    task = Detection(DetectionOptions(**SMALL | dict(data_dir=str(data)) | options))
    return task, task.model.build()


def test_fine_tuning_starts_from_a_classifier(few, tmp_path):
    torch.manual_seed(1)
    classifier = timm.create_model("metaformer_wavemix_nano", depths=[1, 1, 1], dims=[8, 8, 16], num_classes=5)
    about = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], model="metaformer_wavemix_nano")
    about["model_args"] = SMALL["model_args"]
    save_weights(tmp_path / "c.safetensors", classifier.state_dict(), about)
    task, model = build(few, model="metaformer_wavemix_nano", checkpoint=str(tmp_path / "c.safetensors"))
    state = model.backbone.body.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in classifier.state_dict().items() if name in state)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    described = task.model.describe(model)
    assert described["mean"] == [0.1, 0.2, 0.3] and described["frozen_norms"] is True
    assert f"weights of the backbone from {tmp_path / 'c.safetensors'}" in task.notes

    # A resumed run does not need the classifier any more.
    (tmp_path / "c.safetensors").unlink()
    same = Detection(task.options)
    assert same.model.describe(same.model.build(described)) == described

    # The detector is built again with the same frozen norms, mean and std.
    save_weights(tmp_path / "d.safetensors", model.state_dict(), described)
    _, again, _ = Detection.for_evaluation(
        DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "d.safetensors"))
    )
    assert again.transform.image_mean == [0.1, 0.2, 0.3]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_published_weights_of_a_backbone_are_named(few):
    task, _ = build(few, model="metaformer_identity_nano", pretrained=True, model_args={})
    assert "published weights of the backbone: metaformer_identity_nano.cifar10" in task.notes


def test_fine_tuning_starts_from_a_detector_of_other_classes(few, tmp_path):
    task, model = build(few)
    about = task.model.describe(model) | {"classes": ["a", "b", "c"]}
    save_weights(tmp_path / "d.safetensors", model.state_dict(), about)
    with pytest.raises(ValueError, match=r"does not fit this RetinaNet: it has .*cls_logits.bias of shape \("):
        Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "d.safetensors")))
    about = task.model.describe(model) | {"classes": ["disc", "ring"], "mean": [0.1, 0.2, 0.3]}
    save_weights(tmp_path / "e.safetensors", model.state_dict(), about)
    torch.manual_seed(1)
    other, tuned = build(few, checkpoint=str(tmp_path / "e.safetensors"))
    differ = [n for n, tensor in tuned.state_dict().items() if not torch.equal(tensor, model.state_dict()[n])]
    assert differ == ["head.classification_head.cls_logits.weight"]  # biases start with the same values
    assert "new: head.classification_head.cls_logits.weight" in other.notes[0]
    assert tuned.transform.image_mean == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="2 classes .disc, ring., and .* 2 .disc, square.; .* train --task detection"):
        Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "e.safetensors")))


def test_weights_of_another_detector_are_refused(few, tmp_path):
    task, model = build(few)
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))
    with pytest.raises(ValueError, match="was trained with the detector retinanet, not fcos: give --detector retina"):
        build(few, checkpoint=str(tmp_path / "d.safetensors"), detector="fcos")


def test_unusable_annotations_are_noted(tmp_path):
    def spoil(split, data):
        data["annotations"][0]["bbox"][2] = 0
        data["annotations"][1]["category_id"] = 99

    folder = shapes.write(tmp_path / "shapes", train=4, test=2, change=spoil)
    task, _ = build(folder)
    assert task.data.notes == [
        f"left out: 2 annotations of {folder / 'annotations' / f'instances_{split}.json'}; "
        f"metamix verify {folder} lists the problems"
        for split in ("train", "test")
    ]
    assert set(task.data.scored) == {"test"}


def without_objects(empty):
    return lambda split, data: data["annotations"].clear() if split == empty else None


def test_test_split_without_objects_is_refused(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=4, test=2, change=without_objects("test"))
    with pytest.raises(ValueError, match="instances_test.json has no object to score: give another"):
        Detection(DetectionOptions(**SMALL, data_dir=str(folder)))


def test_held_out_split_without_objects_is_refused(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=4, val=2, test=2, change=without_objects("val"))
    with pytest.raises(ValueError, match="instances_val.json has no object to score: give --test-on test"):
        DetectionData(DetectionOptions(**SMALL, data_dir=str(folder)), ("disc", "square"))
    with pytest.raises(ValueError, match="instances_val.json has no object to score: give --train-on train,val"):
        Detection(DetectionOptions(**SMALL, data_dir=str(folder)))
    data = DetectionData(DetectionOptions(**SMALL, data_dir=str(folder), test_on="test"), ("disc", "square"))
    assert list(data.scored) == ["test"]


@pytest.mark.parametrize("images", [0, 4])
def test_training_split_without_objects_is_refused(tmp_path, images):
    folder = shapes.write(tmp_path / "shapes", train=images, test=2, change=without_objects("train"))
    with pytest.raises(ValueError, match=f"no object to learn from in the {images} images of .*train.json: give"):
        Detection(DetectionOptions(**SMALL, data_dir=str(folder)))


def test_training_on_the_test_split_is_refused(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=4, val=2)
    for options in (dict(train_on=("train", "val")), dict(test_on="train")):
        with pytest.raises(ValueError, match="is among the splits to train on, so it cannot be the test split: give"):
            Detection(DetectionOptions(**SMALL, data_dir=str(folder), **options))


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "mask_rcnn"])
def test_names_of_losses_end_in_loss(few, detector):
    """`draw_curves` draws losses and scores in separate panels, and tells them apart by this ending."""
    task, model = build(few, detector=detector)
    batch = task.data.augment(next(iter(task.data.train_loader(2, 0, 1, 0).epoch(0))), 0, 0)
    total, losses = task.loss(model.train(), batch)
    assert all(name.endswith("_loss") and not name.startswith("loss") for name in losses)
    assert total == sum(losses.values())


def test_pictures_leave_out_unreadable_images(tmp_path):
    folder = shapes.write(tmp_path / "shapes", train=4, test=2)
    (folder / "images" / "test_0.png").write_bytes(b"no image")
    task = Detection(DetectionOptions(**SMALL, data_dir=str(folder)))
    task.pictures.draw([{"split": "test", "seen": [10, 11], "results": []}], tmp_path)
    assert (tmp_path / "test_images.png").exists()


def test_detectors_without_train_on_are_scored_on_test_and_holdout(few, tmp_path):
    options = DetectionOptions(**SMALL, data_dir=str(few))
    task = Detection(options)
    model = task.model.build()
    metadata = task.model.describe(model)
    for entries in ({"train_on": []}, {}):
        about = {key: value for key, value in metadata.items() if key != "train_on"} | entries
        save_weights(tmp_path / "old.safetensors", model.state_dict(), about)
        evaluation = DetectionEvalOptions(checkpoint=str(tmp_path / "old.safetensors"), data_dir=str(few))
        assert list(Detection.for_evaluation(evaluation)[0].data.scored) == ["test", "holdout"]


def test_eval_of_a_split_that_was_not_held_out_is_refused(few, tmp_path):
    task = Detection(DetectionOptions(**SMALL, data_dir=str(few), train_on=("train", "val")))
    model = task.model.build()
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))
    words = ["--task", "detection", "--checkpoint", str(tmp_path / "d.safetensors"), "--data-dir", str(few)]
    with pytest.raises(SystemExit, match="split is 'holdout', but the data have only test: leave --split out$"):
        metamix.cli.evaluate.main([*words, "--split", "holdout", "--device", "cpu"])


def test_options_choose_the_splits(few):
    def splits(**options):
        task = Detection(DetectionOptions(**SMALL, data_dir=str(few), **options))
        return [s.annotations.stem for s in task.data.train], {
            name: s.annotations.stem for name, s in task.data.scored.items()
        }

    train, val, test = "instances_train", "instances_val", "instances_test"
    assert splits() == ([train], {"test": test, "holdout": val})
    assert splits(train_on=("train", "val")) == ([train, val], {"test": test})
    assert splits(test_on="val") == ([train], {"test": val})
    alone = DetectionOptions(**SMALL, data_dir=str(few), test_on="train")
    assert list(DetectionData(alone, ("disc", "square")).scored) == ["test"]  # nothing else is scored


@pytest.mark.parametrize("gone, wanted, use, option", [
    ("val", "test", "score", "--test-on"), ("train", "train", "train on", "--train-on"),
])  # fmt: skip
def test_missing_split_says_which_file_to_add(tmp_path, gone, wanted, use, option, capsys):
    folder = shapes.write(tmp_path / "shapes", train=4, val=4)
    (left,) = {"train", "val"} - {gone}
    annotations = folder / "annotations"
    (annotations / f"instances_{gone}.json").unlink()
    words = (
        f"there is no split '{wanted}'. To {use} it, add {annotations}/instances_{wanted}.json; or give another "
        f"{option}. The splits are {left}"
    )
    with pytest.raises(ValueError, match=f"^{words}$"):
        Detection(DetectionOptions(**SMALL, data_dir=str(folder)))
    exit_code(verify, folder)
    files = {"val": "instances_val.json or instances_test.json", "train": "instances_train.json"}[gone]
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {annotations} has no {files}, and metamix train needs one"]


def test_scores_on_the_training_split_are_noted(few, tmp_path):
    task, model = build(few)
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))
    for test_on, notes in (("train", ["the detector was trained on the split train"]), ("test", [])):
        options = DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "d.safetensors"), test_on=test_on)
        assert Detection.for_evaluation(options)[0].notes == notes


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(scales=(1.2, 0.8)), r"scales is \(1.2, 0.8\), but it must be two factors .*, the smaller first"),
        (dict(scales=(1.0, float("inf"))), r"scales is \(1.0, inf\), but it must be two factors"),
        (dict(min_size=900, max_size=500), "min_size is 900, above max_size, which is 500; lower min_size"),
        (dict(model_args={"batch_norms": "train"}), "model_args has batch_norms, which comes from the task"),
        (dict(detector_args={"score_thresh": "high"}), "detector_args is .*, but it must be a mapping of options to"),
        (dict(detector_args={"anchor_scale": [4]}), r"anchor_scale is \[4\], but it must be a number above 0"),
        (dict(detector_args={"min_size": 300}), "detector_args is {'min_size': 300}, .* min_size, name, num_classes"),
        (dict(model_args={"num_classes": 3}), "has num_classes, which comes from the data set; leave it out"),
        (dict(train_on=()), "train_on is \\(\\), but it must be one or more different splits, such as train"),
        (dict(train_on=("train", "train")), "train_on is .*, but it must be one or more different splits"),
    ],
)
def test_wrong_options_are_refused(few, options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Detection(DetectionOptions(**SMALL | dict(data_dir=str(few)) | options))


def test_splits_must_have_the_same_classes(tmp_path):
    def rename(split, data):
        if split == "val":
            data["categories"][0]["name"] = "box"

    folder = shapes.write(tmp_path / "shapes", train=4, val=2, test=2, change=rename)
    with pytest.raises(ValueError, match="val.json has the classes disc, box, but .*train.json has disc, square"):
        Detection(DetectionOptions(**SMALL, data_dir=str(folder)))


def test_weights_of_other_models_are_refused(few, tmp_path):
    save_weights(tmp_path / "c.safetensors", {"w": torch.zeros(1)}, {"model": "resnet18"})
    with pytest.raises(ValueError, match="holds resnet18, not a detector that metamix trained: give a run folder of"):
        Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "c.safetensors")))
    save_weights(tmp_path / "c.safetensors", {"w": torch.zeros(1)}, {"model": "resnet18", "task": "classification"})
    with pytest.raises(ValueError, match="has weights for classification, not for a detector: give --task classif"):
        Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path / "c.safetensors")))
    with pytest.raises(ValueError, match="no weights to evaluate: give --checkpoint"):
        Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few)))


@pytest.mark.usefixtures("rendered_figures")
def test_class_names_with_dollars_and_undecodable_bytes_are_drawn(tmp_path):
    """A $ does not start a formula, and bytes that are not UTF-8 are escaped."""
    objects = {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([1])}
    pixels = torch.zeros(3, 60, 60, dtype=torch.uint8)
    names = ["a$x_$b", os.fsdecode(b"\xe9")]
    draw_grid(tmp_path / "grid.png", [(name, pixels, objects, objects) for name in names], names)
    draw_image(tmp_path / "image.png", pixels, objects, names)
    assert Image.open(tmp_path / "image.png").size == (60, 60)
    assert min(Image.open(tmp_path / "grid.png").size) > 300
