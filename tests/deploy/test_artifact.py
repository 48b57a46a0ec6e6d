"""Test export.json and the refusals of `load_exported`."""

import re
from functools import partial

import pytest

import metamix.cli.evaluate
import metamix.tasks.predict
from metamix.classification.load import load_classifier
from metamix.deploy import export, load_exported
from metamix.deploy.artifact import Artifact, load_artifact
from metamix.deploy.formats import check_format
from metamix.deploy.runtime import ExportedModel
from metamix.detection import load_detector
from metamix.models.registry import check_model
from metamix.tasks.registry import DEFAULT, find_task
from metamix.weights.metadata import ModelMetadata
from tests.helpers.exports import edit

KNOWN = dict(
    model="resnet18", num_classes=2, classes=["cat", "dog"], mean=[0.5], std=[0.2], in_chans=1, img_size=8,
    interpolation="bicubic", crop_pct=1.0,
)  # fmt: skip
ARTIFACT = Artifact("onnx", "fp32", ModelMetadata.from_dict(KNOWN), (None, 1, 8, None), ("logits",))


def test_a_written_artifact_is_read_back_unchanged(tmp_path):
    ARTIFACT.save(tmp_path)
    assert load_artifact(tmp_path) == ARTIFACT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": {"../model.onnx": "0"}}, r"files is .*, but it must be a mapping of names of exported"),
        ({"format": "onx"}, r"format is 'onx'; did you mean 'onnx'"),
        ({"format": ["onnx"]}, r"format is \['onnx'\], but it must be a string"),
        ({"outputs": "logits"}, r"outputs is 'logits', but it must be a list"),
        ({"outputs": None}, r"export.json: outputs is missing. Export the model again"),
        ({"model": {"mean": 3}}, r"mean in the metadata is 3, but it must be a list"),
    ],
)
def test_a_damaged_export_json_is_refused(tmp_path, change, words):
    ARTIFACT.save(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(ValueError, match=words):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"task": "segmentation", "img_size": 8}}, r"scale is missing in extra\. Export the model again"),
        ({"model": {"task": "depth"}}, r"task is 'depth'. Accepted: classification, detection"),
        ({"model": {}}, r"num_classes is missing in model"),
        ({"model": KNOWN | {"mean": None}}, r"mean is missing in model"),
        ({"model": KNOWN | {"interpolation": None}}, r"interpolation is missing in model"),
    ],
)
def test_each_task_checks_the_entries_that_it_needs(tmp_path, change, words):
    ARTIFACT.save(tmp_path)
    edit(tmp_path, **change)
    artifact = load_artifact(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_task(artifact.model.task or DEFAULT).part("exported")(ExportedModel(None, artifact))


def test_another_task_is_refused(tmp_path):
    ARTIFACT.save(tmp_path)
    with pytest.raises(SystemExit, match=r"task is detection, but .* is a model for classification: leave --task out"):
        metamix.tasks.predict.main(["photo.jpg", "--model", str(tmp_path), "--task", "detection"])


def test_errors_say_what_to_give_instead_of_a_run_a_file_or_another_folder(tmp_path):
    run, exported = tmp_path / "run", tmp_path / "exported"
    for file in (run / "model.safetensors", exported / "model.onnx"):
        file.parent.mkdir()
        file.touch()
    ARTIFACT.save(exported)
    for path, words in (
        (tmp_path, "there is no export.json. Make one with metamix export MODEL --output NEW"),
        (run, f"{run} is a run: give it as --checkpoint, or export it with metamix export {run} --output NEW"),
        (exported / "model.onnx", f"model.onnx is a file of an exported model: give its folder, {exported}"),
        (run / "model.safetensors", "is a file: give a folder that metamix export wrote. If it has weights"),
    ):
        with pytest.raises(FileNotFoundError, match=re.escape(words)):
            load_exported(path)


def test_exported_model_is_not_a_checkpoint(tmp_path):
    ARTIFACT.save(tmp_path)
    words = rf"{tmp_path} is an exported model, which has no weights to load: run it with metamix predict "
    words += f"--model {tmp_path}"
    for load in (load_classifier, load_detector, partial(export, output=tmp_path / "new", format="torch")):
        with pytest.raises(ValueError, match=rf"{words}, or in Python with metamix.deploy.load_exported$"):
            load(str(tmp_path))
    for file in ("export.json", "report.json", "model.onnx"):
        (tmp_path / file).touch()
        with pytest.raises(ValueError, match=rf"{file} is a file of an exported model: .*, and metamix.load and me"):
            metamix.load(tmp_path / file)
    with pytest.raises(SystemExit, match=f"^error: {words}"):
        metamix.cli.evaluate.main(["--checkpoint", str(tmp_path)])
    with pytest.raises(ValueError, match=f"predict --model {tmp_path} runs it; metamix export --data scores"):
        check_model(str(tmp_path))
    with pytest.raises(SystemExit, match=rf"is net.pt and --model is {tmp_path}, an exported model: give one of"):
        metamix.tasks.predict.main(["photo.jpg", "--checkpoint", "net.pt", "--model", str(tmp_path)])


@pytest.mark.parametrize(
    ("format", "precision", "words"),
    [
        ("onnx", "bf16", "no bf16 kernels on a CPU: use --format openvino or torch"),
        ("torch", "int8", "use --format openvino or onnx"),
        ("openvino", "int4", "precision is 'int4'; did you mean 'int8'"),
    ],
)
def test_precisions_that_a_format_lacks_are_refused(format, precision, words):
    with pytest.raises(ValueError, match=words):
        check_format(format, precision)
