"""Test building a model to train, and fine-tuning from files of every kind."""

import re

import pytest
import timm
import torch
from PIL import Image

from metamix.classification.options import ClassificationOptions
from metamix.classification.task import Classification
from metamix.tasks.network import load_initial_weights
from metamix.weights.files import save_weights
from metamix.weights.find import read_weights
from tests.helpers.classifiers import SMALL, small_task


def test_fine_tuning_keeps_a_head_for_the_same_classes(weights):
    path, model = weights()
    digits = small_task(checkpoint=path)
    assert all(torch.equal(*pair) for pair in zip(digits.model.build().parameters(), model.parameters()))
    assert digits.notes[0] == f"weights from {path}"


def test_fine_tuning_makes_a_new_head_for_other_classes(weights, three_classes):
    path, _ = weights()
    data = {"data": "folder", "data_dir": str(three_classes), "img_size": 32}
    colour = Classification(ClassificationOptions(**SMALL, **data))
    net = colour.model.build()
    save_weights(path, net.state_dict(), colour.model.describe(net))
    other = three_classes.parent / "other"
    for split in ("train", "val"):
        for label in ("dog", "eel"):
            (other / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(other / split / label / "0.png")
    two = small_task(checkpoint=path, **data | {"data_dir": str(other)})
    tuned = two.model.build()
    assert f"weights from {path}; new: head.weight, head.bias" in two.notes
    assert tuned.head.weight.shape == (2, 16)
    assert torch.equal(next(tuned.stem.parameters()), next(net.stem.parameters()))


def test_fine_tuning_starts_from_shipped_weights():
    net = small_task(model="metaformer_pooling_nano.digits", model_args={}, pretrained=True).model.build()
    shipped = timm.create_model("metaformer_pooling_nano.digits", pretrained=True)
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), shipped.parameters()))


@pytest.mark.parametrize(
    "name, taken",
    [
        ("metaformer_pooling_nano", "cifar10; adapted: stem.0 from 3 to 1 channels"),
        ("metaformer_pooling_nano.digits", "digits"),
    ],
)
def test_the_note_says_which_published_weights_were_taken(name, taken):
    """A name without a tag stands for the weights of its default tag."""
    digits = small_task(model=name, model_args={}, pretrained=True)
    digits.model.build()
    assert digits.notes[0] == f"published weights metaformer_pooling_nano.{taken}"


def test_the_note_says_that_published_weights_get_a_new_head(tmp_path):
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    name = "metaformer_identity_nano.cifar10"
    task = small_task(model=name, model_args={}, pretrained=True, data="folder", data_dir=str(tmp_path))
    task.model.build()
    assert f"published weights {name}; new: head" in task.notes


def test_other_class_names_get_a_new_head_even_if_their_number_is_equal(weights):
    path, _ = weights(classes=list("abcdefghij"))
    for classes, note in ("0123456789", "; new: head.weight, head.bias"), ("abcdefghij", ""), ("jihgfedcba", ""):
        model = small_task().model.build()
        assert load_initial_weights(model, path, *read_weights(path), [*classes]) == f"weights from {path}{note}"
    trained = read_weights(path)[0]
    assert torch.equal(model.head.weight, trained["head.weight"].flip(0)), "the same classes in another order"
    assert torch.equal(model.head.bias, trained["head.bias"].flip(0))


def test_a_file_that_lacks_a_stage_is_refused(weights, tmp_path):
    """timm loads such pretrained weights without a warning if the number of classes differs."""
    _, model = weights()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("stages.1")}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth does .* it lacks stages.1"):
        small_task(checkpoint=str(tmp_path / "w.pth")).model.build()


def test_position_embeddings_are_resampled_for_another_size(tmp_path):
    vit = timm.create_model("test_vit", img_size=64, num_classes=10, in_chans=1)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    digits = Classification(ClassificationOptions(model="test_vit", checkpoint=str(tmp_path / "vit.pth")))
    assert digits.model.build().pos_embed.shape[1] < vit.pos_embed.shape[1]


def test_dropout_and_drop_path_have_their_own_rates():
    model = small_task(drop_rate=0.25, drop_path=0.5).model.build()
    assert (model.head_drop.p, model.stages[-1].blocks[-1].drop_path1.drop_prob) == (0.25, 0.5)


def test_a_linear_probe_trains_only_the_head(weights):
    task = small_task(checkpoint=weights()[0], linear_probe=True, drop_path=0.1)
    model = task.model.build()
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {"head.weight", "head.bias"}
    assert "--drop-path has no effect: the blocks are frozen (--linear-probe)" in task.notes


@pytest.mark.parametrize(
    "std, noted", [([0.349], []), ([0.3], ["images are normalised with mean 0.309 and std 0.349"])]
)
def test_a_mean_or_std_that_differs_from_the_metadata_of_the_weights_is_noted(weights, std, noted):
    task = small_task(checkpoint=weights(mean=[0.309], std=std)[0], mean=(0.309,), std=(0.349,), img_size=32)
    task.model.build()
    assert [note.partition(";")[0] for note in task.model.notes[1:]] == noted
    assert all(note.endswith("give --mean 0.309 --std 0.3") for note in task.model.notes[1:])


def test_a_linear_probe_trains_both_heads_of_a_distilled_model():
    arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    task = small_task(model="deit_tiny_distilled_patch16_224", model_args=arguments)
    task.options.linear_probe = True
    model = task.model.build()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"model": "metaformer_poling_nano"}, "did you mean 'metaformer_pooling_nano'? See timm.list_models()."),
        ({"model_args": {"depth": 3}}, "model metaformer_identity_tiny does not take"),
        ({"model": "vit_tiny_patch16_224", "model_args": {"num_heads": 5}}, "'num_heads': 5}: AssertionError dim"),
        ({"model": "resnet18", "model_args": {"act_layer": "foo"}}, "KeyError 'foo'"),
        ({"model_args": {"global_pool": ""}}, "metaformer_identity_tiny returns maps (1, 10, "),
        ({"model": "test_vit", "model_args": {}, "img_size": 5}, "test_vit does not take images of 5 pixels: Input"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        small_task(**options).model.build()
