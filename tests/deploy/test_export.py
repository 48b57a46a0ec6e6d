"""Test `export` of classifiers: files, parity, refusals, and `metamix predict` with an exported model."""

import copy
import json
import logging
import pickle
import re
import sys
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from torch import nn

import metamix
import metamix.tasks.export
import metamix.tasks.predict
from metamix.classification.export import open_classifier
from metamix.data import open_data
from metamix.deploy import export, load_exported
from metamix.deploy.artifact import load_artifact
from metamix.deploy.formats import base
from metamix.deploy.formats.base import as_value_error, quiet
from metamix.mixers import list_mixers
from metamix.tasks.export import ParityError
from metamix.tasks.exportable import ExportOptions
from metamix.weights.files import save_weights
from tests.helpers.advice import exit_code

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("onnx", "openvino", "torch")
QUICK = list(zip(list_mixers(), cycle(FORMATS)))  # each mixer in one format; slow tests check the other formats
CELLS = [
    cell if cell in QUICK else pytest.param(*cell, marks=pytest.mark.slow) for cell in product(list_mixers(), FORMATS)
]


@pytest.mark.parametrize(("mixer", "format"), CELLS)
def test_every_mixer_is_exported_with_equal_outputs(mixer, format, weights, tmp_path):
    source = weights(mixer)
    report = export(source, output=tmp_path / "out", format=format, seconds=0)
    assert report["parity"]["of_the_deviation"] < 2e-5 and report["parity"]["same_top1"] == 1
    model, images = load_exported(tmp_path / "out", trust=True), torch.randn(5, 3, 16, 16)
    expected = metamix.load_classifier(source).model(images).detach()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(model(images.numpy()), np.ndarray)
    assert model.artifact.model.classes == ("cat", "dog", "eel")
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 20\) are given, but the exported model takes \(n, 3, 16, 16\)"):
        model(torch.randn(1, 3, 16, 20))


def check_sizes(source, folder, format, shapes, **options):
    """Export weights with `dynamic`, and compare the outputs for images of several shapes."""
    export(source, output=folder, format=format, dynamic=True, seconds=0, **options)
    model, eager = load_exported(folder, trust=True), metamix.load_classifier(source).model
    for shape in shapes:
        images = torch.randn(*shape)
        torch.testing.assert_close(model(images), eager(images).detach(), rtol=1e-4, atol=1e-4)


AVERAGING = [("nin", "onnx"), ("minattn", "onnx")]  # their ONNX exports average cells by matrix products


@pytest.mark.parametrize(
    ("mixer", "format"),
    [
        cell if cell in AVERAGING else pytest.param(*cell, marks=pytest.mark.slow)
        for cell in product(list_mixers(), FORMATS)
    ],
)
def test_dynamic_exports_take_images_of_other_sizes(mixer, format, weights, tmp_path):
    check_sizes(weights(mixer), tmp_path / "out", format, [(1, 3, 16, 16), (3, 3, 24, 18)])


@pytest.mark.parametrize("mixer", ["nin", "raft"])
def test_dynamic_openvino_models_resize_maps_to_one_pixel(mixer, weights, tmp_path):
    """Without a correction, OpenVINO would take the first pixel of a map; torch takes the mean of the middle pixels."""
    check_sizes(weights(mixer), tmp_path / "out", "openvino", [(2, 3, 2, 2), (1, 3, 1, 20)])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_dynamic_exports_traced_with_maps_of_one_pixel_take_images_of_other_sizes(format, weights, tmp_path):
    """torch.export treats sides of one pixel as constants. OpenVINO would then give wrong outputs without an error."""
    shapes = [(1, 3, 2, 2), (3, 3, 24, 18), (1, 3, 1, 9)]
    check_sizes(weights("wavemix", dims=(8,)), tmp_path / "out", format, shapes, img_size=2)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_dynamic_exports_of_windows_take_images_of_other_sizes(format, weights, tmp_path):
    """Incomplete windows are padded by reflection; the amount of padding is unknown if a side is symbolic."""
    source = weights("raft", mixer_args={"resample": "windows"})
    check_sizes(source, tmp_path / "out", format, [(3, 3, 24, 18)])


def test_a_dynamic_program_of_torch_needs_larger_maps(weights, tmp_path):
    options = dict(output=tmp_path / "out", format="torch", dynamic=True, seconds=0)
    source = weights("pooling", depths=(1, 1), dims=(8, 8))
    words = r"one program for images of 4 x 4 and for larger ones \(.*\): give a larger --img-size, or --format onnx"
    with pytest.raises(ValueError, match=words):
        export(source, img_size=4, **options)
    export(source, img_size=8, **options)
    assert load_exported(tmp_path / "out", trust=True)(torch.randn(3, 3, 64, 90)).shape == (3, 3)


def test_images_are_enlarged_only_to_trace_them(monkeypatch):
    """A model that is refused at every size is traced with sides up to 16 times as long, and never longer."""
    sides, tried, trace = [], [], torch.export.export

    def export(model, arguments, **options):
        sides.append(arguments[0].shape[2])
        return trace(model, arguments, **options)

    monkeypatch.setattr(torch.export, "export", export)
    monkeypatch.setattr(base, "refusal", lambda program, shape: tried.append((*shape,)) or "side <= 4")
    with pytest.raises(ValueError, match=r"torch.export fixes the sides of the images \(side <= 4\): give a larger "):
        base.to_program(nn.ReLU(), torch.zeros(2, 3, 4, 5), dynamic=True)
    assert sides == [4, 8, 16, 32, 64] and tried == [(2, 3, 2 * side, side * 5 // 2) for side in sides]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dynamic=True), r"--dynamic needs a model that also takes images of 448 x 448: Input height"),
        (dict(img_size=64), r"VisionTransformer does not take images of 3 x 64 x 64: Input height \(64\)"),
    ],
)
def test_other_sizes_are_refused_if_a_model_takes_only_one(options, words, tmp_path):
    about = {"model": "vit_tiny_patch16_224", "model_args": {"depth": 1}, "num_classes": 2}
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
    save_weights(tmp_path / "v.safetensors", vit.state_dict(), about)
    with pytest.raises(ValueError, match=words):
        export(str(tmp_path / "v.safetensors"), output=tmp_path / "out", format="torch", **options)


@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_model_can_be_pickled_and_copied(format, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(weights("identity"), output="out", format=format, seconds=0)
    trained, images = metamix.load("out", threads=1, trust=True), torch.randn(2, 3, 16, 16)
    pickled = pickle.dumps(trained)
    monkeypatch.chdir("/")
    for again in pickle.loads(pickled), copy.deepcopy(trained):
        assert again.metadata == trained.metadata and torch.equal(again.model(images), trained.model(images))


@pytest.mark.parametrize("format", ["openvino", "torch"])
def test_bf16_exports_return_float32_close_to_fp32(format, weights, tmp_path):
    source = weights("identity")
    report = export(source, output=tmp_path / "out", format=format, precision="bf16", seconds=0.01)
    model, images = load_exported(tmp_path / "out", trust=True), torch.randn(4, 3, 16, 16)
    expected = metamix.load_classifier(source).model(images).detach()
    assert model(images).dtype == torch.float32
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0.05 * float(expected.std()) + 0.02)
    assert report["speed"]["eager"].keys() == report["speed"]["exported"].keys()


def test_export_on_the_command_line_reports_scores_and_predicts(tmp_path, capsys):
    """Export shipped weights, compare them on their data set, and label images with the result."""
    folder, name = tmp_path / "out", "metaformer_pooling_nano.digits"
    words = ["--data", "digits", "--images", "50", "--seconds", "0.1"]
    metamix.tasks.export.main([name, "--output", str(folder), *words])
    said = capsys.readouterr().out
    assert "standard deviations, same class for 100.00%, on 50 images (digits, test)" in said
    report = json.loads((folder / "report.json").read_text())
    assert report["scores"]["eager"] == pytest.approx(report["scores"]["exported"], abs=1e-4)
    assert report["scores"]["eager"]["top1"] > 90
    assert report["files"]["model.onnx"] > 100_000 and report["speed"]["exported"]["batch_8_ms"] > 0
    image, _ = open_data("digits").test.read(0)
    image.save(tmp_path / "digit.png")
    printed = []
    for words in (["--model", folder], ["--checkpoint", name, "--device", "cpu"]):
        assert exit_code(metamix.tasks.predict.main, tmp_path / "digit.png", *words) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.parametrize("size", [(16, 16), (75, 52), (40, 61)])
def test_the_onnxruntime_snippet_in_the_docs_gives_the_predicted_label(size, weights, tmp_path, monkeypatch, capsys):
    """The snippet of docs/deploy.md prints the label of `metamix predict`, even if the photo lies on its side."""
    folder = tmp_path / "raft-onnx"
    export(weights("identity"), output=folder, format="onnx", seconds=0)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    on_its_side = Image.Exif()
    on_its_side[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=100, exif=on_its_side)
    words = ["--model", folder, "--top", 1, "--format", "json"]
    assert exit_code(metamix.tasks.predict.main, tmp_path / "photo.jpg", *words) == 0
    label = json.loads(capsys.readouterr().out)[0]["labels"][0]
    snippet = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.S)[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(snippet, "snippet", "exec"), names)
    assert capsys.readouterr().out == f"{label['label']}\n"
    probability = float(torch.tensor(names["logits"][0]).softmax(0).max())
    assert probability == pytest.approx(label["probability"], abs=1e-5)  # the label may be right by chance


@pytest.mark.slow
def test_the_program_replaces_a_compiled_package_that_cannot_be_loaded(weights, tmp_path, caplog):
    source, folder = weights("pooling"), tmp_path / "out"
    export(source, output=folder, format="torch", compile=True, seconds=0)
    package = folder / "model.compiled.pt2"
    assert package.is_file()
    images = torch.randn(3, 3, 16, 16)
    compiled = load_exported(folder, trust=True)(images)
    package.write_bytes(b"of another machine")
    load_artifact(folder).save(folder)
    torch.testing.assert_close(load_exported(folder, trust=True)(images), compiled, rtol=1e-4, atol=1e-4)
    assert "): using the uncompiled program" in caplog.text


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_loses_no_more_than_the_limit(format, tmp_path):
    """The limit applies to training images that calibration does not see. Scores on test images are only reported."""
    folder, name = tmp_path / "out", "metaformer_pooling_nano.digits"
    options = dict(format=format, precision="int8", data="digits", images=100, calibration_images=32, seconds=0)
    report = export(name, output=folder, max_drop=1.0, **options)
    quantization = report["quantization"]
    assert quantization["drop"] <= 1.0 and quantization["fp32"] > 98
    assert report["scores"]["exported"]["top1"] >= report["scores"]["eager"]["top1"] - 2
    assert report["parity"]["largest_difference"] > 1e-3  # the exported model is not fp32
    sizes = report["files"]
    assert sum(sizes.values()) < 0.4 * 4 * sum(p.numel() for p in metamix.load_classifier(name).model.parameters())
    assert load_exported(folder)(torch.randn(3, 1, 32, 32)).shape == (3, 10)


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (-0.001, "lost 0.00 dB on 21 training images (limit 0.1), 1"),
        (-0.02, "gained 0.02 dB on 21 training images (limit 0.1), 1"),
        (0.2, "lost 0.20 dB on 21 training images (limit 0.1; the loss is within the noise), 1"),
    ],
)
def test_the_last_line_says_what_int8_gained_and_lost(drop, said):
    quantized = dict(fp32_bytes=6e6, drop=drop, unit="dB", max_drop=0.1, kept=["a"], layers=9, images=21)
    report = dict(format="onnx", precision="int8", files={"a": 1e6, "b": 5e5}, quantization=quantized)
    report["speed"] = {"eager": {"batch_1_ms": 9}, "exported": {"batch_1_ms": 3}}
    line = metamix.tasks.export.gains(report)
    assert line.startswith("onnx int8: 1.5 MB, 4.0 times smaller than fp32; one image runs 3.0 times as fast as in")
    assert said in line and line.endswith("1 of 9 layers kept in fp32")


def test_small_training_splits_keep_half_for_the_score():
    classifier = open_classifier(ExportOptions("metaformer_pooling_nano.digits", Path("out"), data="digits"))
    total = len(classifier.training_images)
    assert classifier.calibration_count(32) == 32
    assert classifier.calibration_count(10_000) == total - total // 2


def test_the_program_holds_no_image_of_the_data(tmp_path):
    options = dict(format="torch", data="digits", images=9, seconds=0)
    export("metaformer_pooling_nano.digits", output=tmp_path / "out", **options)
    ((example,), _) = torch.export.load(tmp_path / "out" / "model.pt2").example_inputs
    classifier = open_classifier(ExportOptions("metaformer_pooling_nano.digits", tmp_path / "out", data="digits"))
    images, _ = next(iter(classifier.batches(classifier.task.data.splits.test, 2)))
    assert example.shape == images.shape and not torch.equal(example, images)


def test_a_file_that_does_not_name_its_model_needs_the_name(tmp_path):
    name = "metaformer_pooling_nano"
    file, folder = str(tmp_path / "plain.pt"), str(tmp_path / "out")
    torch.save(timm.create_model(name, num_classes=3).state_dict(), file)
    words = [file, "--format", "torch", "--output", folder, "--seconds", "0"]
    with pytest.raises(SystemExit, match=r"plain.pt does not name its model; give model=NAME, or --model"):
        metamix.tasks.export.main(words)
    metamix.tasks.export.main([*words, "--model", name])
    model = load_exported(folder, trust=True)
    assert model(torch.zeros(2, *model.artifact.input_shape[1:])).shape == (2, 3)
    named = ExportOptions("metaformer_pooling_nano.digits", Path("out"), model="metaformer_pooling_nano")
    assert len(open_classifier(named).metadata.classes) == 10


@pytest.mark.parametrize("step", ["check_runs", "ExportedModel", "file_sizes"])
def test_a_failed_export_keeps_the_earlier_one(step, weights, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is full")

    source, folder = weights("identity"), tmp_path / "out"
    export(source, output=folder, format="torch", seconds=0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is full"):
        patch.setattr(sys.modules["metamix.tasks.export"], step, fail)
        export(source, output=folder, format="openvino", seconds=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load_exported(folder, trust=True)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    export(source, output=folder, format="openvino", seconds=0)
    assert {path.name for path in folder.iterdir()} == before.keys() - {"model.pt2"} | {"model.xml", "model.bin"}


def test_files_of_a_killed_export_do_not_block_the_folder(weights, tmp_path):
    (tmp_path / "out" / ".export-12345678.tmp").mkdir(parents=True)
    (tmp_path / "out" / ".export-12345678.tmp" / "model.pt2").write_bytes(b"half")
    export(weights("identity"), output=tmp_path / "out", format="torch", seconds=0)
    assert not (tmp_path / "out" / ".export-12345678.tmp").exists()
    load_exported(tmp_path / "out", trust=True)


def test_an_export_with_other_outputs_is_refused(weights, tmp_path, monkeypatch):
    def fuse(model, images=None):  # a rewrite that is wrong
        return nn.Sequential(model.eval(), nn.Linear(3, 3))

    monkeypatch.setattr(sys.modules["metamix.tasks.export"], "fuse", fuse)
    with pytest.raises(ParityError, match=r"model.pt2 does not match .*: the outputs differ by up to .* of"):
        export(weights("identity"), output=tmp_path / "out", format="torch", seconds=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    with pytest.raises(FileNotFoundError, match="is not an exported model"):
        load_exported(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(format="onix"), r"format is 'onix', but it must be one of onnx, openvino, torch; did you mean 'onnx'\?"),
        (dict(precision="bf16"), r"no bf16 kernels on a CPU: use --format openvino or torch"),
        (dict(precision="int8"), r"int8 is calibrated on images of the training split: give --data NAME or --data-dir"),
        (dict(source="metaformer_raft_s12"), r"names a model but no weights: train it, and export the run folder"),
        (dict(source="metaformer_pooling_nano"), r"no weights: give a name with a tag, metaformer_pooling_nano.c"),
        (dict(max_drop=0.0), r"--max-drop has no effect without --precision int8; give both or neither"),
        (dict(search_minutes=1), r"--search-minutes has no effect without --precision int8"),
        (dict(calibration_images=9), r"--calibration-images has no effect without --precision int8"),
        (dict(images=5), r"--images has no effect without --data or --data-dir"),
        (dict(source="resnet18", model="resnet18"), r"model is resnet18, but resnet18 names its model: leave"),
        (dict(model="resnet18"), r"holds the weights of metaformer_pooling_nano, not of resnet18"),
        (dict(data_dir="photos"), r"there is no folder .*photos"),
        (dict(source="runs/none"), r"runs/none"),
        (dict(compile=True), r"--compile has no effect without --format torch"),
    ],
)
def test_exports_with_wrong_options_are_refused(options, words, tmp_path):
    arguments = dict(source="metaformer_pooling_nano.digits", output=tmp_path / "out") | options
    with pytest.raises((ValueError, OSError), match=words):
        export(**arguments)


def test_a_model_that_torch_export_cannot_record_is_refused(weights, tmp_path, monkeypatch):
    class Reads(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    monkeypatch.setattr(sys.modules["metamix.tasks.export"], "fuse", lambda model, images=None: Reads())
    with pytest.raises(ValueError, match=r"^torch.export cannot trace the model: \S+"):
        export(weights("identity"), output=tmp_path / "out", format="torch", seconds=0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Violated (batch)!:\n\n  batch was fixed to 1\nUse", "Violated (batch)!: batch was fixed to 1"),
        ("\nno kernel\nframe 1", "no kernel"),
        (
            "a.cpp:1:\nIt failed:\nNot all.\nSummary:\n-- No rule: aten.x\n",
            "a.cpp:1: It failed: Not all. -- No rule: aten.x",
        ),
        ("", "RuntimeError"),
    ],
)
def test_errors_of_exporters_are_shortened_to_one_line(message, words):
    with pytest.raises(ValueError) as error, as_value_error("it fails"):
        raise RuntimeError(message)
    assert str(error.value) == f"it fails: {words}"


def test_number_of_threads_is_restored(weights, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        export(weights("identity"), output=tmp_path / "out", format="torch", threads=1, seconds=0.01)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_file_that_the_engine_cannot_load_is_reported(weights, tmp_path):
    export(weights("identity"), output=tmp_path / "out", format="onnx", seconds=0)
    (tmp_path / "out" / "model.onnx").write_bytes(b"of a later version")
    load_artifact(tmp_path / "out").save(tmp_path / "out")
    with pytest.raises(ValueError, match=r"model.onnx cannot be loaded \(.+\): copy the folder again or export again"):
        load_exported(tmp_path / "out")


def test_predict_refuses_a_missing_folder_of_an_export():
    with pytest.raises(SystemExit, match="there is no folder raft-onx: --model is a folder that metamix export"):
        metamix.tasks.predict.main(["photo.jpg", "--model", "raft-onx"])


@pytest.mark.parametrize("name", ["thesis.txt", "model.onnx"])
def test_an_output_with_other_files_is_refused(name, tmp_path):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(ValueError, match=rf"holds other files \({name}\): give a new folder"):
        export("metaformer_pooling_nano.digits", output=tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is a file: give a folder"):
        export("metaformer_pooling_nano.digits", output=tmp_path / name)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="openvino is missing: pip install"):
        export("metaformer_pooling_nano.digits", output=tmp_path / "out", format="openvino")


def test_exporters_are_silenced_only_while_they_run():
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with quiet():
            assert logging.root.manager.disable == logging.WARNING
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(before)
