"""Test the dense convolutional net: whitening, augmentation, views, a tiny run, and its use as a teacher."""

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measure import ceiling
from benchmarks.scoring import six_views
from metamix.classification.task import Classification, ClassificationOptions


def test_whitened_patches_are_uncorrelated_with_unit_variance():
    torch.manual_seed(0)
    images = torch.randn(200, 3, 8, 8)
    images = images + images.roll(1, -1) + 0.5 * images.flip(1)  # correlated along the width and over colours
    filters = ceiling.whitening_filters(images, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    outputs = F.conv2d(images, filters[:12]).movedim(1, -1).flatten(0, -2)
    assert torch.allclose(torch.cov(outputs.T), torch.eye(12), atol=1e-2)
    raw = F.unfold(images, 2).movedim(1, -1).flatten(0, -2)
    assert not torch.allclose(torch.cov(raw.T), torch.eye(12), atol=0.2)


def test_every_image_is_flipped_in_every_second_epoch():
    images = torch.randn(64, 3, 6, 6)
    epochs = [ceiling.augment(images, epoch, seed=0, margin=0) for epoch in range(3)]
    assert torch.equal(epochs[0].flip(-1), epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    same = (epochs[0] == images).flatten(1).all(1)
    assert 10 < int(same.sum()) < 54


def test_moved_images_are_crops_of_images_with_reflected_borders():
    images = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    padded = F.pad(torch.cat([images, images.flip(-1)]), (2,) * 4, mode="reflect")
    crops = padded.unfold(2, 5, 1).unfold(3, 5, 1)  # (4, 3, 5, 5, 5, 5)
    for image, moved in zip(range(2), ceiling.augment(images, epoch=4, seed=1)):
        mine = torch.cat([crops[image], crops[image + 2]], dim=1).flatten(1, 2)
        assert (mine == moved[:, None]).flatten(2).all(2).all(0).any()


def test_six_views_have_weights_that_sum_to_one():
    views = list(six_views(torch.randn(2, 3, 8, 8)))
    assert len(views) == 6 and sum(weight for weight, _ in views) == pytest.approx(1)
    assert all(view.shape == (2, 3, 8, 8) for _, view in views)
    assert len({view.sum(0).flatten()[0].item() for _, view in views}) > 2


def test_net_has_about_2_million_parameters_and_118_million_macs():
    model = ceiling.CeilingNet()
    assert 1.9e6 < sum(weight.numel() for weight in model.parameters()) < 2.1e6
    assert 115e6 < ceiling.count_macs(model, (3, 32, 32)) < 121e6


@pytest.mark.slow
def test_tiny_run_learns_and_is_written(dark_and_light, tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "WIDTHS", (8, 8, 8))
    results = tmp_path / "results.json"
    words = f"--data-dir {dark_and_light(train=40, val=10)} --results {results} --epochs 2 --batch-size 20 --split test"
    ceiling.main(words.split())
    ceiling.main(words.split())
    first, second = json.loads(results.read_text())
    assert first["split"] == "test" and first["top1"] == first["top1_six_views"] == second["top1"] == 100


def test_trained_net_is_loaded_as_a_teacher(dark_and_light, tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "WIDTHS", (8, 8, 8))
    folder, weights = dark_and_light(train=40, val=10), tmp_path / "teacher.safetensors"
    words = f"--data-dir {folder} --results {tmp_path / 'results.json'} --epochs 2 --batch-size 20 --weights {weights}"
    ceiling.main(words.split())
    options = dict(model="metaformer_identity_nano", data="folder", data_dir=str(folder))
    options |= dict(teacher="dense_conv_net", teacher_checkpoint=str(weights))
    task = Classification(ClassificationOptions(**options), seed=0)
    task.model.build()
    (teacher,) = task.model.frozen_helpers
    batch = next(iter(task.data.eval_loaders(20, 0, 1)["test"]))
    assert torch.equal(teacher(task.data.normalize(batch["image"])).argmax(1), batch["label"])
