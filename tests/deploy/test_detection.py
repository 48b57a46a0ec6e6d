"""Test exported detectors: boxes against torchvision's, COCO's scores, `metamix predict`."""

import json

import pytest
import shapes
import torch

import metamix.cli.predict
from metamix.deploy import export, load_exported
from metamix.deploy.detection import BoxMatch, ExportedDetector
from metamix.detection.load import DetectorSpec, load_detector
from metamix.utils.tensor_files import save_weights

SPEC = DetectorSpec(
    detector="retinanet",
    detector_args={"topk_candidates": 50, "score_thresh": 0.3},
    model="metaformer_pooling_nano",
    model_args=dict(depths=[1, 1, 1], dims=[8, 8, 16]),
    classes=("disc", "square"),
    out_indices=(1, 2),
    extra="none",
    out_channels=64,
    frozen_norms=False,
    min_size=64,
    max_size=96,
    anchor_scale=4.0,
    train_on=("train",),
)


def weights(folder, **changes):
    """Write a detector that finds many objects of very different scores."""
    spec = DetectorSpec(**vars(SPEC) | changes)
    torch.manual_seed(0)
    model = spec.build()
    torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.1)  # no scores that round to 1
    torch.nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    metadata = spec.to_dict() | dict(mean=[0.5] * 3, std=[0.25] * 3, img_size=64)
    save_weights(folder / "detector.safetensors", model.state_dict(), metadata)
    return str(folder / "detector.safetensors")


@pytest.mark.parametrize(
    ("detector", "format"),
    [
        ("retinanet", "openvino"),
        pytest.param("retinanet", "onnx", marks=pytest.mark.slow),
        ("fcos", "onnx"),
        pytest.param("fcos", "openvino", marks=pytest.mark.slow),
        pytest.param("fcos", "torch", marks=pytest.mark.slow),
    ],
)
def test_boxes_and_scores(detector, format, tmp_path, monkeypatch, capsys):
    data = shapes.write(tmp_path / "shapes", train=1, val=1, test=2)
    changes = dict(detector=detector, anchor_scale=4.0 if detector == "retinanet" else None)
    source, folder = weights(tmp_path, **changes), tmp_path / "out"
    report = export(source, output=folder, format=format, data_dir=str(data), seconds=0)
    assert report["parity"]["objects"] > 20 and report["parity"]["unmatched"] == 0
    assert report["parity"]["largest_difference_px"] < 0.05
    assert set(report["scores"]["eager"]) == set(report["scores"]["exported"])
    # An image that fills the graph needs no padding: then the whole path gives the detector's objects.
    exported = ExportedDetector.of(load_exported(folder))
    image, eager = torch.rand(3, 128, 192), load_detector(source)[0]
    match = BoxMatch(0.3, 300)
    with torch.no_grad():
        match.update(eager([image])[0], exported([image])[0])
    assert match.objects > 20 and not match.unmatched and match.largest < 0.1
    picture = next((data / "images").rglob("*.png"), None) or next((data / "images").rglob("*.jpg"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        metamix.cli.predict.main([str(picture), "--model", str(folder), "--threshold", "0.3", "--output", "found"])
    assert exit.value.code == 0
    (record,) = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {entry["class"] for entry in record["objects"]} <= {"disc", "square"}


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, dict(dynamic=True), r"a detector is exported for one image size.*leave --dynamic out"),
        ({}, dict(img_size=(60, 64)), r"img_size is 60 x 64, but .* takes multiples of 16 pixels"),
        (
            dict(detector="faster_rcnn", detector_args={}, anchor_scale=None),
            {},
            r"is a FasterRCNN: exported are RetinaNet",
        ),
    ],
)
def test_refusals(changes, options, words, tmp_path):
    spec = DetectorSpec(**vars(SPEC) | changes)
    metadata = spec.to_dict() | dict(mean=[0.5] * 3, std=[0.25] * 3, img_size=64)
    save_weights(tmp_path / "d.safetensors", spec.build().state_dict(), metadata)
    with pytest.raises(ValueError, match=words):
        export(str(tmp_path / "d.safetensors"), output=tmp_path / "out", **options)


def objects(shift=0.0, score=0.9, label=1):
    box = torch.tensor([[10.0, 10, 20, 20]]) + shift
    return {"boxes": box, "scores": torch.tensor([score]), "labels": torch.tensor([label])}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (objects(0.3), []),
        (objects(0.7), ["boxes differ by up to 0.70 pixels, the limit is 0.5"]),
        (objects(label=2), ["1 of 1 objects are not found, the limit is 0.1%"]),
        (objects(score=0.8), ["1 of 1 objects are not found, the limit is 0.1%"]),
    ],
)
def test_limits_of_boxes(given, words):
    match = BoxMatch(0.05, 100)
    match.update(objects(), given)
    assert match.problems() == words
