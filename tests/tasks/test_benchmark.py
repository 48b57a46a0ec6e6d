"""Test `metamix benchmark` on a trained model of every task, and on an exported model."""

import json
from importlib import import_module

import pytest
import timm
import torch

from metamix.deploy import export
from metamix.detection.load import DetectorSpec
from metamix.models.image_models import create_image_model
from metamix.tasks.benchmark import main
from metamix.weights.files import save_weights
from tests.helpers.detectors import GOOD
from tests.helpers.segmenters import SPEC


def classifier():
    about = dict(model="metaformer_pooling_nano", model_args=dict(depths=(1,), dims=(8,)))
    model = timm.create_model(about["model"], num_classes=2, **about["model_args"])
    size = dict(in_chans=3, num_classes=2, img_size=32, mean=[0.5] * 3, std=[0.25] * 3)
    return model, about | size | dict(task="classification", classes=["cat", "dog"])


def detector():
    changes = dict(detector="fcos", classes=["disc"], max_size=96, anchor_scale=None, train_on=[])
    spec = DetectorSpec.from_dict(GOOD | changes, "x")
    return spec.build(), spec.to_dict() | dict(mean=[0.5] * 3, std=[0.25] * 3, img_size=64)


def segmenter():
    return SPEC.build(), SPEC.to_dict()


def restorer():
    about = dict(model="wavemix_sisr_144_4", model_args=dict(dim=8, depth=1))
    model = create_image_model(about["model"], **about["model_args"])
    return model, about | dict(
        task="restoration", in_chans=3, channels="rgb", enlarge=1, degradation="downscale:2", test_share=0.4
    )


def measure(folder, *words):
    main([*map(str, words), "--seconds", "0", "--batch-sizes", "1", "--json", f"{folder}/s.json"])
    return json.loads((folder / "s.json").read_text())


@pytest.mark.parametrize(
    ("make", "size", "words"),
    [(classifier, 32, []), (detector, "64x96", []), (segmenter, 32, []), (restorer, 64, ["--img-size", 64])],
)
def test_trained_models_are_timed(make, size, words, tmp_path, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'metamix[deploy]'")
    pytest.importorskip("nncf", reason="nncf is not installed: pip install 'metamix[deploy]'")
    model, about = make()
    save_weights(tmp_path / "trained.safetensors", model.state_dict(), about)
    result = measure(tmp_path, tmp_path / "trained.safetensors", *words, "--engines", "eager,openvino")
    assert not result["failed"] and {row["img_size"] for row in result["rows"]} == {size}
    cells = [(row["engine"], row["precision"]) for row in result["rows"]]
    assert cells == [("eager", "fp32"), ("eager", "bf16"), *(("openvino", p) for p in ("fp32", "bf16", "int8"))]
    assert result["machine"]["cpu"] in capsys.readouterr().out


@pytest.mark.slow
def test_an_exported_model_is_timed_together_with_its_original(tmp_path, capsys):
    model, about = segmenter()
    save_weights(tmp_path / "trained.safetensors", model.state_dict(), about)
    source, folder = tmp_path / "trained.safetensors", tmp_path / "street"
    export(source, output=folder, format="torch", seconds=0)
    words = ["--engines", "eager", "--precisions", "fp32", "--trust"]
    eager, exported = measure(tmp_path, source, folder, *words)["rows"]
    assert (exported["model"], exported["engine"], exported["precision"]) == (str(folder), "torch", "fp32")
    assert exported["speedup"] == pytest.approx(eager["ms"] / exported["ms"], abs=0.02)
    eager, _ = measure(tmp_path, folder, *words, "--reference", source)["rows"]
    assert (eager["model"], eager["speedup"]) == (str(source), 1)
    assert measure(tmp_path, folder, source, *words)["reference"] == str(source)  # an export cannot run in eager mode
    capsys.readouterr()
    assert measure(tmp_path, folder, *words)["reference"] is None and "speedup:" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="reference is .*street, an export, which does not run in eager fp32: give a"):
        measure(tmp_path, folder, *words, "--reference", folder)
    with pytest.raises(SystemExit, match="img_size is 64, but .*street takes 32 x 32 pixels: leave it out"):
        measure(tmp_path, folder, *words, "--img-size", 64)
    with pytest.raises(SystemExit, match="model.pt2 is not loaded: .* give --trust"):
        measure(tmp_path, folder, "--engines", "eager")


def test_an_exported_model_has_as_many_threads_as_the_other_models(monkeypatch):
    module, given = import_module("metamix.tasks.benchmark"), []

    def load(source, threads, trust):
        given.append(threads)
        raise FileNotFoundError

    monkeypatch.setattr(module, "is_exported", lambda source: True)
    monkeypatch.setattr(module, "load_exported", load)
    for threads in (None, 3):
        with pytest.raises(FileNotFoundError):
            module.open_model("street", None, threads, False)
    assert given == [torch.get_num_threads(), 3]


def test_trust_is_refused_without_an_exported_model(tmp_path):
    demo = import_module("metamix.tasks.demo")
    for call in (lambda: measure(tmp_path, "resnet18", "--trust"), lambda: demo.main(["--trust"])):
        with pytest.raises(SystemExit, match="--trust is for exported models, .*: leave it out"):
            call()


def test_the_command_fails_if_no_model_can_be_timed(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no model could be timed: the lines above say why"):
        measure(tmp_path, "vit_tiny_patch16_224", "--img-size", 8, "--engines", "eager", "--precisions", "fp32")
    assert "vit_tiny_patch16_224 eager fp32 failed: " in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["failed"]
