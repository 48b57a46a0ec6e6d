"""Test how RetinaNet's anchor scale is chosen, and where it is kept."""

import re

import pytest
import torch
import yaml

from metamix.cli.train import READER
from metamix.detection.anchors import choose_anchor_scale, describe_sizes
from metamix.detection.annotations import box_sizes, usable_annotations
from metamix.detection.task import Detection, DetectionEvalOptions, DetectionOptions
from metamix.weights.files import load_weights, save_weights
from tests.helpers.detectors import DETECTION, SMALL
from tests.helpers.running import train

STRIDES = (8, 16, 32, 64, 128)  # the paper's scale gives anchors from 32 to 813 pixels


@pytest.mark.parametrize(
    "sizes, strides, scale",
    [
        ((32, 813), STRIDES, 4.0),
        ((100, 300), STRIDES, 4.0),
        ((20, 300), STRIDES, 2.5),  # the smallest anchor has 20 pixels
        ((200, 1000), STRIDES, 4.92),  # the largest anchor has 1000 pixels
        ((16, 160), (8, 16), 2.0),  # no scale covers both: the small boxes decide
        ((3, 40), STRIDES, 1.0),
        ((), STRIDES, 4.0),
    ],
)
def test_anchor_scale_covers_the_boxes(sizes, strides, scale):
    many = torch.zeros(0)
    if sizes:  # so that the quantiles of 5 % and 95 % are `sizes`
        margin = (sizes[1] - sizes[0]) / 18
        many = torch.linspace(sizes[0] - margin, sizes[1] + margin, 1001)
    assert choose_anchor_scale(many, strides) == pytest.approx(scale, abs=0.011)


def test_more_than_16_million_boxes_can_be_measured():
    sizes = torch.tensor([50.0]).expand(2**24 + 1)
    assert choose_anchor_scale(sizes, STRIDES) == 4.0
    assert describe_sizes(sizes, None) == "boxes are 50 to 50 pixels large (5 % to 95 %, median 50)"


def test_sizes_of_boxes_are_measured_in_the_resized_image():
    images = {1: {"id": 1, "width": 400, "height": 200}, 2: {"id": 2, "width": 100, "height": 100}, 3: {"id": 3}}

    def annotation(image, *box, iscrowd=0):
        return {"image_id": image, "category_id": 1, "bbox": list(box), "iscrowd": iscrowd}

    annotations = [
        annotation(1, 10, 10, 40, 90),  # 60 pixels, and the image is doubled
        annotation(2, 50, -30, 90, 80),  # cut to 50 x 50, and the image is enlarged 4 times
        annotation(2, 0, 0, 10, 10, iscrowd=1),
        annotation(2, 0, 0, 0, 10),
        annotation(2, 99.99999999999999, 0, 1e-20, 10),  # the width is rounded to 0
        annotation(2, 0, 0, float("nan"), 10),
        annotation(3, 0, 0, 10, 10),
        annotation(9, 0, 0, 10, 10),
    ]
    data = {"images": [*images.values()], "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    usable = usable_annotations(data)
    assert box_sizes(usable, images, 400, 800) == pytest.approx([120, 200])
    assert box_sizes(usable, images, 400, 600) == pytest.approx([90, 200])  # max_size limits the longer side
    assert describe_sizes(torch.tensor([120.0, 200]), (32, 813)) == (
        "boxes are 124 to 196 pixels large (5 % to 95 %, median 160); anchors are 32 to 813"
    )


def anchors(model):
    return [round(level[0], 2) for level in model.anchor_generator.sizes]


def test_anchor_scale_is_kept_in_recipe_and_weights(few, tmp_path, capsys):
    words = [*DETECTION, "--data-dir", few, "--epochs", 1, "--batch-size", 2]
    train(*words, "--dry-run")
    sizes = r"boxes are 17 to 2\d pixels large .5 % to 95 %, median \d+.; anchors are 17 to"
    assert re.search(sizes, capsys.readouterr().out)
    train(*words, "--output", tmp_path)
    _, metadata = load_weights(tmp_path)
    scale = metadata["anchor_scale"]
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe["anchor_scale"] == scale == pytest.approx(2.15, abs=0.02)
    train(*words, "--output", tmp_path)  # the run is finished, since auto gives the same recipe
    assert "is finished" in capsys.readouterr().out

    task, model, _ = Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(tmp_path)))
    assert anchors(model) == [8 * scale, 16 * scale]
    assert task.model.describe(model)["anchor_scale"] == scale


def test_fine_tuning_keeps_the_anchors_of_the_detector(few, tmp_path):
    options, weights = dict(SMALL, data_dir=str(few)), tmp_path / "w.safetensors"
    start = Detection(DetectionOptions(**options, anchor_scale=3.5)).model
    save_weights(weights, (model := start.build()).state_dict(), start.describe(model))
    tuned = Detection(DetectionOptions(**options, checkpoint=str(weights)))
    assert tuned.options.anchor_scale == 3.5 and anchors(tuned.model.build()) == [28, 56]
    chosen = Detection(DetectionOptions(**options, checkpoint=str(weights), anchor_scale=2.0))
    assert chosen.options.anchor_scale == 2.0
    save_weights(weights, model.state_dict(), start.describe(model) | {"anchor_scale": None})  # as metamix 0.2 did
    assert Detection(DetectionOptions(**options, checkpoint=str(weights))).options.anchor_scale == 4.0
    weights.unlink()  # a resumed run does not need this file
    resumed = Detection(DetectionOptions(**options, checkpoint=str(weights)))
    assert anchors(resumed.model.build(start.describe(model))) == [28, 56] and resumed.options.anchor_scale == 3.5


def test_anchor_scale_in_detector_args_is_still_accepted(few):
    options = dict(SMALL, data_dir=str(few), detector_args={"anchor_scale": 3})
    task = Detection(DetectionOptions(**options))
    assert task.options.anchor_scale == 3 and anchors(task.model.build()) == [24, 48]


@pytest.mark.parametrize("scale", ["auto", 3.0])
def test_flag_wins_over_anchor_scale_of_recipe(scale):
    assert READER.read("bccd/retinanet", None, {"anchor_scale": scale}).options.anchor_scale == scale


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(anchor_scale=3.0, detector_args={"anchor_scale": 2}), "anchor_scale is 3.0, but 2 in detector_args"),
        (dict(anchor_scale=2.0, detector="fcos"), "anchor_scale is 2.0, but only retinanet takes it, not fcos"),
    ],
)
def test_wrong_anchor_scales_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DetectionOptions(**options)
