"""Test the metadata of weight files: a round trip, and every error."""

import json

import pytest

from metamix.weights.files import load_weights
from metamix.weights.find import weights_dir
from metamix.weights.metadata import ModelMetadata

SHIPPED = sorted(weights_dir().glob("*.safetensors"))
WHOLE = dict(
    task="classification", model="metaformer_raft_nano",
    model_args={"mixer_args": {"raft_size": 2}, "depths": [1, 1, 1]}, num_classes=2, in_chans=1, img_size=32,
    mean=[0.5], std=[0.25], interpolation="bicubic", crop_pct=0.9, classes=["cat", "dog"], data="pets", holdout=0.1,
    memory="auto", top1=97.5, weights="ema",
)  # fmt: skip


def test_all_entries_survive_a_round_trip():
    metadata = ModelMetadata.from_dict(WHOLE)
    assert (metadata.classes, metadata.mean) == (("cat", "dog"), (0.5,))
    assert metadata.extra == {"top1": 97.5, "weights": "ema"}
    assert metadata.to_dict() == WHOLE
    assert ModelMetadata.from_dict(json.loads(json.dumps(metadata.to_dict()))) == metadata


def test_missing_entries_stay_missing():
    metadata = ModelMetadata.from_dict({"format": "pt"})
    assert (metadata.model, metadata.shape, metadata.architecture) == (None, {}, None)
    assert metadata.to_dict() == {"model_args": {}, "format": "pt"}


def test_the_architecture_omits_the_tag_and_the_shape_holds_channels_and_size():
    metadata = ModelMetadata.from_dict({"model": "resnet18.a1_in1k", "in_chans": 3, "img_size": [224, 192]})
    assert metadata.architecture == "resnet18"
    assert metadata.shape == {"in_chans": 3, "img_size": (224, 192)}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_metadata_of_shipped_weights_are_accepted(file):
    raw = load_weights(file)[1]
    assert ModelMetadata.from_dict(raw, file).to_dict() == raw


REFUSED = {
    "nested": (["a", "b"], "its metadata are a list"),
    "task": (dict(task=3), "task in the metadata is 3, but it must be a string"),
    "hub": (dict(model="hf-hub:someone/model"), "model in the metadata is 'hf-hub:someone/model'"),
    "local": (dict(model="local-dir:/tmp"), "name of a registered model"),
    "path": (dict(model="../../x"), "not a hub address or a path"),
    "model is a list": (dict(model=["resnet18"]), "name of a registered model"),
    "list": (dict(model_args=[1, 2]), "a mapping of argument names"),
    "key": (dict(model_args={"a b": 1}), r"model_args\['a b'\] in the metadata is 1, but it must be the name of an"),
    "pretrained": (dict(model_args={"pretrained": True}), r"model_args\['pretrained'\] in the metadata is True"),
    "cfg": (dict(model_args={"pretrained_cfg": {"url": "http://x"}}), "not an argument of the model itself"),
    "overlay": (dict(model_args={"pretrained_cfg_overlay": {"file": "x"}}), "not an argument of the model itself"),
    "checkpoint": (dict(model_args={"checkpoint_path": "/etc/passwd"}), "not an argument of the model itself"),
    "cache": (dict(model_args={"cache_dir": "/tmp"}), "not an argument of the model itself"),
    "features": (dict(model_args={"features_only": True}), "not an argument of the model itself"),
    "deep": (dict(model_args={"a": [[[[[[1]]]]]]}), "short lists and mappings"),
    "long": (dict(model_args={"a": [1] * 1001}), "short lists and mappings"),
    "deep model": (dict(model_args={"depths": [2, 1000]}), "number of blocks up to 256"),
    "deep isotropic model": (dict(model_args={"depth": 65536}), "number of blocks up to 256"),
    "deep stages": (dict(model_args={"depths": [200, 57]}), "a list of 1 to 16 numbers whose sum is at most 256"),
    "large": (dict(model_args={"dims": [8, 10**9]}), "a number up to 65,536"),
    "too large for a float": (dict(model_args={"a": 10**400}), "a number up to 65,536"),
    "not a number": (dict(model_args={"a": float("nan")}), "a number up to 65,536"),
    "not finite": (dict(model_args={"layer_scale": float("inf")}), "a number up to 65,536"),
    "size in model_args": (dict(model_args={"img_size": 10**9}), "from 1 to 4,096"),
    "classes in model_args": (dict(model_args={"num_classes": -1}), "from 0 to 100,000"),
    "size": (dict(img_size=1000000000), "img_size in the metadata is 1000000000, but it must be a side in pixels"),
    "no size": (dict(img_size=0), "from 1 to 4,096"),
    "sizes": (dict(img_size=[32, 0]), r"img_size in the metadata is \[32, 0\]"),
    "channels": (dict(in_chans=65), "from 1 to 64"),
    "boolean": (dict(in_chans=True), "a whole number from 1 to 64"),
    "number as text": (dict(num_classes="10"), "num_classes in the metadata is '10'"),
    "mean": (dict(mean=0.5), "a list of 1 to 64 numbers"),
    "mean of texts": (dict(mean=["a"]), "a list of 1 to 64 numbers"),
    "mean too large": (dict(mean=[10**400]), "a list of 1 to 64 numbers"),
    "mean of channels": (dict(mean=[0.5, 0.5], in_chans=3), "3 numbers, one for each input channel"),
    "std": (dict(std=[0.0]), "numbers above 0"),
    "interpolation": (dict(interpolation="bicubik"), "did you mean 'bicubic'"),
    "random interpolation": (dict(interpolation="random"), "one of nearest, bilinear, bicubic, box, hamming, lanczos"),
    "tiny crop": (dict(crop_pct=1e-9), "a number from 0.25 to 2"),
    "crop": (dict(crop_pct=-1), "a number from 0.25 to 2"),
    "classes": (dict(classes=5), "classes in the metadata is 5, but it must be a list of 0 to 100,000 strings"),
    "class": (dict(classes=["a", 1]), "a list of 0 to 100,000 strings"),
    "number of classes": (dict(classes=["a", "b"], num_classes=3), "it must be 3 names, as many as num_classes"),
    "data": (dict(data={}), "data in the metadata is {}, but it must be a string"),
    "holdout": (dict(holdout=1.0), "at least 0 and below 1"),
    "memory": (dict(memory="maybe"), "one of auto, yes, no"),
}


@pytest.mark.parametrize("raw, words", REFUSED.values(), ids=REFUSED)
def test_wrong_metadata_are_refused(raw, words):
    with pytest.raises(ValueError, match=words) as refused:
        ModelMetadata.from_dict(raw, "stranger.safetensors")
    assert str(refused.value).startswith("stranger.safetensors: ")
    assert len(str(refused.value)) < 400
