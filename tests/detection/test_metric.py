"""Test COCO's scores against known values, and the conversion of detections to COCO's format and back."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from metamix.detection.coco import find_splits, open_split
from metamix.detection.load import TrainedDetector
from metamix.detection.metric import Scores, from_coco, score, to_coco
from metamix.detection.objects import decode, encode
from metamix.detection.pictures import draw_precision_recall
from metamix.detection.task import Detection, DetectionOptions
from metamix.training.forward import drop_unreadable
from tests.helpers.detectors import SMALL
from tests.helpers.shapes import SQUARE, draw, write


@pytest.fixture
def split(coco):
    return open_split(find_splits(coco()), "test", masks=True)


def truth(split, move=0.0, confidence=0.9):
    """Make predictions from the ground truth, shifted to the right by `move` box widths."""
    predictions = {}
    for i, image_id in enumerate(split.ids):
        _, target = split.read(i)
        boxes = target["boxes"].as_subclass(torch.Tensor).clone()
        boxes[:, ::2] += move * (boxes[:, 2:3] - boxes[:, :1])
        predictions[image_id] = {
            "boxes": boxes,
            "labels": target["labels"],
            "runs": target["runs"],
            "scores": torch.full((len(boxes),), confidence),
        }
    return predictions


def results(split, predictions):
    return [result for image_id, prediction in predictions.items() for result in to_coco(prediction, image_id, split)]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_scores_100(split, kind):
    scores = score(split, results(split, truth(split)), kind)
    assert scores.summary["AP"] == scores.summary["AP50"] == scores.summary["AP_small"] == pytest.approx(100)
    assert "AP_large" not in scores.summary  # no object is that large
    for name in ("disc", "square"):
        assert scores.classes[name] == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}
    assert set(scores.images) == set(split.ids) and set(scores.images.values()) == {1.0}
    assert all((curve == 1).all() for curve in scores.precision.values())


def test_no_detections_score_0(split):
    scores = score(split, [])
    assert scores.summary["AP"] == scores.summary["AP50"] == scores.summary["AR_100"] == 0
    assert scores.images == {10: 0.0, 11: 0.0, 12: 0.0, 13: 1.0}  # the last image has no object


def test_no_detections_score_0_for_an_object_of_one_pixel(coco):
    def shrink(split, data):
        for annotation in data["annotations"]:
            annotation["bbox"] = [0, 0, 1, 1]

    split = open_split(find_splits(coco(change=shrink)), "test")
    assert score(split, []).summary["AP"] == 0


def test_iou_of_two_thirds_gives_ap_40(split):
    """Boxes moved by a fifth of their width have an IoU of 0.8 / 1.2 = 0.667, above four of the ten thresholds."""
    scores = score(split, results(split, truth(split, move=0.2)))
    assert scores.summary["AP50"] == pytest.approx(100) and scores.summary["AP75"] == 0
    assert scores.summary["AP"] == pytest.approx(40)
    assert all(row == {"AP": pytest.approx(40), "AP50": pytest.approx(100)} for row in scores.classes.values())


def test_masks_and_boxes_are_scored_separately(split):
    predictions = truth(split)
    for prediction in predictions.values():
        masks = list(map(decode, prediction["runs"]))
        for mask in masks:
            mask[48:] = False
            mask[:, ::2] = False  # every second column
        prediction["runs"] = list(map(encode, masks))
    detections = results(split, predictions)
    assert score(split, detections).summary["AP50"] == pytest.approx(100)
    assert score(split, detections, "segm").summary["AP50"] < 60
    assert score(split, detections).summary["AP50"] == pytest.approx(100)
    assert "counts" not in str(split.coco.anns)  # scoring does not change its arguments


def test_false_positives_of_higher_score_halve_ap50(split):
    """Each object has one hit and one false positive of higher score, so precision is at most a half."""
    hits = results(split, truth(split, confidence=0.6))
    wrong = [dict(result, bbox=[0, 50, 3, 3], score=0.9) for result in hits]
    scores = score(split, hits + wrong)
    assert scores.summary["AP50"] == pytest.approx(50)
    assert scores.images[10] == pytest.approx(2 / 3)  # F1 of precision 1/2 and recall 1
    unsure = [dict(result, score=0.4) for result in wrong]
    assert score(split, hits + unsure).summary["AP50"] == pytest.approx(100)
    assert set(score(split, hits + unsure).images.values()) == {1.0}
    assert set(score(split, [dict(result, score=0.5) for result in hits]).images.values()) == {1.0}


def test_annotations_are_numbered_from_1(coco):
    """pycocotools treats a match with annotation 0 as no match, and many files count from 0."""

    def below_zero(split, data):
        for number, annotation in enumerate(data["annotations"]):
            annotation["id"] = number - 1

    split = open_split(find_splits(coco(change=below_zero)), "test")
    assert list(split.coco.anns) == list(range(1, len(split.coco.anns) + 1))
    hits = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in split.coco.anns.values()
    ]
    assert score(split, hits).summary["AP50"] == pytest.approx(100)
    split.coco.dataset["annotations"][0]["id"] = 0  # control
    split.coco.createIndex()
    assert score(split, hits).summary["AP50"] < 99


def test_detections_in_a_crowd_are_not_false_positives(coco):
    def crowd(split, data):
        for annotation in data["annotations"]:
            if annotation["image_id"] == 10:
                annotation["iscrowd"] = 1
                annotation["segmentation"] = {"size": [64, 96], "counts": [64 * 96]}

    folder = coco(change=crowd)
    split = open_split(find_splits(folder), "test")
    assert len(split.read(0)[1]["boxes"]) == 0
    hits = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in split.coco.anns.values()
    ]
    scores = score(split, hits)
    assert scores.summary["AP50"] == pytest.approx(100) and set(scores.images.values()) == {1.0}
    outside = [dict(result, bbox=[0, 0, 5, 5]) if result["image_id"] == 10 else result for result in hits]
    assert score(split, outside).summary["AP50"] < 99


@pytest.mark.parametrize(
    "change",
    [
        dict(bbox=[5, 6, 0, 8]),
        dict(bbox=[5, 6, float("nan"), 8]),
        dict(bbox=[5, float("nan"), 7, 8]),
        dict(bbox=[5, 6, 7, float("inf")]),
        dict(bbox=[96, 6, 7, 8]),
        dict(bbox=[5, -8, 7, 8]),
        dict(image_id=99),
        dict(category_id=99),
    ],
)
def test_unusable_annotations_are_not_scored(coco, change):
    """Training leaves these annotations out, so scoring does too. They are counted in `unusable`."""

    def spoil(split, data):
        data["annotations"][0] |= change

    split = open_split(find_splits(coco(change=spoil)), "test", masks=True)
    assert split.unusable == 1 and split.objects == len(split.coco.anns)
    scores = score(split, results(split, truth(split)))
    assert scores.summary["AP"] == scores.summary["AR_100"] == pytest.approx(100)
    assert set(scores.images.values()) == {1.0}


def test_box_half_a_pixel_inside_the_image_is_scored(coco):
    """This is the control for the test above."""

    def spill(split, data):
        data["annotations"][0]["bbox"] = [95.5, 6, 7, 8]

    split = open_split(find_splits(coco(change=spill)), "test")
    assert split.unusable == 0 and split.objects == len(split.coco.anns)


def test_images_that_cannot_be_read_are_not_scored(coco):
    """One of four images cannot be read: its objects do not count as missed."""
    folder = coco()
    task = Detection(DetectionOptions(data_dir=str(folder), corrupt_limit=0.5, **SMALL))
    split = task.data.scored["test"]
    predictions = truth(open_split(find_splits(folder), "test", masks=True))
    (folder / "images" / "test_1.png").write_bytes(b"no image")
    states = []
    for rank in range(2):
        states.append(task.metric.start())
        for batch in map(drop_unreadable, task.data.eval_loaders(4, rank, 2)["test"]):
            task.metric.update(states[-1], [predictions[split.ids[index]] for index in batch["index"].tolist()], batch)
    assert sorted(i for state in states for i in state["seen"]) == [10, 12, 13]
    assert task.metric.result(states)["AP"] == pytest.approx(100)
    assert task.metric.scores(states)[""].images == {10: 1.0, 12: 1.0, 13: 1.0}
    with pytest.raises(ValueError, match="none of the images that could be read has an object to score"):
        task.metric.result([task.metric.start() | {"split": "test", "seen": [13]}])
    missed = score(split, [result for state in states for result in state["results"]])
    assert missed.summary["AP"] < 99 and missed.images[11] == 0  # control: all images count


def test_conversion_to_coco_and_back_changes_nothing(split):
    prediction = truth(split)[10]
    again = from_coco(to_coco(prediction, 10, split), split)
    for key in ("boxes", "labels", "scores"):
        torch.testing.assert_close(again[key], prediction[key])
    assert from_coco([], split)["boxes"].shape == (0, 4)
    background = {key: value[:1] for key, value in prediction.items()} | {"labels": torch.tensor([0])}
    assert to_coco(background, 10, split) == []


SIZES = [(96, 64), (64, 96), (48, 48), (120, 40), (33, 71)]  # width, height


@pytest.fixture
def five_sizes(tmp_path):
    """Make a detection task and its model, for images of five sizes."""
    folder = tmp_path / "shapes"

    def resize(split, data):
        data["annotations"] = []
        for image, (width, height) in zip(data["images"], SIZES, strict=True):
            draw([(SQUARE, 5, 6, 20)], (width, height)).save(folder / "images" / image["file_name"])
            image |= {"width": width, "height": height}
            box = {"bbox": [5, 6, 20, 20], "category_id": SQUARE, "image_id": image["id"], "id": image["id"]}
            data["annotations"].append(box)

    write(folder, train=5, test=5, change=resize)
    detector_args = dict(score_thresh=0.001)  # an untrained head gives low scores
    small = SMALL | dict(model="metaformer_raft_nano", detector_args=detector_args)
    options = DetectionOptions(data_dir=str(folder), **small)
    torch.manual_seed(0)
    task = Detection(options)
    return task, task.model.build().eval()


@torch.no_grad()
def test_scores_do_not_depend_on_batch_or_processes(five_sizes):
    task, model = five_sizes

    def results(batch_size, world_size=1):
        detections = []
        for rank in range(world_size):
            state = task.metric.start()
            for batch in task.data.eval_loaders(batch_size, rank, world_size)["test"]:
                task.metric.update(state, task.metric.predict(model, batch), batch)
            detections += state["results"]
        return detections

    alone = results(1)
    assert {result["image_id"] for result in alone} == {10, 11, 12, 13, 14}
    assert all(results(batch_size) == alone for batch_size in (2, 5, 8))
    assert results(4, world_size=2) == alone

    split = task.data.scored["test"]
    predicted = []
    for i, image_id in enumerate(split.ids):
        (objects,) = TrainedDetector(model, task.model.spec(), {}).predict([split.path(i)], threshold=0.001)
        predicted += to_coco(objects, image_id, split)
    assert predicted == alone

    # Control: if the images are padded to a common size, the results differ.
    images = [split.read(i)[0].as_subclass(torch.Tensor) / 255 for i in range(5)]
    padded = [to_coco(prediction, i, split) for prediction, i in zip(model(images), split.ids, strict=True)]
    assert [result for results in padded for result in results] != alone


def test_the_legend_lists_a_class_whose_name_begins_with_an_underscore(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: legends.append(figure.axes[0].get_legend()))
    names = ("__background__", "$disc$")
    scores = Scores({"AP50": 50.0}, {name: {"AP50": 50.0} for name in names}, dict.fromkeys(names, np.ones(101)), {})
    draw_precision_recall(tmp_path / "curves.png", scores)
    texts = [text.get_text() for text in legends[0].get_texts()]
    assert texts == ["__background__, AP50 50.0", r"\$disc\$, AP50 50.0", "all classes, AP50 50.0"]
