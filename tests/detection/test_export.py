"""Test exported detectors: the objects that they find, directly and in `metamix predict`, and what is refused."""

import json
import math
import re
from copy import deepcopy

import pytest
import torch

import metamix
from metamix.deploy import export, load_exported
from metamix.deploy.artifact import Artifact
from metamix.deploy.runtime import ExportedModel
from metamix.detection.box_match import BoxMatch
from metamix.detection.export import (
    DetectorGraph,
    ExportableDetector,
    ExportedDetector,
    exported_detector,
    image_ap,
    open_detector,
    suppress,
)
from metamix.detection.load import DetectorSpec, TrainedDetector, load_detector
from metamix.detection.options import DetectionEvalOptions
from metamix.detection.predict import FindObjects
from metamix.detection.task import Detection
from metamix.tasks.exportable import ExportOptions
from metamix.tasks.predict import main as predict
from metamix.utils.checks import DoesNotFit
from metamix.weights.files import save_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers import shapes
from tests.helpers.advice import exit_code
from tests.helpers.detectors import GOOD
from tests.helpers.exports import needs_engines
from tests.helpers.running import ROOT

CHANGES = dict(detector_args={"topk_candidates": 50, "score_thresh": 0.3}, extra="p6p7", max_size=96, anchor_scale=4.0)
SPEC = DetectorSpec.from_dict(GOOD | CHANGES, "x")


def weights(folder, **changes):
    """Write a detector that finds many objects with very different scores; return its file."""
    spec = DetectorSpec(**vars(SPEC) | changes)
    torch.manual_seed(0)
    model = spec.build()
    torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.1)  # so that no score rounds to 1
    torch.nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    metadata = spec.to_dict() | dict(mean=[0.5] * 3, std=[0.25] * 3, img_size=64)
    save_weights(folder / "detector.safetensors", model.state_dict(), metadata)
    return str(folder / "detector.safetensors")


def options(source="detector", **changes):
    return ExportOptions(source, "out", **changes)


CELLS = [(d, f, dynamic) for d in ("retinanet", "fcos") for f in ("onnx", "openvino", "torch") for dynamic in (0, 1)]
QUICK = [("retinanet", "openvino", 1), ("fcos", "onnx", 0)]


@pytest.mark.parametrize(
    ("detector", "format", "dynamic"),
    [cell if cell in QUICK else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS],
)
@needs_engines
def test_an_exported_detector_finds_the_same_objects(detector, format, dynamic, tmp_path):
    changes = dict(detector=detector, anchor_scale=4.0 if detector == "retinanet" else None)
    if format == "torch":  # its dynamic programs do not take maps of one pixel
        changes |= dict(min_size=128, max_size=192)
    source, folder = weights(tmp_path, **changes), tmp_path / "out"

    def annotate(split, data):
        """Annotate what the detector finds, so that its scores are high and depend on each of its boxes."""
        files = [tmp_path / "shapes/images" / entry["file_name"] for entry in data["images"]]
        data["annotations"], numbers = [], [shapes.DISC, shapes.SQUARE]
        for entry, objects in zip(data["images"], load_detector(source).predict(files)):
            for (x1, y1, x2, y2), label in zip(objects["boxes"].tolist()[:8], objects["labels"].tolist()):
                about = {"id": len(data["annotations"]), "image_id": entry["id"], "iscrowd": 0}
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                data["annotations"].append({"category_id": numbers[label - 1]} | about | box)

    data = shapes.write(tmp_path / "shapes", change=annotate, train=1, val=1, test=2)
    report = export(source, output=folder, format=format, dynamic=bool(dynamic), data_dir=str(data), seconds=0)
    assert report["parity"]["objects"] > 20 and report["parity"]["unmatched"] == 0
    assert report["parity"]["largest_difference_px"] < 0.05
    assert report["scores"]["eager"]["AP"] > 20
    assert report["scores"]["exported"] == pytest.approx(report["scores"]["eager"], abs=0.5)
    graph = load_exported(folder, trust=True)
    images = open_detector(options(source)).examples(2)  # two images at once
    for together, alone in zip(graph(images), zip(*(graph(image) for image in images.split(1)))):
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)
    # Boxes are equal only if the padding is equal. An image that fills a fixed graph is not padded, and a dynamic graph
    # takes images that are padded as the detector pads them.
    exported = metamix.load(folder, trust=True)
    assert exported.spec == load_detector(source).spec
    eager, match = load_detector(source).model, BoxMatch(0.3, 300)
    with torch.no_grad():
        for size in [(128, 192), (75, 60), (130, 70)] if dynamic else [(128, 192)]:
            image = torch.rand(3, *size)
            match.update(eager([image])[0], exported.model([image])[0])
    assert match.objects > 20 and not match.unmatched and match.largest < 0.1
    picture = next((data / "images").rglob("*.png"), None) or next((data / "images").rglob("*.jpg"))
    words = [picture, "--model", folder, "--threshold", 0.3, "--output", tmp_path / "drawn", "--trust"]
    assert exit_code(predict, *words) == 0
    (record,) = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert record["objects"] and {entry["class"] for entry in record["objects"]} <= {"disc", "square"}
    (objects,) = exported.predict([picture], threshold=0.3)
    assert [entry["score"] for entry in record["objects"]] == [round(score, 4) for score in objects["scores"].tolist()]


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, dict(img_size=(60, 64)), r"img_size is 60 x 64, but .* takes multiples of 16 pixels"),
        (dict(detector="faster_rcnn", detector_args={}, anchor_scale=None), {}, r"FasterRCNN; only RetinaNet and FCOS"),
    ],
)
def test_detectors_and_sizes_that_cannot_be_exported_are_refused(changes, arguments, words, tmp_path):
    spec = DetectorSpec(**vars(SPEC) | changes)
    metadata = spec.to_dict() | dict(mean=[0.5] * 3, std=[0.25] * 3, img_size=64)
    save_weights(tmp_path / "d.safetensors", spec.build().state_dict(), metadata)
    with pytest.raises(ValueError, match=words):
        open_detector(options(str(tmp_path / "d.safetensors"), **arguments))


def test_a_data_set_in_another_format_than_coco_is_refused():
    with pytest.raises(ValueError, match="^data is voc, but detection only takes a folder in COCO's format: give"):
        open_detector(options("run", data="voc", data_dir="cells"))


@pytest.mark.parametrize(
    ("extra", "model", "words"),
    [
        ({"nms_thresh": 7}, {}, "nms_thresh in extra is 7, but it must be a number from 0 to 1. Export the model"),
        ({"multiple": [32]}, {}, r"multiple in extra is \[32\], but it must be a whole number from 1 to 65,536"),
        ({}, {"std": None}, "std is missing in model. Export the model again"),
        ({}, {"classes": None}, "classes is missing in model"),
        ({}, {"num_classes": None}, "num_classes is missing in model"),
        ({}, {"detector": "retinanet2"}, "detector in the metadata is 'retinanet2'"),
    ],
)
def test_damaged_exports_are_refused(extra, model, words, tmp_path):
    exportable = open_detector(options(weights(tmp_path)))
    metadata = ModelMetadata.from_dict(exportable.metadata.to_dict() | model)
    artifact = Artifact("onnx", "fp32", metadata, (None, 3, 64, 96), exportable.outputs, exportable.extra | extra)
    with pytest.raises(ValueError, match=f"^export.json: {words}"):
        exported_detector(ExportedModel(lambda images: [], artifact))


@pytest.mark.parametrize("classes", [["disc"], ["disc", "square"], ["disc", "square", "star"]])
@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_classes_that_do_not_match_the_graph_are_refused(detector, classes, tmp_path):
    anchor_scale = 4.0 if detector == "retinanet" else None
    exportable = open_detector(options(weights(tmp_path, detector=detector, anchor_scale=anchor_scale)))
    entries = exportable.metadata.to_dict() | {"classes": classes, "num_classes": len(classes)}
    metadata = ModelMetadata.from_dict(entries | {"img_size": (128, 192)})
    artifact = Artifact("onnx", "fp32", metadata, (None, 3, None, None), exportable.outputs, exportable.extra)

    @torch.no_grad()
    def run(images):
        return [output.numpy() for output in exportable.model(torch.from_numpy(images))]

    if len(classes) == 2:
        assert exported_detector(ExportedModel(run, artifact)).classes == ("disc", "square")
        return
    with pytest.raises(ValueError, match=rf"export.json has {len(classes)} class(es)?, but the graph has a different"):
        exported_detector(ExportedModel(run, artifact))
    with pytest.raises(ValueError, match="the graph has a different number"):
        exported_detector(ExportedModel(lambda images: run(images)[:1], artifact))  # a graph of another task


@pytest.mark.parametrize("with_data", [False, True])
def test_candidates_are_compared_if_no_object_is_found(with_data, tmp_path):
    """Wrong candidates are reported even if the detector finds no object."""
    source, task = weights(tmp_path, detector_args={"topk_candidates": 50, "score_thresh": 0.999}), None
    trained = load_detector(source)
    if with_data:
        data = shapes.write(tmp_path / "shapes", train=1, val=1, test=2)
        task = Detection.for_evaluation(DetectionEvalOptions(data_dir=str(data), checkpoint=source, workers=0))[0]
    exportable = ExportableDetector(trained.model, trained.metadata, options(img_size=(64, 96)), task)
    same = exportable.compare(exportable.model, "fp32")
    assert same.parity["objects"] == 200 and same.parity["on"] == "random images" and not same.problems
    assert list(same.scores) == ["eager", "exported"] * with_data
    wrong = exportable.compare(lambda images: (exportable.model(images)[0] + 1, *exportable.model(images)[1:]), "fp32")
    assert wrong.problems == ["boxes differ by up to 1.00 pixels (limit 0.5)"]

    def blind(images):
        boxes, scores, labels = exportable.model(images)
        return boxes, torch.full_like(scores, -1), labels  # -1 marks a place without an object

    assert exportable.compare(blind, "bf16").problems == ["it finds no object, but the eager model finds 200"]


def test_comparing_runs_the_exported_model_once_for_each_image(tmp_path):
    data = shapes.write(tmp_path / "shapes", train=1, val=1, test=2)
    exportable = open_detector(options(weights(tmp_path), data_dir=str(data)))
    calls = []

    def exported(images):
        calls.append(images.shape)
        return exportable.model(images)

    comparison = exportable.compare(exported, "fp32")
    assert len(calls) == 2 and comparison.parity["objects"] > 20 and not comparison.problems


def test_a_bf16_export_that_finds_nothing_is_refused(tmp_path):
    trained = load_detector(weights(tmp_path))
    exportable = ExportableDetector(trained.model, trained.metadata, options(img_size=(64, 96)))

    def damaged(images):
        boxes, scores, labels = exportable.model(images)
        return boxes, torch.full_like(scores, -1), labels

    comparison = exportable.compare(damaged, "bf16")
    assert re.match(r"it finds no object, but the eager model finds \d+", comparison.problems[0])
    graph = deepcopy(exportable.model).bfloat16()
    rounded = exportable.compare(lambda images: [x.float() for x in graph(images.bfloat16())], "bf16")
    assert rounded.parity["objects"] > 20 and not rounded.problems


@needs_engines
def test_the_snippet_in_the_docs_finds_the_same_objects(tmp_path, monkeypatch):
    source = weights(tmp_path)
    export(source, output=tmp_path / "cells", format="openvino", dynamic=True, seconds=0)
    snippet = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    shapes.draw([(shapes.SQUARE, 5, 6, 20), (shapes.DISC, 40, 30, 25)], (90, 70)).save("cells.jpg")
    names = {}
    exec(compile(snippet, "snippet", "exec"), names)
    (expected,) = load_detector(source).predict(["cells.jpg"])
    assert len(expected["boxes"]) > 0 and len(names["cells"]["boxes"]) == len(expected["boxes"])
    near = (names["cells"]["boxes"] - expected["boxes"]).abs().amax(1) < 0.5
    assert near.float().mean() > 0.9  # boxes of nearly equal scores may change places


def test_boxes_in_the_padding_are_no_objects():
    boxes, scores = (
        torch.tensor([[[40.0, 2, 50, 8], [35, 1, 39, 5], [2, 2, 9, 9], [0, 0, 0, 0]]]),
        [[0.9, 0.8, 0.6, -1]],
    )
    outputs = boxes, torch.tensor(scores), torch.ones(1, 4, dtype=torch.int64)
    settings = {"score_thresh": 0.5, "nms_thresh": 0.5, "detections_per_img": 1}
    assert suppress(outputs, (32, 32), settings)["boxes"].tolist() == [[2, 2, 9, 9]]
    assert suppress(outputs, (32, 64), settings)["boxes"].tolist() == [[40, 2, 50, 8]]


def test_an_eager_detector_finds_no_objects_without_area(monkeypatch):
    detector = SPEC.build().eval()
    objects = {"boxes": torch.tensor([[5.0, 1, 5, 9], [2, 2, 9, 9]]), "scores": torch.tensor([0.9, 0.8])}
    objects["labels"] = torch.ones(2, dtype=torch.int64)
    monkeypatch.setattr(detector, "postprocess_detections", lambda *args: [objects])
    (found,) = detector([torch.rand(3, 64, 64)])
    assert found["scores"].tolist() == pytest.approx([0.8])


def test_predict_takes_a_threshold_below_the_score_thresh_of_the_detector(tmp_path):
    trained = load_detector(weights(tmp_path, detector_args={"topk_candidates": 50, "score_thresh": 0.999}))
    exportable = ExportableDetector(trained.model, trained.metadata, options(img_size=(64, 96)))
    shapes.draw([]).save(tmp_path / "a.png")
    exported = ExportedDetector(exportable.model, exportable.metadata, (64, 96), exportable.extra)
    command = FindObjects((tmp_path / "a.png",), threshold=0.3, output=tmp_path / "out")
    assert command.run(TrainedDetector(exported, SPEC, {})) == 0
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["objects"] and all(0.3 <= entry["score"] <= 0.999 for entry in record["objects"])


def test_an_exported_detector_refuses_nan_as_a_trained_detector_does(tmp_path):
    trained = load_detector(weights(tmp_path))
    exportable = ExportableDetector(trained.model, trained.metadata, options(img_size=(64, 96)))

    def damaged(images):
        boxes, scores, labels = exportable.model(images)
        return boxes, torch.where(scores < 0, scores, torch.nan), labels

    image = torch.rand(3, 64, 96)
    exportable.detector_of(exportable.model)([image])
    with pytest.raises(ValueError, match="the model returns NaN or infinity"):
        exportable.detector_of(damaged)([image])
    with pytest.raises(ValueError, match="the model returns NaN or infinity"):
        exportable.compare(damaged, "bf16")


def test_thin_images_are_padded_for_a_dynamic_program_of_torch(tmp_path):
    source = weights(tmp_path)
    exportable = open_detector(options(source, dynamic=True, format="torch"))
    assert exportable.extra["least"] == 80  # the first multiple of 16 above the coarsest stride, 64
    for extra, padded in ((exportable.extra, (80, 96)), (open_detector(options(source, dynamic=True)).extra, (16, 96))):
        exported = ExportedDetector(exportable.model, exportable.metadata, None, extra)
        assert exported.prepare(torch.rand(3, 20, 300))[0].shape[1:] == padded
    outputs = torch.tensor([[[0.0, 0, 96, 6]]]), torch.tensor([[0.9]]), torch.tensor([[1]])
    (box,) = exported.objects(outputs, (6, 96), torch.rand(3, 20, 300))["boxes"]  # x is scaled by 300 / 96, y by 20 / 6
    assert box.tolist() == pytest.approx([0, 0, 300, 20])


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
@torch.no_grad()
def test_a_dynamic_graph_pads_each_level_with_candidates_that_are_no_objects(detector, tmp_path):
    changes = dict(detector=detector, anchor_scale=4.0 if detector == "retinanet" else None)
    source = weights(tmp_path, detector_args={"topk_candidates": 500}, **changes)
    model, images = load_detector(source).model, torch.rand(1, 3, 64, 96)
    fixed, filled = (DetectorGraph(model, dynamic)(images) for dynamic in (False, True))
    assert filled[1].shape[1] == 500 * 4 + 1 > fixed[1].shape[1]

    def objects(boxes, scores, labels):  # sorted, since objects of equal scores may change places
        return torch.cat([boxes, scores[..., None], labels[..., None]], -1)[scores >= 0].unique(dim=0)

    assert torch.equal(objects(*fixed), objects(*filled))


@needs_engines
@pytest.mark.parametrize(
    ("detector", "format"), [("fcos", "openvino"), pytest.param("retinanet", "onnx", marks=pytest.mark.slow)]
)
def test_an_int8_detector_is_smaller_and_finds_objects(detector, format, tmp_path):
    data = shapes.write(tmp_path / "shapes", train=10, test=1)
    source = weights(tmp_path, detector=detector, anchor_scale=4.0 if detector == "retinanet" else None)
    options = dict(format=format, precision="int8", data_dir=str(data), seconds=0)
    report = export(source, output=tmp_path / "out", max_drop=90, **options)
    quantized, parity = report["quantization"], report["parity"]
    assert quantized["unit"] == "points" and quantized["calibration_images"] == 5 and not quantized["kept"]
    assert quantized["fp32_bytes"] > 1.5 * sum(report["files"].values())
    assert parity["objects"] - parity["unmatched"] > 0 and parity["largest_difference_px"] > 0.01
    assert metamix.load(tmp_path / "out").model([torch.rand(3, 64, 96)])[0]["boxes"].shape[1] == 4


def test_int8_is_scored_on_training_images_that_calibration_does_not_see(tmp_path):
    data = shapes.write(tmp_path / "shapes", train=10, test=1)
    exportable = open_detector(options(weights(tmp_path), data_dir=str(data)))
    assert (exportable.max_drop, exportable.calibration_count(500)) == (0.5, 5)
    images, seen = list(exportable.calibration(8)), []

    def graph(images):
        seen.append(images)
        return exportable.model(images)

    assert 0 <= exportable.held_out_scores(graph, 8).mean() < 30  # the detector is not trained
    assert {image.shape for image in images} == {(1, 3, 64, 96)} and len(images) == 8 and len(seen) == 2
    assert not any(torch.equal(torch.from_numpy(image), other) for image in images for other in seen)
    with pytest.raises(ValueError, match="shapes has no training split, and int8 is not calibrated on the test spli"):
        (data / "annotations" / "instances_train.json").unlink()
        open_detector(options(weights(tmp_path), data_dir=str(data))).calibration_count(500)


@pytest.mark.parametrize(
    ("boxes", "labels", "ap"),
    [
        ([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 2], 100),
        ([[0, 0, 10, 10]], [1], 50),
        ([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1], 50),  # the second box has a wrong class
        ([[0, 0, 10, 7.2], [50, 50, 60, 60]], [1, 2], 100 / 2 * (5 / 10 * 1 + 5 / 10 * 0 + 5 / 10 * 1 + 5 / 10 / 2)),
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [1, 1], 50),  # an object counts once
        ([], [], 0),
    ],
)
def test_ap_of_an_image(boxes, labels, ap):
    """The image has two objects. A box of IoU 0.72 is right at five of the ten thresholds, 0.5 to 0.7."""
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), "labels": torch.tensor([1, 2])}
    detections = {"boxes": torch.tensor(boxes).view(-1, 4).float(), "labels": torch.tensor(labels)}
    assert image_ap(detections, truth) == pytest.approx(ap, abs=1e-3)
    assert math.isnan(image_ap(detections, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}))


def objects(shift=0.0, score=0.9, label=1):
    box = torch.tensor([[10.0, 10, 20, 20]]) + shift
    return {"boxes": box, "scores": torch.tensor([score]), "labels": torch.tensor([label])}


@pytest.mark.parametrize(
    ("detections", "words"),
    [
        (objects(0.3), []),
        (objects(0.7), ["boxes differ by up to 0.70 pixels (limit 0.5)"]),
        (objects(label=2), ["1 of 1 objects are not found (limit 0.1%)"]),
        (objects(score=0.8), ["1 of 1 objects are not found (limit 0.1%)"]),
    ],
)
def test_differences_above_the_limits_are_reported(detections, words):
    match = BoxMatch(0.05, 100)
    match.update(objects(), detections)
    assert match.problems() == words
    full = BoxMatch(0.05, 1)  # the last object of a full list may be missing, so it is not compared
    full.update(objects(), detections)
    assert not full.objects


@pytest.mark.parametrize(("precision", "unmatched"), [("fp32", 1), ("int8", 0)])
def test_boxes_and_scores_may_differ_more_in_int8(precision, unmatched):
    match = BoxMatch(0.05, 100, precision)
    match.update(objects(), objects(shift=3, score=0.8))
    assert match.unmatched == unmatched


@pytest.mark.slow
def test_a_dynamic_program_of_torch_refuses_smaller_images(tmp_path):
    source, folder = weights(tmp_path, min_size=128, max_size=192), tmp_path / "out"
    export(source, output=folder, format="torch", dynamic=True, seconds=0)
    program = load_exported(folder, trust=True)
    assert len(program(torch.zeros(1, 3, 80, 96))) == 3
    with pytest.raises(DoesNotFit, match=r"model.pt2 does not take images of 64 x 96 \(Guard .*: resize them"):
        program(torch.zeros(1, 3, 64, 96))
    assert len(metamix.load(folder, trust=True).model([torch.rand(3, 20, 300)])) == 1  # the image is padded
