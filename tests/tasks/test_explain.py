"""Test `metamix explain`: it explains classifiers and detectors correctly, and refuses other models."""

import json
import sys
from importlib.util import find_spec

import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import interpolate

import metamix
from metamix.classification.explain import explain_label
from metamix.deploy import export
from metamix.detection.explain import explain_object, without_padding
from metamix.detection.load import DetectorSpec, TrainedDetector
from metamix.tasks import explain
from metamix.tasks.explain import watched_mixers
from metamix.utils.checks import DoesNotFit
from tests.helpers.detectors import GOOD
from tests.helpers.running import metamix_command

DIGITS = "metaformer_pooling_nano.digits"
with_grad_cam = pytest.mark.skipif(not find_spec("pytorch_grad_cam"), reason="needs grad-cam: metamix[explain]")


@pytest.fixture
def digit(tmp_path):
    image = Image.new("L", (32, 32))
    image.paste(255, (14, 5, 18, 28))
    image.save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.fixture
def no_grad_cam(monkeypatch):
    """Replace the class activation maps of grad-cam with a ramp, so that grad-cam need not be installed."""

    def ramp(model, layers, image, score):
        score(model(image[None])[0])
        return torch.linspace(0, 1, image[0].numel()).view(image.shape[1:])

    for task in ("classification", "detection"):
        monkeypatch.setattr(f"metamix.{task}.explain.activation_map", ramp)
    monkeypatch.setattr(explain, "need", lambda *package: None)


@with_grad_cam
def test_the_activation_map_is_the_sum_of_channels_weighted_by_the_head(digit):
    """With mean pooling and a linear head, HiResCAM weights the last feature map's channels by the label's weights."""
    trained = metamix.load(DIGITS)
    shown = explain_label(trained, digit, "8")
    assert shown.scores[shown.explained][0] == "8"
    image = trained.transform(Image.open(digit))[None]
    with torch.no_grad():
        maps = trained.model.forward_features(image)
        weighted = (maps * trained.model.head.weight[8][:, None, None]).sum(1, keepdim=True).relu()
    expected = interpolate(scaled(weighted), (32, 32), mode="bilinear")[0, 0]
    torch.testing.assert_close(shown.activation, scaled(expected), atol=1e-4, rtol=0)


@with_grad_cam
def test_frozen_models_get_the_same_activation_maps(digit):
    for trained, explain_one in (metamix.load(DIGITS), explain_label), (detector(), explain_object):
        expected = explain_one(trained, digit, None).activation
        trained.model.requires_grad_(False)
        assert torch.equal(explain_one(trained, digit, None).activation, expected)


def scaled(values):
    values = values - values.min()
    return values / values.max()


def detector(**arguments):
    """Make a detector with random weights. Its scores are near 0.5, or near 1/3 if it is a Faster R-CNN."""
    torch.manual_seed(0)
    spec = DetectorSpec.from_dict(GOOD | arguments, "x")
    model = spec.build().eval()
    for head in (getattr(model, "head", None), getattr(model, "roi_heads", None)):
        for name, parameter in head.named_parameters() if head else ():
            if name.endswith("cls_logits.bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return TrainedDetector(model, spec, {})


@with_grad_cam
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(detector="fcos", anchor_scale=None, out_indices=[0, 1, 2]),
        dict(detector="faster_rcnn", anchor_scale=None, extra="pool"),
        dict(model="minattn_minimal_nomlp_h1_cifar", model_args={}, out_indices=[1, 2]),
        dict(model="resnet10t", model_args={}, out_indices=[1, 2, 3]),
    ],
    ids=lambda arguments: " ".join(map(str, arguments.values())) or "retinanet",
)
def test_every_kind_of_detector_is_explained(arguments, digit):
    trained = detector(**arguments)
    pyramid = trained.model.backbone.pyramid
    shown = explain_object(trained, digit, "square")
    assert trained.model.backbone.pyramid is pyramid
    assert shown.activation.shape == (32, 32) and 0 <= shown.activation.min() < shown.activation.max() <= 1
    (objects,) = trained.predict([digit], threshold=0.05)
    best = objects["scores"][objects["labels"] == 2].max().item()
    assert shown.scores[shown.explained] == ("square", pytest.approx(best))
    drawn = [score for score in objects["scores"].tolist() if score >= 0.5 or score == best]
    assert len(shown.boxes) == len(shown.scores) and [score for _, score in shown.scores] == pytest.approx(drawn)


def test_the_activation_map_is_cropped_to_the_image_without_padding():
    ramp = torch.arange(8.0).expand(8, 8)
    assert without_padding(ramp, (1.0, 0.5))[:, [0, -1]].unique().tolist() == [0.0, 3.0]


def test_the_image_covers_a_share_of_the_padded_image(no_grad_cam, tmp_path):
    Image.new("RGB", (48, 20)).save(tmp_path / "wide.png")  # resized to 120 x 50 pixels, and padded to 128 x 64
    assert explain_object(detector(), tmp_path / "wide.png", None).covers == (50 / 64, 120 / 128)


def test_an_image_without_objects_is_refused(digit, no_grad_cam):
    trained = detector()
    torch.nn.init.constant_(trained.model.head.classification_head.cls_logits.bias, -20)
    with pytest.raises(DoesNotFit, match=r"digit.png: the detector finds no square, so there is nothing to explain"):
        explain_object(trained, digit, "square")


def test_each_image_of_a_folder_gets_a_picture(digit, no_grad_cam, rendered_figures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = ["explain", tmp_path, "--checkpoint", DIGITS, "--label", "8", "--device", "cpu"]
    for _ in range(2):  # the second run replaces the pictures of the first, and does not explain them
        assert metamix_command(*words, "--output", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "written: " in said.out and "and 1 picture" in said.out
    assert "left out: " in said.err and "broken.png: not an image" in said.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"digit.png", "explanations.json"}
    (record,) = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert (record["image"], record["label"]) == (str(digit), "8") and 0 < record["score"] < 1
    assert Image.open(tmp_path / "out" / "digit.png").size[0] > 800


@pytest.mark.parametrize(
    "mixer",
    [
        pytest.param(name, marks=() if name in ("pooling", "raft") else pytest.mark.slow)
        for name in metamix.list_mixers()[:7]
    ],
)
def test_the_picture_shows_activation_scores_and_blocks(mixer, digit, no_grad_cam, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(explain, "save_figure", lambda path, figure, dpi: figures.append(figure))
    trained = metamix.load(f"metaformer_{mixer}_nano.cifar10")
    shown = explain_label(trained, digit, "frog")
    explain.draw_explanation(tmp_path / "x.png", shown)
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles[:3] == ["image", "activation for frog", "scores"]
    blocks = {"1.2", "2.4", "3.2"} if mixer not in ("identity", "pooling") else set()
    assert {title.partition("\n")[0].removeprefix("block ") for title in titles[3:]} == blocks


def test_the_inputs_of_four_blocks_of_an_isotropic_model_are_recorded():
    model = timm.create_model("wavemixlite_32_7").eval()
    with watched_mixers(model) as inputs:
        model(torch.randn(1, 3, 32, 32))
    model(torch.randn(1, 3, 32, 32))  # this pass is not recorded
    assert [name for name, _, _ in inputs] == ["block 1.1", "block 1.3", "block 1.5", "block 1.7"]
    assert all(x.shape == (1, 32, 32, 32) for _, _, x in inputs)


@pytest.mark.parametrize("name, arguments", [("resnet10t", {}), ("swin_tiny_patch4_window7_224", dict(depths=(1, 1)))])
def test_timm_models_are_explained_without_blocks(name, arguments, digit, no_grad_cam, tmp_path):
    arguments |= {"img_size": 32, "window_size": 2} if "swin" in name else {}
    model = timm.create_model(name, num_classes=2, **arguments)
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["cat", "dog"], model_args=arguments)
    trained = metamix.load(tmp_path / "w.safetensors")
    shown = explain_label(trained, digit, None)
    assert (shown.explained, shown.blocks) == (0, []) and shown.scores == trained.predict([digit])[0]


# Errors


def test_the_error_says_how_to_install_a_missing_grad_cam(digit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(SystemExit, match=r"grad-cam is missing: pip install 'metamix\[explain\]', or just grad-cam"):
        metamix_command("explain", digit, "--checkpoint", DIGITS)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "--checkpoint is missing: run folder, weight file, or NAME.TAG of"),
        pytest.param(
            ["--checkpoint", "exported"],
            "exported is an exported model, which has no gradients: give the original run",
            marks=pytest.mark.slow,
        ),
        (["--checkpoint", "maxim_nano.noise25"], "for restoration, and only models for classification and detect"),
        (["--checkpoint", DIGITS, "--label", "ate"], "label is 'ate'. Accepted: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    ],
)
def test_models_and_labels_that_cannot_be_explained_are_refused(words, said, digit, no_grad_cam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "exported" in words:
        export(DIGITS, output="exported", format="torch", seconds=0)
    with pytest.raises(SystemExit) as ended:
        metamix_command("explain", digit, *words)
    assert said in str(ended.value.code)


@pytest.mark.parametrize(
    "name, kind, arguments",
    [
        ("vit_tiny_patch16_224", "VisionTransformer", dict(img_size=32, depth=1, patch_size=8)),
        ("crossvit_tiny_240", "CrossVit", {}),  # tokens of two sizes, in a list
    ],
)
def test_models_with_tokens_before_the_head_are_refused(name, kind, arguments, digit, no_grad_cam, tmp_path):
    model = timm.create_model(name, num_classes=2, **arguments)
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["cat", "dog"], model_args=arguments)
    with pytest.raises(ValueError, match=f"{kind} has tokens but no feature map before its head: metamix explain"):
        explain_label(metamix.load(tmp_path / "w.safetensors"), digit, None)
