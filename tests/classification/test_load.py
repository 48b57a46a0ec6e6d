"""Test loading of classifiers, with their preprocessing, from files, run folders and published names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import metamix
from metamix.data import open_data
from metamix.data.formats.folder import open_class_folders
from metamix.models.registry import create_model
from metamix.tasks.network import load_initial_weights
from metamix.weights.files import load_weights, save_weights
from metamix.weights.find import read_weights
from tests.helpers.running import ROOT, train

NAME = "metaformer_pooling_nano.digits"
FILE = ROOT / "weights" / f"{NAME}.safetensors"


@torch.no_grad()
def accuracy(classifier, images, labels):
    logits = classifier.model(torch.stack([classifier.transform(image) for image in images]))
    return 100 * (logits.argmax(1) == torch.as_tensor(labels)).double().mean().item()


def test_shipped_weights_come_with_their_preprocessing():
    classifier, by_file = metamix.load_classifier(NAME), metamix.load_classifier(str(FILE))
    assert not classifier.model.training and not by_file.model.training
    assert classifier.classes == by_file.classes == tuple("0123456789")
    tensors, same = classifier.model.state_dict(), by_file.model.state_dict()
    assert tensors.keys() == same.keys() and all(torch.equal(tensors[name], same[name]) for name in tensors)
    test = open_data("digits").test
    image = test.read(0)[0]
    assert torch.equal(classifier.transform(image), by_file.transform(image))
    score = accuracy(classifier, [test.read(i)[0] for i in range(len(test))], test.labels)
    assert score == pytest.approx(json.loads(FILE.with_suffix(".json").read_text())["top1"], abs=0.01)


def test_images_of_another_size_and_mode_are_made_to_fit():
    """The images are scikit-learn's digits, in colour and at their original size of 8 x 8 pixels."""
    digits = load_digits()
    pixels = (digits.images[:300] * (255 / 16)).round().astype(np.uint8)
    images = [Image.fromarray(image).convert("RGB") for image in pixels]
    assert accuracy(metamix.load_classifier(NAME), images, digits.target[:300]) > 99


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(top=-1), "top is -1: give a whole number of at least 1"),
        (dict(top=2.5), "top is 2.5: give a whole number"),
        (dict(threshold=2), "threshold is 2: give a number from 0 to 1"),
        (dict(threshold="0.5"), "threshold is '0.5': give a number"),
    ],
)
def test_predict_refuses_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        metamix.load_classifier(NAME).predict([Image.new("L", (8, 8))], **arguments)


def test_many_images_are_labelled_in_batches():
    classifier, batches = metamix.load_classifier(NAME), []
    classifier.model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    labels = classifier.predict([Image.new("L", (8, 8), i) for i in range(70)], top=1)
    assert batches == [64, 6]
    assert labels[69][0] == pytest.approx(classifier.predict([Image.new("L", (8, 8), 69)], top=1)[0][0])
    assert classifier.predict([]) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train("--epochs", 1, "--batch-size", 256, "--amp", "none", "--lr", "1e-2", "--output", folder)
    return folder


@pytest.mark.parametrize("file", ["", "model.safetensors", "checkpoint.pt"])
def test_a_run_folder_and_its_files_are_loaded(run, file):
    classifier = metamix.load_classifier(run / file)
    test = open_data("digits").test
    score = accuracy(classifier, [test.read(i)[0] for i in range(len(test))], test.labels)
    assert score == pytest.approx(json.loads((run / "summary.json").read_text())["top1"], abs=1e-3)


def test_streamed_images_are_resized_and_cropped_as_in_evaluation(folder, tmp_path):
    root = folder(size=(40, 30))
    words = ["--data", "folder", "--data-dir", root, "--img-size", 24, "--memory", "no", "--crop-pct", 0.75]
    words += ["--interpolation", "bilinear"]
    train(*words, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--output", tmp_path / "run")
    classifier = metamix.load_classifier(tmp_path / "run")
    assert (classifier.classes, classifier.metadata.img_size) == (("cat", "dog", "eel"), 24)
    image = open_class_folders(root / "val").open(0)
    resized = image.resize((42, 32), Image.Resampling.BILINEAR).crop((9, 4, 33, 28))  # crop_pct: 24 / 0.75 is 32
    pixels = torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (classifier.metadata.mean, classifier.metadata.std))
    assert torch.allclose(classifier.transform(image), (pixels - mean) / std, atol=1e-5)


def test_a_file_that_does_not_name_its_model_needs_the_name(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "r.pth")
    with pytest.raises(ValueError, match=r"r.pth does not name its model; give model=NAME, or --model NAME on"):
        metamix.load_classifier(tmp_path / "r.pth")
    classifier = metamix.load_classifier(tmp_path / "r.pth", model="test_resnet")
    assert classifier.classes == ("0", "1", "2")
    size = timm.get_pretrained_cfg("test_resnet").input_size[-1]
    assert classifier.transform(Image.new("L", (50, 70))).shape == (3, size, size)


def test_a_file_of_tensors_without_metadata_may_hold_both_heads_of_a_distilled_model(tmp_path):
    name, arguments = "deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}
    tensors = timm.create_model(name, num_classes=3, **arguments).state_dict()
    torch.save(tensors, tmp_path / "d.pth")
    classifier = metamix.load_classifier(tmp_path / "d.pth", model=name, model_args=arguments)
    assert classifier.classes == ("0", "1", "2")
    assert torch.equal(classifier.model.head_dist.weight, tensors["head_dist.weight"])
    torch.save({key: each for key, each in tensors.items() if not key.startswith("head")}, tmp_path / "h.pth")
    with pytest.raises(ValueError, match=r"h.pth lacks the head of deit_\w+ \(head, head_dist\): is it a file of"):
        metamix.load_classifier(tmp_path / "h.pth", model=name, model_args=arguments)


@pytest.mark.parametrize("tag", ["digits", "elsewhere"])
def test_weights_load_without_the_weights_that_training_started_from(tag, tmp_path):
    tensors, metadata = load_weights(FILE)
    save_weights(tmp_path / "w.safetensors", tensors, metadata | {"model": f"metaformer_pooling_nano.{tag}"})
    classifier = metamix.load_classifier(tmp_path / "w.safetensors")
    assert classifier.name == ("metaformer_pooling_nano.digits" if tag == "digits" else "metaformer_pooling_nano")


def test_a_model_in_training_mode_does_not_predict():
    digits = metamix.load_classifier("metaformer_pooling_nano.digits")
    digits.model.train()
    with pytest.raises(ValueError, match="MetaFormer is in training mode: call model.eval"):
        digits.predict([Image.new("L", (8, 8))])
    digits.model.eval()
    assert replace(digits, model=torch.nn.DataParallel(digits.model)).predict([Image.new("L", (8, 8))])
    exported = torch.export.export(digits.model, (digits.transform(Image.new("L", (8, 8)))[None],)).module()
    assert replace(digits, model=exported).predict([Image.new("L", (8, 8))])


def test_a_classifier_of_4_channels_reads_transparency(tmp_path):
    model = timm.create_model("metaformer_identity_nano", num_classes=2, in_chans=4)
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["cat", "dog"])
    classifier, image = metamix.load(tmp_path / "w.safetensors"), Image.new("RGBA", (40, 40), (9, 9, 9, 128))
    image.quantize(4).save(tmp_path / "palette.png")
    std, mean = classifier.metadata.std[3], classifier.metadata.mean[3]
    for source in image, tmp_path / "palette.png":
        assert torch.allclose(classifier.transform(source)[3] * std + mean, torch.tensor(128 / 255), atol=1e-5)
        assert classifier.predict([source])


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_images_are_cropped_as_timm_crops_them(mode, tmp_path):
    name = "metaformer_identity_nano"
    model = timm.create_model(name, num_classes=2, pretrained_cfg_overlay={"crop_mode": mode, "crop_pct": 1.0})
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["cat", "dog"])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.effect_noise((80, 40), 50).convert("RGB")
    loaded = metamix.load(tmp_path / "w.safetensors")
    assert loaded.metadata.crop_mode == mode
    assert torch.allclose(loaded.transform(image), transform(image), atol=1e-5)


def test_files_and_pil_images_are_transformed(tmp_path):
    transform, path = metamix.load_classifier("wavemixlite_8_10.mnist").transform, tmp_path / "digit.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(8, 32)).save(path)
    assert torch.equal(transform(path), transform(Image.open(path)))
    with pytest.raises(TypeError, match="an image is of type ndarray: give a path or a PIL image"):
        transform(np.zeros((8, 8, 3), np.uint8))


def test_sources_that_are_not_classifiers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="noise25 has weights for restoration, not .* or call metamix.load in Python$"):
        metamix.load_classifier("maxim_nano.noise25")
    for name, words in (
        ("metaformer_pooling_nano.digit", "there is no file NAME; did you mean 'metaformer_pooling_nano.digits'"),
        ("metaformer_pooling_nano", "NAME is a model, not a weight file: give .* of a tag: NAME.cifar10, NAME.digits"),
        ("metaformer_raft_s12", "NAME is a model, not a weight file: train it first, since it has no pub"),
        (
            "resnet18",
            "NAME is a model, not a weight file: its tags are NAME.*. Give --model NAME.* --pretrained",
        ),
        ("metaformer_pooling_s12.sail_in1k", "NAME names published weights .* Give --model NAME --pretrained instead"),
    ):
        with pytest.raises(FileNotFoundError, match=words.replace("NAME", name)):
            metamix.load_classifier(name)
    (tmp_path / "digits-raft-seed0").mkdir()
    with pytest.raises(FileNotFoundError, match="digits-raft-seed1; did you mean '.*/digits-raft-seed0'"):
        metamix.load_classifier(tmp_path / "digits-raft-seed1")


def test_metadata_cannot_make_timm_download_weights(tmp_path):
    about = {"model": "test_resnet", "model_args": {"pretrained": True, "pretrained_cfg": {"url": "http://localhost"}}}
    save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(1)}, about)
    with pytest.raises(ValueError, match=r"w.safetensors: model_args\['pretrained'\] in the metadata is True"):
        metamix.load_classifier(tmp_path / "w.safetensors")


@pytest.mark.parametrize("saved, built", [(3, 1), (1, 3)])
def test_a_first_convolution_is_adapted_to_the_channels(saved, built, tmp_path):
    """Up to rounding, the outputs stay the same for images whose channels are equal."""
    options = {"depths": [1, 1, 1], "dims": [8, 8, 16]}
    old, new = (create_model("metaformer_identity_nano", in_chans=n, num_classes=10, **options) for n in (saved, built))
    save_weights(tmp_path / "w.safetensors", old.state_dict(), {})
    note = load_initial_weights(new, "w", *read_weights(tmp_path / "w.safetensors"), list("0123456789"))
    assert note == f"weights from w; adapted: stem.0.weight from {saved} to {built} channels"
    grey = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            new.eval()(grey.expand(-1, built, -1, -1)), old.eval()(grey.expand(-1, saved, -1, -1)), atol=1e-4, rtol=1e-4
        )
