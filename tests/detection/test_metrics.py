"""COCO's scores: known answers, what counts and what does not, and the way from a detector's answer and back."""

import pytest
import torch

from metamix.detection.coco import find_splits, open_split
from metamix.detection.metrics import from_coco, score, to_coco


@pytest.fixture
def source(coco):
    return open_split(find_splits(coco()), "test", masks=True)


def truth(source, move=0.0, surety=0.9):
    """A detector's answers: all that is there, `move` of its width to the right."""
    answers = {}
    for i, image_id in enumerate(source.ids):
        _, target = source.read(i)
        boxes = target["boxes"].as_subclass(torch.Tensor).clone()
        boxes[:, ::2] += move * (boxes[:, 2:3] - boxes[:, :1])
        masks = target["masks"].as_subclass(torch.Tensor)[:, None].float()
        answers[image_id] = {
            "boxes": boxes,
            "labels": target["labels"],
            "masks": masks,
            "scores": torch.full((len(boxes),), surety),
        }
    return answers


def results(source, answers):
    return [result for image_id, answer in answers.items() for result in to_coco(answer, image_id, source)]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_scores_100(source, kind):
    scores = score(source, results(source, truth(source)), kind)
    assert scores.summary["AP"] == scores.summary["AP50"] == scores.summary["AP_small"] == pytest.approx(100)
    assert "AP_large" not in scores.summary  # there is none
    for name in ("disc", "square"):
        assert scores.classes[name] == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}
    assert set(scores.images) == set(source.ids) and set(scores.images.values()) == {1.0}
    assert all((curve == 1).all() for curve in scores.precision.values())


def test_nothing_scores_nothing(source):
    scores = score(source, [])
    assert scores.summary["AP"] == scores.summary["AP50"] == scores.summary["AR_100"] == 0
    assert scores.images == {10: 0.0, 11: 0.0, 12: 0.0, 13: 1.0}  # the last shows nothing, and nothing was found


def test_a_box_that_overlaps_by_two_thirds_counts_for_a_third_of_ap(source):
    """Moved by a fifth of its width: IoU 0.8 / 1.2 = 0.667, enough for thresholds 0.5, 0.55, 0.6 and 0.65 of ten."""
    scores = score(source, results(source, truth(source, move=0.2)))
    assert scores.summary["AP50"] == pytest.approx(100) and scores.summary["AP75"] == 0
    assert scores.summary["AP"] == pytest.approx(40)


def test_masks_are_measured_apart_from_boxes(source):
    answers = truth(source)
    for answer in answers.values():
        answer["masks"][..., 48:, :] = 0
        answer["masks"][..., ::2] = 0  # every second column
    found = results(source, answers)
    assert score(source, found).summary["AP50"] == pytest.approx(100)
    assert score(source, found, "segm").summary["AP50"] < 60
    assert score(source, found).summary["AP50"] == pytest.approx(100)
    assert "counts" not in str(source.coco.anns)  # scoring leaves detections and truth as they are


def test_a_surer_mistake_costs_half(source):
    """Each object found once, and in each place a surer one of nothing: precision is a half or less at all recalls."""
    found = results(source, truth(source, surety=0.6))
    wrong = [dict(result, bbox=[0, 50, 3, 3], score=0.9) for result in found]
    scores = score(source, found + wrong)
    assert scores.summary["AP50"] == pytest.approx(50)
    assert scores.images[10] == pytest.approx(2 / 3)  # F1 of precision 1/2 and recall 1
    unsure = [dict(result, score=0.4) for result in wrong]
    assert score(source, found + unsure).summary["AP50"] == pytest.approx(100)
    assert set(score(source, found + unsure).images.values()) == {1.0}


def test_annotation_0_can_be_found(source):
    """pycocotools takes a match with it for none; the sets here count from 0, as many files do."""
    assert 0 not in source.coco.anns and len(source.coco.anns) == sum(len(a["boxes"]) for a in truth(source).values())
    source.coco.dataset["annotations"][0]["id"] = 0
    source.coco.createIndex()
    assert score(source, results(source, truth(source))).summary["AP50"] < 99


def test_what_lies_in_a_crowd_is_no_mistake(coco):
    def crowd(split, data):
        for annotation in data["annotations"]:
            if annotation["image_id"] == 10:
                annotation["iscrowd"] = 1
                annotation["segmentation"] = {"size": [64, 96], "counts": [64 * 96]}

    folder = coco(change=crowd)
    source = open_split(find_splits(folder), "test")
    assert len(source.read(0)[1]["boxes"]) == 0
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in source.coco.anns.values()
    ]
    assert score(source, found).summary["AP50"] == pytest.approx(100)
    outside = [dict(result, bbox=[0, 0, 5, 5]) if result["image_id"] == 10 else result for result in found]
    assert score(source, outside).summary["AP50"] < 99


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
def test_what_nobody_could_find_is_not_missed(coco, change):
    """Training leaves it out, so the scores do, and it is counted."""

    def spoil(split, data):
        data["annotations"][0] |= change

    source = open_split(find_splits(coco(change=spoil)), "test", masks=True)
    assert source.useless == 1 and source.objects == len(source.coco.anns)
    scores = score(source, results(source, truth(source)))
    assert scores.summary["AP"] == scores.summary["AR_100"] == pytest.approx(100)
    assert set(scores.images.values()) == {1.0}


def test_what_reaches_into_an_image_is_scored(coco):
    """The control: a box of which half a pixel lies inside of the image."""

    def spill(split, data):
        data["annotations"][0]["bbox"] = [95.5, 6, 7, 8]

    source = open_split(find_splits(coco(change=spill)), "test")
    assert source.useless == 0 and source.objects == len(source.coco.anns)


def test_detections_come_back(source):
    answer = truth(source)[10]
    again = from_coco(to_coco(answer, 10, source), source)
    for key in ("boxes", "labels", "scores"):
        torch.testing.assert_close(again[key], answer[key])
    assert from_coco([], source)["boxes"].shape == (0, 4)
    background = {key: value[:1] for key, value in answer.items()} | {"labels": torch.tensor([0])}
    assert to_coco(background, 10, source) == []
