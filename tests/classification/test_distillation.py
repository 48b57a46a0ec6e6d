"""Test distillation from a teacher."""

import dataclasses

import pytest
import timm
import torch
from torch.nn import functional as F

from metamix.classification.model import Teacher
from metamix.weights.files import save_weights
from tests.helpers.classifiers import SMALL, small_task


def test_the_distillation_loss_is_the_divergence_from_the_teacher(weights):
    torch.manual_seed(0)
    path, teacher = weights()
    digits = small_task(teacher=SMALL["model"], teacher_checkpoint=path, distill=1.0, temperature=2.0)
    student = digits.model.build()
    teacher.eval()
    batch = {"image": torch.randn(4, 1, 32, 32), "target": torch.arange(4)}
    far, _ = digits.loss(student, batch)
    near, _ = digits.loss(teacher, batch)
    assert near.item() == pytest.approx(0, abs=1e-6) and far > 1e-5
    s, t = student(batch["image"]) / 2, teacher(batch["image"]) / 2
    assert torch.allclose(far, 4 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean(), atol=1e-6)
    half = dataclasses.replace(digits.options, distill=0.25)
    digits.loss.options = half
    assert torch.allclose(
        digits.loss(student, batch)[0], 0.25 * far + 0.75 * F.cross_entropy(2 * s, batch["target"]), atol=1e-6
    )
    far.backward()
    assert all(weight.grad is None for weight in digits.model.frozen_helpers[0].parameters())


def test_a_teacher_sees_images_normalised_with_its_mean_and_std():
    pixels = torch.rand(2, 3, 4, 4)
    ours, its = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    both = [(pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1) for mean, std in (ours, its)]
    assert torch.allclose(Teacher(torch.nn.Identity(), ours, its)(both[0]), both[1], atol=1e-5)


def test_a_teacher_of_other_data_is_refused(weights, three_classes):
    path, _ = weights()
    options = dict(data="folder", data_dir=str(three_classes), teacher=SMALL["model"], teacher_checkpoint=path)
    words = "has 10 classes and takes 1 channel, but set has 3 classes and 3 channels; give the --teacher"
    with pytest.raises(ValueError, match=words):
        small_task(**options).model.build()


def test_a_teacher_of_other_class_names_is_refused(weights):
    path, _ = weights(classes=["one", *"123456789"])
    with pytest.raises(ValueError, match="class 'one' where digits has '0', but it needs the same classes in the same"):
        small_task(teacher=SMALL["model"], teacher_checkpoint=path).model.build()


def test_a_teacher_of_another_image_size_is_refused(tmp_path):
    name, arguments = "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}
    small = timm.create_model(name, img_size=16, num_classes=10, in_chans=1, **arguments)
    about = {"num_classes": 10, "in_chans": 1, "img_size": 16, "model_args": arguments}
    save_weights(tmp_path / "vit.safetensors", small.state_dict(), about)
    with pytest.raises(ValueError, match=f"the teacher {name} does not take images of 32 pixels: .*another --teacher"):
        small_task(teacher=name, teacher_checkpoint=str(tmp_path / "vit.safetensors")).model.build()


def test_a_published_teacher_of_other_classes_is_refused(three_classes):
    named = small_task(data="folder", data_dir=str(three_classes), teacher="metaformer_identity_nano")
    named.data.classes = tuple(f"thing{i}" for i in range(10))
    with pytest.raises(ValueError, match="the teacher metaformer_identity_nano has the class 'airplane' where set"):
        named.model.build()
