"""Test what `metamix.load` and `predict` refuse, and the repr of trained models."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import metamix
from metamix.classification.load import Classifier
from metamix.data.files import CorruptImage, decode_file
from metamix.detection.load import TrainedDetector
from metamix.layers.image_inference import PadAndCrop
from metamix.restoration.files import read_picture
from metamix.restoration.load import RestorationSpec, TrainedRestorer
from metamix.segmentation.load import TrainedSegmenter
from metamix.tasks.simple import SimpleTrained
from metamix.weights.metadata import ModelMetadata

NAME = "metaformer_pooling_nano.digits"


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        (NAME, {"threads": 1}, ValueError, "threads is for exported models: call torch.set_num_threads instead"),
        (NAME, {"trust": True}, ValueError, "trust is for exported models, and .*digits runs no code: leave it out"),
        ("metaformer_rafft_s12", {}, FileNotFoundError, "run folder or model .*; did you mean 'metaformer_raft_s12'"),
        ("metaformer_raft_nano.cifr10", {}, ValueError, "has no tag 'cifr10'; did you mean 'cifar10'"),
        ("no/such.safetensors", {}, FileNotFoundError, "there is no file no/such.safetensors"),
        ("maxim_nano.x2", {"model": "maxim_s3"}, ValueError, "model is maxim_s3, but maxim_nano.x2 names its model"),
    ],
)
def test_wrong_sources_and_arguments_are_refused(source, arguments, error, message):
    with pytest.raises(error, match=message):
        metamix.load(source, **arguments)


@pytest.mark.parametrize("name", ["pets.safetensor", "pet.safetensors"])
def test_a_file_with_a_similar_name_is_suggested(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=f"{name}; did you mean 'pets.safetensors'"):
        metamix.load(name)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), torch.zeros(3, 2, 2), b"", None])
def test_arrays_and_tensors_are_refused_as_images(image):
    words = f"an image is of type {type(image).__name__}: give a path or a PIL image. PIL.Image.fromarray"
    for read in decode_file, read_picture:
        with pytest.raises(TypeError, match=words):
            read(image)


def test_an_image_without_pixels_is_refused():
    """A crop of an empty box has a side of 0, and resizing would divide by it."""
    for read in decode_file, read_picture:
        with pytest.raises(CorruptImage, match="an image has 4 x 0 pixels: leave it out"):
            read(Image.new("L", (6, 4)).crop((2, 0, 2, 4)))


@pytest.mark.parametrize(
    "trained", [TrainedSegmenter(None, None, ModelMetadata()), TrainedRestorer("", None, None, None)]
)
def test_the_tile_size_is_checked_before_images_are_read(trained):
    with pytest.raises(ValueError, match="tile is '32': give a whole number of at least 0"):
        trained.predict(["nowhere.png"], tile="32")


def test_an_exported_model_ignores_tile_and_overlap():
    graph, size = PadAndCrop(torch.abs, (16, 16)), (16, 16)
    restorer = TrainedRestorer("", graph, RestorationSpec("rgb", 1, "pairs"), None, size).restorer(8, 32, False)
    predictor = TrainedSegmenter(graph, SimpleNamespace(model=""), ModelMetadata(), size).predictor(8, 32)
    assert (restorer.tile, restorer.overlap) == (predictor.tile, predictor.overlap) == (16, 2)


def test_two_sources_of_weights_are_refused():
    with pytest.raises(ValueError, match="pretrained and checkpoint .*digits.* both say where weights come from"):
        metamix.load_classifier(NAME, model="metaformer_pooling_nano", pretrained=True)


@pytest.mark.parametrize("image", ["photo.jpg", Path("photo.jpg"), Image.new("L", (2, 2))])
@pytest.mark.parametrize(
    "trained",
    [
        Classifier("", None, ModelMetadata()),
        TrainedDetector(None, None, ModelMetadata()),
        TrainedSegmenter(None, None, ModelMetadata()),
        TrainedRestorer("", None, None, None),
        SimpleTrained(None, None, None),
    ],
    ids=lambda trained: type(trained).__name__,
)
def test_a_single_image_instead_of_a_list_is_refused(trained, image):
    with pytest.raises(TypeError, match=r"predict takes a list of images, but got a single .*: give \[image\]"):
        trained.predict(image)


def test_the_repr_of_a_trained_model_is_one_short_line():
    parts = dict(model="metaformer_raft_nano", classes=("cat",) * 80, detector="fcos", head="upernet")
    net, spec = torch.nn.Linear(2, 2), SimpleNamespace(**parts)
    about = ModelMetadata(model="resnet18", classes=("cat",) * 80, num_classes=80)
    assert repr(Classifier("resnet18", net, about)) == "Classifier(resnet18, 80 classes)"
    assert repr(SimpleTrained(net, about, None)) == "SimpleTrained(resnet18)"
    assert repr(TrainedDetector(net, spec, about)) == "TrainedDetector(fcos, metaformer_raft_nano, 80 classes)"
    assert repr(TrainedSegmenter(net, spec, about)) == "TrainedSegmenter(upernet, metaformer_raft_nano, 80 classes)"
    assert TrainedSegmenter(net, spec, about).classes == TrainedDetector(net, spec, about).classes == spec.classes
    assert repr(TrainedRestorer("maxim_nano.x2", net, None, None)) == "TrainedRestorer(maxim_nano.x2)"
