"""Test `save_classifier` on models from other training loops."""

import numpy
import pytest
import timm
import torch
from PIL import Image

import metamix
from metamix.mixers import create_mixer


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("metaformer_raft_nano", dict(img_size=48, in_chans=1, mixer_args={"raft_size": 1})),
        ("metaformer_pooling_nano", dict(mixer="identity")),
        ("vit_tiny_patch16_224", dict(img_size=32, depth=1)),
        ("resnet18", {}),
        ("metaformer_identity_s12", dict(img_size=64, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))),
    ],
)
def test_a_loaded_classifier_equals_the_saved_one(name, arguments, tmp_path):
    model = timm.create_model(name, num_classes=2, **arguments).eval()
    statistics = dict(mean=[0.1], std=[0.2]) if "in_chans" in arguments else {}
    metamix.save_classifier(
        model, tmp_path / "cats.safetensors", classes=["cat", "dog"], model_args=arguments, **statistics
    )
    classifier = metamix.load_classifier(tmp_path / "cats.safetensors")
    metadata = classifier.metadata
    side, channels = arguments.get("img_size", metadata.img_size), arguments.get("in_chans", 3)
    assert classifier.classes == ("cat", "dog") and (metadata.img_size, metadata.in_chans) == (side, channels)
    assert metadata.mean == tuple(statistics.get("mean", model.pretrained_cfg["mean"]))
    assert metadata.crop_pct == model.pretrained_cfg["crop_pct"]
    images = torch.rand(2, channels, side, side)
    torch.testing.assert_close(classifier.model(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("array", [torch.tensor, lambda values: numpy.array(values, numpy.float32)])
def test_mean_and_std_may_be_arrays(array, tmp_path):
    model = timm.create_model("metaformer_pooling_nano", num_classes=2)
    statistics = dict(mean=array([0.25, 0.5, 0.75]), std=array([0.5] * 3))
    metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"], **statistics)
    metadata = metamix.load_classifier(tmp_path / "cats.safetensors").metadata
    assert (metadata.mean, metadata.std) == ((0.25, 0.5, 0.75), (0.5, 0.5, 0.5))


def test_a_compiled_model_is_saved_without_its_wrapper(tmp_path):
    model = timm.create_model("metaformer_pooling_nano", num_classes=2)
    metamix.save_classifier(torch.compile(model), tmp_path / "cats.safetensors", classes=["cat", "dog"])
    state = metamix.load_classifier(tmp_path / "cats.safetensors").model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("made_with", "options", "words"),
    [
        ({}, dict(classes=["cat"]), "1 class name for 2 logits: give one name for each"),
        ({}, dict(path="cats.pt"), "path is cats.pt: give a .safetensors file"),
        (dict(mixer_args={"raft_size": 1}), dict(model_args={"img_size": 32}), "differs from this model: give the"),
        ({}, dict(classes="no"), "classes is 'no': give a list of names, one for each logit"),
        ({}, dict(classes=2), "classes is 2: give a list of names"),
        ({}, dict(classes=["cat", "cat"]), "classes has 'cat' twice: give each class its own name"),
        ({}, dict(classes=frozenset({"cat", "dog"})), "give a list of names, one for each logit"),  # a set has no order
        ({}, dict(classes={"dog": 1, "cat": 0}), "give a list of names, one for each logit"),
        ({}, dict(classes=[0, 1]), r"classes is \[0, 1\]: give the names as strings"),
        ({}, dict(threshold=50), "threshold is 50, but it must be a number from 0 to 1"),
        ({}, dict(threshold="high"), "threshold is 'high', but it must be a number from 0 to 1"),
        ({}, dict(threshold=[0.1, 0.2, 0.3]), "3 thresholds for 2 classes: give one for each class, or one number"),
        ({}, dict(mean=[0.5] * 3), "mean is given, but std is not: give both or neither"),
        (
            {},
            dict(mean=[125, 122, 113], std=[63, 62, 66]),
            r"std \(63.0, 62.0, 66.0\) must be for pixel values from 0",
        ),
        (dict(global_pool="max"), {}, r"model_args is \{\}, but metaformer_raft_nano with these arguments differs"),
        (dict(global_pool=""), dict(model_args={"global_pool": ""}), "the model returns feature maps, not a logit per"),
        (dict(mixer_args={"resample": "stream"}), {}, r"model_args is \{\}, but metaformer_raft_nano with these"),
        (dict(act_layer="relu"), {}, r"model_args is \{\}, but metaformer_raft_nano with these"),
        ({}, dict(classes=["cat", "d" * 1001]), "the classifier: classes .* of at most 1,000 characters"),
        (
            dict(act_layer=torch.nn.ReLU),
            dict(model_args={"act_layer": torch.nn.ReLU}),
            "neither a number nor a",
        ),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(made_with, options, words, tmp_path):
    model = timm.create_model("metaformer_raft_nano", num_classes=2, **made_with)
    arguments = dict(path=tmp_path / "cats.safetensors", classes=["cat", "dog"]) | options
    with pytest.raises(ValueError, match=words):
        metamix.save_classifier(model, **arguments)
    assert not (tmp_path / "cats.safetensors").exists()


def test_a_head_that_the_model_does_not_know_of_is_refused(tmp_path):
    model = timm.create_model("metaformer_raft_nano", num_classes=2)
    model.head = torch.nn.Linear(model.num_features, 3)
    with pytest.raises(ValueError, match=r"replaced by a layer of 3 outputs: use model.reset_classifier\(3\)"):
        metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog", "fox"])


def test_arguments_that_choose_the_initial_weights_are_left_out(tmp_path):
    arguments = {"img_size": 24, "pretrained": True}
    model = timm.create_model("metaformer_identity_nano.cifar10", num_classes=2, **arguments)
    metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"], model_args=arguments)
    loaded = metamix.load(tmp_path / "cats.safetensors")
    assert loaded.metadata.img_size == 24 and "pretrained" not in loaded.metadata.model_args


def test_the_file_records_the_image_size_of_the_model(tmp_path):
    model = timm.create_model("metaformer_pooling_nano", num_classes=2, img_size=numpy.int64(48))
    metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"])
    assert metamix.load(tmp_path / "cats.safetensors").metadata.img_size == 48
    model.set_input_size((64, 32))
    metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"])
    assert metamix.load(tmp_path / "cats.safetensors").metadata.img_size == (64, 32)


def test_numbers_may_be_numpy_scalars(tmp_path):
    arguments = {"dims": tuple(numpy.array([8, 8, 8])), "drop_rate": numpy.float32(0.5)}
    model = timm.create_model("metaformer_pooling_nano", num_classes=2, **arguments)
    metamix.save_classifier(
        model, tmp_path / "cats.safetensors", classes=["cat", "dog"], model_args=arguments, threshold=numpy.float32(0.5)
    )
    assert metamix.load(tmp_path / "cats.safetensors").metadata.threshold == 0.5


class Smooth(torch.nn.Module):
    """The same layer as in the mixer pooling, but without the subtraction of the map."""

    def __init__(self):
        super().__init__()
        self.pool = create_mixer("pooling", 8, size=(8, 8)).pool

    def forward(self, x):
        return self.pool(x)


@pytest.mark.parametrize("mixer", [torch.nn.Identity, Smooth])
def test_a_model_whose_mixer_was_replaced_is_refused(mixer, tmp_path):
    model = timm.create_model("metaformer_pooling_nano", num_classes=2)
    model.stages[1].blocks[0].mixer = mixer()
    with pytest.raises(ValueError, match="metaformer_pooling_nano with these arguments differs from this model"):
        metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"])


def test_own_mixers_are_compared_by_their_options(forget_mixers, tmp_path):
    """Addresses in a mixer's repr and missing dropout do not count as differences, but an option called p does."""

    @metamix.register_mixer("power")
    class Power(torch.nn.Module):
        def __init__(self, dim, *, size, p=2, proj_drop=0.0):
            super().__init__()
            self.p, self.drop = p, torch.nn.Dropout2d(proj_drop) if proj_drop else torch.nn.Identity()

        def extra_repr(self):
            return str(object())

        def forward(self, x):
            return self.drop(x.abs() ** self.p)

    def save(**arguments):
        model = timm.create_model("metaformer_pooling_nano", num_classes=2, mixer="power", **arguments)
        metamix.save_classifier(
            model, tmp_path / "cats.safetensors", classes=["cat", "dog"], model_args={"mixer": "power"}
        )

    save(proj_drop_rate=0.1)
    with pytest.raises(ValueError, match="metaformer_pooling_nano with these arguments differs from this model"):
        save(mixer_args={"p": 4})


def test_settings_that_matter_only_in_training_may_differ(tmp_path):
    """Dropout rates, momentum and synchronised batch norms do not change the outputs in evaluation mode."""
    model = timm.create_model("metaformer_identity_tiny", num_classes=2, drop_rate=0.1, drop_path_rate=0.1)
    model.stem[0][1].momentum = 0.01
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"])
    assert metamix.load(tmp_path / "cats.safetensors").classes == ("cat", "dog")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = timm.create_model("metaformer_identity_nano", num_classes=2)
    torch.nn.init.constant_(model.get_classifier().weight, torch.nan)
    with pytest.raises(ValueError, match="head.weight of the model holds NaN or infinity: save the weights of an earl"):
        metamix.save_classifier(model, tmp_path / "cats.safetensors", classes=["cat", "dog"])
    model = timm.create_model("metaformer_identity_nano", num_classes=2)
    model.norm.running_var[0] = 1e6
    with pytest.raises(ValueError, match="norm.running_var of .* was converted to float16, convert it to bfloat16"):
        metamix.save_classifier(model.half(), tmp_path / "cats.safetensors", classes=["cat", "dog"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_labels_images(dtype):
    classifier = metamix.load("metaformer_pooling_nano.digits")
    classifier.model.to(dtype)
    (labels,) = classifier.predict([Image.new("L", (8, 8))], top=1)
    assert 0 < labels[0][1] <= 1


def test_a_model_that_timm_did_not_create_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model is a Linear: give the model that timm.create_model returned"):
        metamix.save_classifier(torch.nn.Linear(2, 2), tmp_path / "cats.safetensors", classes=["cat", "dog"])
