"""Test the classification task: its data, and evaluation of trained models."""

import pytest
import timm
import torch

from metamix.classification.options import ClassificationEvalOptions, ClassificationOptions
from metamix.classification.task import Classification, data_to_score
from metamix.models.poolformer import TIMM_POOLFORMER
from metamix.models.registry import create_model
from metamix.weights.files import save_weights
from tests.helpers.classifiers import SMALL, small_task


def test_a_trained_model_is_built_with_its_options(weights):
    path, model = weights(mean=[0.25], std=[0.5], weights="ema", memory="no")
    digits, loaded, about = Classification.for_evaluation(
        ClassificationEvalOptions(model=SMALL["model"], checkpoint=path, img_size=48)
    )
    assert (digits.data.mean, digits.data.std, digits.data.size, about.extra["weights"]) == ((0.25,), (0.5,), 48, "ema")
    assert digits.options.model_args == SMALL["model_args"] and not digits.data.held_in_memory
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_options_that_the_images_do_not_use_are_named():
    words = "--crop-scale has no effect: images are in memory (--memory no streams them)"
    options = dict(padding=2, crop_scale=0.5)
    assert small_task(**options).notes == [words]
    assert small_task(**options, memory="no").notes == ["--padding has no effect: images are streamed, not in memory"]
    assert small_task(memory="no").notes == small_task().notes == []


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path):
    name, arguments = "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}
    digits = small_task(model=name, model_args=arguments)
    model = digits.model.build()
    path = str(tmp_path / "vit.safetensors")
    save_weights(path, model.state_dict(), digits.model.describe(model))
    Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path))
    with pytest.raises(ValueError, match=f"{name} does not take images of 48 pixels: .* Leave --img-size out"):
        Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path, img_size=48))


def test_a_model_for_oblong_images_needs_an_image_size(weights):
    path, _ = weights(img_size=[32, 48])
    with pytest.raises(ValueError, match="takes images of 32x48 pixels; give the side of a square, --img-size"):
        Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path))
    digits, *_ = Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path, img_size=48))
    assert digits.data.size == 48 and digits.title.endswith("-48px")
    path, _ = weights(img_size=[32, 32])
    digits, *_ = Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path))
    assert digits.data.size == 32 and digits.title.endswith("_tiny")


def test_options_of_evaluation_win_over_options_of_training(weights):
    """Options that are given to evaluation win even if they equal the defaults of training."""
    path, _ = weights(interpolation="bilinear", crop_pct=0.95)
    ours = {"interpolation": "bicubic", "crop_pct": 0.875}
    for changes in ({}, ours, {"crop_pct": 0.5}):
        digits, *_ = Classification.for_evaluation(
            ClassificationEvalOptions(model=SMALL["model"], checkpoint=path, **changes)
        )
        seen = {key: getattr(digits.options, key) for key in ours}
        assert seen == {"interpolation": "bilinear", "crop_pct": 0.95} | changes
    assert {key: getattr(ClassificationOptions(), key) for key in ours} == ours  # the defaults of training


def test_a_file_with_timms_tensor_names_is_loaded(three_classes):
    """The tensors have timm's names for a PoolFormer. The number of classes is read from the head."""
    name, arguments = "metaformer_pooling_s12", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    ours = create_model(name, num_classes=3, **arguments)
    path = three_classes / "p.pth"
    torch.save({TIMM_POOLFORMER.name(key): tensor for key, tensor in ours.state_dict().items()}, path)
    options = ClassificationEvalOptions(
        model=name, model_args=arguments, checkpoint=str(path), data="folder", data_dir=str(three_classes), workers=0
    )
    _, loaded, _ = Classification.for_evaluation(options)
    assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), ours.parameters(), strict=True))


def test_weights_of_another_mixer_are_refused(weights):
    """Pooling and identity have no parameters, so the tensors of one fit the other."""
    path, _ = weights()
    for start in (
        lambda: small_task(checkpoint=path, model_args=SMALL["model_args"] | {"mixer": "pooling"}).model.build(),
        lambda: Classification.for_evaluation(
            ClassificationEvalOptions(checkpoint=path, model_args={"mixer": "pooling"})
        ),
    ):
        with pytest.raises(ValueError, match="w.safetensors holds weights of metaformer_identity_tiny with .*mixer"):
            start()


@pytest.mark.parametrize(
    "task, folders",
    [("detection", ["annotations"]), ("segmentation", ["images", "masks"]), ("restoration", ["input", "target"])],
)
def test_data_of_another_task_are_refused_with_the_name_of_the_task(task, folders, tmp_path):
    for folder in folders:
        (tmp_path / "train" / folder).mkdir(parents=True)
    for options in ({"data": "folder", "data_dir": str(tmp_path)}, {"data": str(tmp_path)}):
        with pytest.raises(ValueError, match=f"{tmp_path} is a data set for {task}: add --task {task}$"):
            small_task(**options)
    with pytest.raises(ValueError, match="^coco is a data set for detection: add --task detection$"):
        small_task(data="coco")
    scored = ClassificationEvalOptions(checkpoint="metaformer_pooling_nano.digits", data=str(tmp_path))
    with pytest.raises(ValueError, match=f"data set for {task}: the weights belong to a classifier, so give other"):
        Classification.for_evaluation(scored)
    (tmp_path / "train" / "more").mkdir()  # --data folder would now take the folders for classes
    with pytest.raises(ValueError, match=f"{tmp_path} is a data set for {task}"):
        small_task(data="digits", data_dir=str(tmp_path))


def test_weights_of_a_detector_are_refused(tmp_path):
    save_weights(tmp_path / "d.safetensors", {"w": torch.zeros(1)}, {"task": "detection", "model": SMALL["model"]})
    path = str(tmp_path / "d.safetensors")
    for start in (
        lambda: Classification.for_evaluation(ClassificationEvalOptions(checkpoint=path)),
        lambda: small_task(checkpoint=path).model.build(),
    ):
        with pytest.raises(ValueError, match="has weights for detection, not for a classifier: give --task detection"):
            start()


def test_a_file_without_metadata_must_fit_the_data_and_the_model(tmp_path):
    resnet = timm.create_model("test_resnet", num_classes=10, in_chans=3)
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    options = ClassificationEvalOptions(model="test_resnet", checkpoint=str(tmp_path / "r.pth"), data="digits")
    with pytest.raises(ValueError, match="for 3 channels, but digits has 1; give other --data, or fine-tune first"):
        Classification.for_evaluation(options)
    torch.save({"a": torch.ones(1)}, tmp_path / "r.pth")
    with pytest.raises(ValueError, match="r.pth does not fit test_resnet: it lacks "):
        Classification.for_evaluation(options)


def test_weights_without_metadata_need_the_image_size_they_were_made_for(three_classes):
    name, path = "metaformer_raft_nano", three_classes / "r.pth"
    torch.save(create_model(name, img_size=48, num_classes=3).state_dict(), path)
    options = dict(model=name, checkpoint=str(path), data="folder", data_dir=str(three_classes), workers=0)
    with pytest.raises(ValueError, match=r"are for images of different sizes .* --model-args '\{img_size: N\}', or in"):
        Classification.for_evaluation(ClassificationEvalOptions(**options))
    of_48, model, _ = Classification.for_evaluation(ClassificationEvalOptions(**options, model_args={"img_size": 48}))
    assert of_48.data.size == 48 and model.stages[0].blocks[0].mixer.grid == (24, 24)


def test_an_error_names_published_weights_with_their_tag():
    """A name without a tag stands for weights that the user may not expect."""
    options = ClassificationEvalOptions(model="metaformer_pooling_nano", pretrained=True, data="digits")
    with pytest.raises(ValueError, match="^metaformer_pooling_nano.cifar10 was trained for 3 channels"):
        Classification.for_evaluation(options)
    with pytest.raises(ValueError, match="there are no weights to evaluate: .* or --model NAME --pretrained"):
        Classification.for_evaluation(ClassificationEvalOptions(pretrained=True))
    options.model += ".digits"
    task, *_ = Classification.for_evaluation(options)
    assert task.notes == ["published weights metaformer_pooling_nano.digits"]
    assert task.data.classes == tuple("0123456789")


def test_another_crop_mode_is_noted(weights):
    path, _ = weights(crop_mode="squash")
    options = ClassificationEvalOptions(checkpoint=path, data="digits")
    note = "images are cropped at the centre, although the crop_mode of the weights is 'squash'"
    assert note in Classification.for_evaluation(options)[0].notes


def test_another_models_weights_are_refused(weights):
    path, _ = weights()
    with pytest.raises(ValueError, match="weights of metaformer_identity_tiny, not of metaformer_raft_nano: name the"):
        Classification.for_evaluation(ClassificationEvalOptions(model="metaformer_raft_nano", checkpoint=path))


def test_evaluation_needs_a_data_set_unless_the_weights_were_trained_on_digits():
    task, *_ = Classification.for_evaluation(ClassificationEvalOptions(checkpoint="metaformer_pooling_nano.digits"))
    assert task.data.name == "digits"
    with pytest.raises(ValueError, match="no data set is given; the weights were trained on .*: give --data-dir"):
        Classification.for_evaluation(ClassificationEvalOptions(checkpoint="metaformer_pooling_nano.cifar10"))


@pytest.mark.parametrize(
    "trained_on, data_dir, data",
    [("cifar10", "data", "cifar10"), ("cats", "cats", "folder"), ("digits", "a", "folder"), (None, "a", "folder")],
)
def test_data_dir_is_read_as_the_training_data_set_or_as_a_folder(trained_on, data_dir, data):
    assert data_to_score(trained_on, data_dir) == data


@pytest.mark.parametrize("option", ("mixup", "cutmix"))
def test_mixing_needs_an_even_batch_on_every_process(option):
    digits = small_task(**{option: 0.2})
    digits.data.train_loader(6, 0, 1, 0)
    with pytest.raises(ValueError, match="batch_size 6 gives each of 2 processes an odd number of samples, 3: give a"):
        digits.data.train_loader(6, 0, 2, 0)


@pytest.mark.parametrize("memory", ("yes", "no"))
def test_images_are_cropped_once(memory):
    data = small_task(memory=memory, workers=0).data
    batch = next(iter(data.train_loader(8, 0, 1, 0).epoch(0)))
    augmented = data.augment(batch, 0, 0)["image"]
    streamed = memory == "no"  # workers crop streamed images, and `augment` crops images in memory
    assert torch.equal(augmented, data.normalize(batch["image"])) == streamed
    another_seed = Classification(data.options, seed=1).data.augment(batch, 0, 0)["image"]
    assert torch.equal(augmented, another_seed) == streamed
