"""What model, loss and score mean for classification, and fine-tuning from files of every kind."""

import dataclasses

import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import metamix  # noqa: F401
from metamix.classification.distillation import Teacher
from metamix.classification.load import create_model, load_pretrained
from metamix.classification.options import ClassificationEvalOptions as EvalOptions
from metamix.classification.options import ClassificationOptions
from metamix.classification.task import Classification
from metamix.models.formats import TIMM_POOLFORMER
from metamix.utils.tensor_files import save_weights

SMALL = {"model": "metaformer_identity_nano", "model_args": {"depths": [1, 1, 1], "dims": [8, 8, 16]}}


def task(**options):
    return Classification(ClassificationOptions(**SMALL | options))


@pytest.fixture
def folder(tmp_path):
    """A set of three classes, 12 images of 16 pixels."""
    for i, (split, label) in enumerate([(s, c) for s in ("train", "val") for c in ("ant", "bee", "cat")]):
        path = tmp_path / "set" / split / label
        path.mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (16, 16), (40 * i, 100 * j, 9)).save(path / f"{j}.png")
    return tmp_path / "set"


@pytest.fixture
def weights(tmp_path):
    """A trained model's file, on digits."""

    def save(**about):
        digits = task()
        model = digits.model.build()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.01)
        save_weights(tmp_path / "w.safetensors", model.state_dict(), digits.model.describe(model) | about)
        return str(tmp_path / "w.safetensors"), model

    return save


def fixed(logits):
    """A model that answers with these logits."""
    return lambda image: logits


def test_distillation_draws_towards_the_teacher(weights):
    path, teacher = weights()
    digits = task(teacher=SMALL["model"], teacher_checkpoint=path, distill=1.0, temperature=2.0)
    student = digits.model.build()
    batch = {"image": torch.randn(4, 1, 32, 32), "target": torch.arange(4)}
    far, _ = digits.loss(student, batch)
    near, _ = digits.loss(teacher, batch)
    assert near.item() == pytest.approx(0, abs=1e-6) and far > 1e-4
    s, t = student(batch["image"]) / 2, teacher(batch["image"]) / 2
    assert torch.allclose(far, 4 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean(), atol=1e-6)
    half = dataclasses.replace(digits.options, distill=0.25)
    digits.loss.options = half
    assert torch.allclose(
        digits.loss(student, batch)[0], 0.25 * far + 0.75 * F.cross_entropy(2 * s, batch["target"]), atol=1e-6
    )
    far.backward()
    assert all(weight.grad is None for weight in digits.model.frozen_helpers[0].parameters())


def test_a_teacher_sees_images_normalised_its_own_way():
    pixels = torch.rand(2, 3, 4, 4)
    ours, its = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    normal = [
        (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1) for mean, std in (ours, its)
    ]
    assert torch.allclose(Teacher(torch.nn.Identity(), *ours, *its)(normal[0]), normal[1], atol=1e-5)


def test_fine_tuning_keeps_a_head_for_the_same_classes(weights):
    path, model = weights()
    digits = task(checkpoint=path)
    assert all(torch.equal(*pair) for pair in zip(digits.model.build().parameters(), model.parameters()))
    assert digits.notes == [f"weights from {path}"]


def test_fine_tuning_makes_a_new_head_for_other_classes(weights, folder):
    path, _ = weights()
    data = {"data": "folder", "data_dir": str(folder), "img_size": 32}
    colour = Classification(ClassificationOptions(**SMALL, **data))
    net = colour.model.build()
    save_weights(path, net.state_dict(), colour.model.describe(net))
    other = folder.parent / "other"
    for split in ("train", "val"):
        for label in ("dog", "eel"):
            (other / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(other / split / label / "0.png")
    two = task(checkpoint=path, **data | {"data_dir": str(other)})
    tuned = two.model.build()
    assert two.notes == [f"weights from {path}; new: head.weight, head.bias"]
    assert tuned.head.weight.shape == (2, 16) and torch.equal(tuned.stem[0].weight, net.stem[0].weight)


def test_fine_tuning_begins_from_weights_that_ship():
    net = task(model="metaformer_identity_nano.digits", model_args={}, pretrained=True).model.build()
    shipped = timm.create_model("metaformer_identity_nano.digits", pretrained=True)
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), shipped.parameters()))


@pytest.mark.parametrize(
    "name, taken", [("metaformer_identity_nano", "cifar10"), ("metaformer_identity_nano.digits", "digits")]
)
def test_the_note_says_which_published_weights_were_taken(name, taken):
    """A name without a tag stands for the weights of some data set."""
    digits = task(model=name, model_args={}, pretrained=True)
    digits.model.build()
    assert digits.notes == [f"published weights metaformer_identity_nano.{taken}"]


def test_as_many_classes_of_other_names_get_a_new_head(weights):
    path, _ = weights(classes=list("abcdefghij"))
    assert load_pretrained(task().model.build(), path, list("0123456789")) == ["new: head.weight, head.bias"]
    assert load_pretrained(task().model.build(), path, list("abcdefghij")) == []


def test_a_file_that_lacks_a_stage_is_refused(weights, tmp_path):
    """timm would load it without a word."""
    _, model = weights()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("stages.1")}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth"):
        task(checkpoint=str(tmp_path / "w.pth")).model.build()


def test_position_embeddings_are_resampled_for_another_size(tmp_path):
    vit = timm.create_model("test_vit", img_size=64, num_classes=10, in_chans=1)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    digits = Classification(ClassificationOptions(model="test_vit", checkpoint=str(tmp_path / "vit.pth")))
    assert digits.model.build().pos_embed.shape[1] < vit.pos_embed.shape[1]


def test_a_linear_probe_trains_the_head_alone():
    model = task(linear_probe=True).model.build()
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {"head.weight", "head.bias"}


def test_a_trained_model_is_built_as_it_was(weights):
    path, model = weights(mean=[0.25], std=[0.5], weights="ema")
    digits, loaded, about = Classification.trained(EvalOptions(model=SMALL["model"], checkpoint=path, img_size=48))
    assert (digits.data.mean, digits.data.std, digits.data.size, about["weights"]) == ((0.25,), (0.5,), 48, "ema")
    assert digits.options.model_args == SMALL["model_args"]
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_options_that_are_given_win_over_those_of_training(weights):
    """Even where they are what a run would begin with."""
    path, _ = weights(interpolation="bilinear", crop_pct=0.95)
    ours = {"interpolation": "bicubic", "crop_pct": 0.875}
    for given in ({}, ours, {"crop_pct": 0.5}):
        digits, *_ = Classification.trained(EvalOptions(model=SMALL["model"], checkpoint=path, **given))
        seen = {key: getattr(digits.options, key) for key in ours}
        assert seen == {"interpolation": "bilinear", "crop_pct": 0.95} | given
    assert {key: getattr(ClassificationOptions(), key) for key in ours} == ours  # what recipe.yaml holds
    with pytest.raises(ValueError, match="crop_pct is 2, but it must be above 0 and at most 1"):
        EvalOptions(crop_pct=2)


def test_a_file_in_its_authors_names_is_evaluated(folder):
    """timm's PoolFormer, here; the class count is read from its head."""
    name, arguments = "metaformer_pooling_s12", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    ours = create_model(name, num_classes=3, **arguments)
    path = folder / "p.pth"
    torch.save({TIMM_POOLFORMER.name(key): tensor for key, tensor in ours.state_dict().items()}, path)
    options = EvalOptions(
        model=name, model_args=arguments, checkpoint=str(path), data="folder", data_dir=str(folder), workers=0
    )
    _, loaded, _ = Classification.trained(options)
    assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), ours.parameters(), strict=True))


def test_a_file_of_another_function_is_refused(weights):
    """Pooling and identity have no parameters, so the tensors of one fit the other."""
    path, _ = weights()
    for start in (
        lambda: task(checkpoint=path, model_args=SMALL["model_args"] | {"mixer": "pooling"}).model.build(),
        lambda: Classification.trained(EvalOptions(checkpoint=path, model_args={"mixer": "pooling"})),
    ):
        with pytest.raises(ValueError, match="w.safetensors holds weights of metaformer_identity_nano with .*mixer"):
            start()


def test_the_data_of_detection_point_to_its_task():
    with pytest.raises(ValueError, match="data is 'coco', a data set of boxes: add --task detection"):
        task(data="coco")


def test_a_detector_needs_its_task(tmp_path):
    save_weights(tmp_path / "d.safetensors", {"w": torch.zeros(1)}, {"task": "detection", "model": SMALL["model"]})
    path = str(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="d.safetensors holds a detector: add --task detection"):
        Classification.trained(EvalOptions(checkpoint=path))
    with pytest.raises(ValueError, match="d.safetensors holds a detector: add --task detection"):
        task(checkpoint=path).model.build()


def test_the_class_count_is_read_from_a_file_of_tensors_alone(tmp_path):
    resnet = timm.create_model("test_resnet", num_classes=10, in_chans=3)
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    with pytest.raises(
        ValueError,
        match="test_resnet was trained for 3 channels and digits has 1; give other --data, or "
        "fine-tune first: metamix train --checkpoint",
    ):
        Classification.trained(EvalOptions(model="test_resnet", checkpoint=str(tmp_path / "r.pth")))
    torch.save({"a": torch.ones(1)}, tmp_path / "r.pth")
    with pytest.raises(
        ValueError, match=r"r.pth has no weights of the head of test_resnet \(fc\); is it another model?"
    ):
        Classification.trained(EvalOptions(model="test_resnet", checkpoint=str(tmp_path / "r.pth")))


def test_tensors_made_for_another_image_size_are_evaluated_at_it(folder):
    name, path = "metaformer_raft_nano", folder / "r.pth"
    torch.save(create_model(name, img_size=48, num_classes=3).state_dict(), path)
    options = dict(model=name, checkpoint=str(path), data="folder", data_dir=str(folder), workers=0)
    with pytest.raises(
        ValueError,
        match=r"r.pth was made for images of another size than metaformer_raft_nano \(stages.*has another shape\); "
        r"give that size, --model-args '\{img_size: N\}'",
    ):
        Classification.trained(EvalOptions(**options))
    of_48, model, _ = Classification.trained(EvalOptions(**options, model_args={"img_size": 48}))
    assert of_48.data.size == 48 and model.stages[0].blocks[0].mixer.size == (24, 24)


def test_another_models_weights_are_refused(weights):
    path, _ = weights()
    with pytest.raises(
        ValueError,
        match="holds the weights of metaformer_identity_nano, not of metaformer_raft_nano; give "
        "--model metaformer_identity_nano",
    ):
        Classification.trained(EvalOptions(model="metaformer_raft_nano", checkpoint=path))
    with pytest.raises(ValueError, match="there are no weights to evaluate: give --checkpoint FILE, or --pretrained"):
        Classification.trained(EvalOptions())


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"model": "metaformer_poling_nano"},
            "There is no model 'metaformer_poling_nano'; did you mean 'metaformer_pooling_nano'? After `import "
            "metamix`, `timm.list_models()` lists all.",
        ),
        ({"model_args": {"depth": 3}}, "model metaformer_identity_nano does not take"),
        ({"checkpoint": "nowhere.safetensors"}, "there is no file nowhere.safetensors"),
        (
            {"model": "metaformer_identity_s12", "pretrained": True},
            "No weights are published for metaformer_identity_s12: leave pretrained out, or give a checkpoint.",
        ),
        (
            {"model": "metaformer_identity_nano.digitz"},
            "metaformer_identity_nano has no tag 'digitz'; did you mean 'digits'? It has ",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(options, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        task(**options).model.build()
    assert said in str(error.value)


def test_a_teacher_of_other_data_is_refused(weights, folder):
    path, _ = weights()
    with pytest.raises(
        ValueError,
        match="the teacher metaformer_identity_nano knows 10 classes of images of 1 channels, and "
        "folder has 3 of 3; give --teacher-checkpoint of one that was trained on such data",
    ):
        task(data="folder", data_dir=str(folder), teacher=SMALL["model"], teacher_checkpoint=path).model.build()


def test_a_teacher_of_as_many_other_classes_is_refused(weights):
    path, _ = weights(classes=["one", *"123456789"])
    with pytest.raises(
        ValueError, match="w.safetensors has the class 'one' where digits has '0'; give --teacher-check"
    ):
        task(teacher=SMALL["model"], teacher_checkpoint=path).model.build()


def test_weights_of_no_teacher_are_refused():
    with pytest.raises(ValueError, match="teacher_checkpoint is t.pt, but no --teacher says of which model"):
        task(teacher_checkpoint="t.pt")


def test_a_teacher_of_another_size_is_refused(tmp_path):
    name, arguments = "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}
    small = timm.create_model(name, img_size=16, num_classes=10, in_chans=1, **arguments)
    about = {"num_classes": 10, "in_chans": 1, "img_size": 16, "model_args": arguments}
    save_weights(tmp_path / "vit.safetensors", small.state_dict(), about)
    with pytest.raises(ValueError, match=f"the teacher {name} does not take the images of 32 pixels that the student"):
        task(teacher=name, teacher_checkpoint=str(tmp_path / "vit.safetensors")).model.build()


@pytest.mark.parametrize("option", ("mixup", "cutmix"))
def test_mixing_needs_pairs_on_every_process(option):
    digits = task(**{option: 0.2})
    digits.data.train_loader(6, 0, 1, 0)
    with pytest.raises(ValueError, match="batch_size 6 leaves each of 2 processes an odd number of samples, 3: take a"):
        digits.data.train_loader(6, 0, 2, 0)


def test_a_linear_probe_trains_both_heads_of_a_distilled_model():
    arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    model = task(model="deit_tiny_distilled_patch16_224", model_args=arguments, linear_probe=True).model.build()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"smoothing": 1.5}, "smoothing is 1.5, but it must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature is 0.0, but it must be above 0"),
        (
            {"pretrained": True, "checkpoint": "f"},
            r"pretrained and checkpoint \(f\) both say where to begin; give one of them",
        ),
        ({"flip": 2.0}, "flip is 2.0, but it must be between 0 and 1"),
        ({"model_args": {"img_size": 64}}, "model_args has img_size, which comes from --img-size; leave it out of"),
        ({"model_args": {"num_classes": 3}}, "model_args has num_classes, which comes from the data; leave it out of"),
        (
            {"model_args": {"drop_path_rate": 0.3}, "drop_path": 0.1},
            "model_args has drop_path_rate, which comes from --drop-path; leave it out of model_args",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClassificationOptions(**options)


def test_models_for_any_size_and_of_one_size():
    assert create_model("test_resnet", img_size=32, num_classes=3).num_classes == 3
    assert create_model("test_vit", img_size=32, num_classes=3).patch_embed.img_size == (32, 32)
