import random

import numpy as np
import pytest
import torch

from metamix.data import Augment, DataOptions, normalize
from metamix.data.augment import CUT_X, CUT_Y, FLIP, LEFT, TOP, crop_flip, cutout, erase
from metamix.data.counter_rng import hash64, randint, uniform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
EVERYTHING = dict(auto_augment="trivial", cutout=9, erase=0.5, mixup=0.8, cutmix=1.0)


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (16, 20, 24, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2)
    label = torch.randint(0, 5, (16,), generator=random)
    return {"image": image, "label": label, "index": torch.randperm(1000, generator=random)[:16]}


def augment(cropped=False, **options):
    return Augment(DataOptions(**options), seed=4, mean=MEAN, std=STD, size=20, num_classes=5, cropped=cropped)


def part(batch, where):
    return {key: value[where] for key, value in batch.items()}


@pytest.mark.parametrize("name, value", [("flip", 1.5), ("crop_scale", 0)])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, but it must be"):
        DataOptions(**{name: value})


def test_normalize_subtracts_the_mean_and_divides_by_the_std(batch):
    done = normalize(batch["image"], MEAN, STD)
    expected = (batch["image"].double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert done.dtype == torch.float32 and torch.allclose(done.double(), expected, atol=1e-6)
    assert done.is_contiguous(memory_format=torch.channels_last)


def test_without_augmentation_images_are_only_normalised(batch):
    done = augment(padding=0, flip=0.0)(batch, 0, 0)
    assert torch.equal(done["image"], normalize(batch["image"], MEAN, STD))
    assert torch.equal(done["target"], batch["label"]) and torch.equal(done["index"], batch["index"])


def test_crop_and_flip_agree_with_numpy():
    image = torch.randint(0, 256, (64, 7, 9, 2), dtype=torch.uint8)
    key = hash64(torch.arange(64))
    tops, lefts = randint(hash64(key, TOP), 7), randint(hash64(key, LEFT), 7)
    flips = uniform(hash64(key, FLIP)) < 0.5
    assert tops.unique().tolist() == lefts.unique().tolist() == list(range(7)) and 16 < flips.sum() < 48
    for got, source, top, left, flip in zip(crop_flip(image, 3, 0.5, key), image, tops, lefts, flips):
        window = np.pad(source.numpy(), ((3, 3), (3, 3), (0, 0)))[top : top + 7, left : left + 9]
        assert np.array_equal(got.numpy(), window[:, ::-1] if flip else window)


def test_cutout_clears_one_square_of_each_image():
    key = hash64(torch.arange(50))
    kept = cutout(torch.ones(50, 20, 24, 3), 7, key)
    y, x = randint(hash64(key, CUT_Y), 20), randint(hash64(key, CUT_X), 24)
    for n in range(50):
        expected = torch.ones(20, 24, 3)
        expected[max(0, y[n] - 3) : y[n] + 4, max(0, x[n] - 3) : x[n] + 4] = 0
        assert torch.equal(kept[n], expected)
    for name in "padding", "cutout":
        with pytest.raises(ValueError, match=f"{name} is 21 pixels, but images are 20 pixels wide: give at most 20"):
            augment(**{name: 21})
    augment(cropped=True, padding=21)  # streamed images are not padded


def test_erase_fills_rectangles_of_some_images_with_noise():
    image = torch.full((2000, 20, 24, 1), 7.0)
    done = erase(image, 0.25, hash64(torch.arange(2000)))[..., 0]
    erased = done != 7
    chosen = erased.flatten(1).any(1)
    assert 0.2 < chosen.float().mean() < 0.3
    rows, columns = erased.any(2).sum(1)[chosen], erased.any(1).sum(1)[chosen]
    area = erased.sum((1, 2))[chosen]
    assert torch.equal(area, rows * columns), "the erased pixels form one rectangle"
    assert 0.01 < area.min() / 480 < 0.04 and 0.3 < area.max() / 480 < 0.4
    assert (rows > 1.5 * columns).any() and (columns > 1.5 * rows).any()
    noise = done[erased]
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    assert len(noise.unique()) > 0.99 * len(noise)
    lower, right = erased[chosen][rows < 20], erased[chosen][columns < 24]
    assert lower[:, -1].any() and right[:, :, -1].any()  # the last row and column are reached
    colours = erase(torch.full((9, 20, 24, 3), 7.0), 1.0, hash64(torch.arange(9)))
    assert (colours[..., 0] != colours[..., 1]).flatten(1).any(1).all()


@pytest.mark.parametrize("options", [{}, *({name: value} for name, value in EVERYTHING.items()), EVERYTHING])
def test_two_processes_augment_a_batch_as_one_process_does(batch, options):
    """Images and targets are equal to the bit if the halves of a batch are augmented separately."""
    transform = augment(**options)
    whole = transform(batch, epoch=3, step=5)
    halves = [transform(part(batch, where), epoch=3, step=5) for where in (slice(0, 8), slice(8, 16))]
    for key in "image", "target":
        assert torch.equal(whole[key], torch.cat([half[key] for half in halves]))


@pytest.mark.parametrize("options", [{}, {name: EVERYTHING[name] for name in ("auto_augment", "cutout", "erase")}])
def test_a_sample_depends_on_seed_epoch_and_index(batch, options):
    """A sample does not depend on the step or on the other samples of the batch."""
    transform = augment(**options)
    image = transform(batch, epoch=3, step=5)["image"]
    order = torch.randperm(16)
    assert torch.equal(transform(part(batch, order), epoch=3, step=9)["image"], image[order])
    other = Augment(DataOptions(**options), seed=5, mean=MEAN, std=STD, size=20, num_classes=5)
    moved = {**batch, "index": batch["index"] + 1}
    for changed in transform(batch, 4, 5), other(batch, 3, 5), transform(moved, 3, 5):
        assert (changed["image"] != image).flatten(1).any(1).all()


def test_augment_does_not_change_its_input(batch):
    before = {key: value.clone() for key, value in batch.items()}
    augment(**EVERYTHING)(batch, 0, 0)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


def test_images_stay_channels_last(batch):
    image = augment(**EVERYTHING)(batch, 0, 0)["image"]
    assert (image.shape, image.dtype) == (batch["image"].shape, torch.float32)
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_crop_and_auto_augment_are_not_repeated_on_streamed_images(batch):
    normalised = normalize(batch["image"], MEAN, STD)
    assert torch.equal(augment(cropped=True, auto_augment="trivial")(batch, 0, 0)["image"], normalised)
    assert not torch.equal(augment(cropped=True, cutout=9)(batch, 0, 0)["image"], normalised)


def plain(**options):
    return augment(padding=0, flip=0.0, **options)


@pytest.mark.parametrize("policy", ["trivial", "rand-m9-n1"])
def test_areas_outside_of_a_moved_image_are_filled_with_the_mean(policy):
    """An image in the mean colour then keeps its single colour."""
    mean = torch.tensor([128, 102, 76], dtype=torch.uint8).view(1, 3, 1, 1)
    batch = {"image": mean.expand(64, 3, 20, 20), "label": torch.zeros(64).long(), "index": torch.arange(64)}
    image = plain(auto_augment=policy)(batch, 0, 0)["image"]
    assert (image == image[:, :, :1, :1]).all()


def test_mixup_blends_images_and_targets_with_the_same_weight(batch):
    before = plain()(batch, 0, 0)["image"]
    done = plain(mixup=0.8)(batch, 0, 0)
    partner = torch.arange(16) ^ 1
    image, target = done["image"], done["target"]
    hard = torch.nn.functional.one_hot(batch["label"], 5).float()
    change = before - before[partner]
    share = ((image - before[partner]) * change).sum() / change.square().sum()
    assert 0 < share < 1
    assert torch.allclose(image, share * before + (1 - share) * before[partner], atol=1e-5)
    assert torch.allclose(target, share * hard + (1 - share) * hard[partner], atol=1e-5)


def test_cutmix_takes_a_box_from_the_partner_and_blends_targets_by_its_area(batch):
    before = plain()(batch, 0, 0)["image"]
    hard = torch.nn.functional.one_hot(batch["label"], 5).float()
    partner = torch.arange(16) ^ 1
    for step in range(20):
        done = plain(cutmix=1.0)(batch, 0, step)
        unchanged = (done["image"] == before).all(1)
        assert torch.equal(torch.where(unchanged[:, None], before, before[partner]), done["image"])
        assert (unchanged == unchanged[0]).float().mean() > 0.99, "images share a box; a few pixels are equal by chance"
        share = unchanged[0].float().mean()
        assert torch.allclose(done["target"], share * hard + (1 - share) * hard[partner], atol=1e-5)


def test_mixing_is_drawn_anew_for_each_step(batch):
    before = plain()(batch, 0, 0)["image"]
    transform = plain(mixup=0.8, cutmix=1.0, mix_prob=0.75)
    targets, kinds = [], []
    for step in range(100):
        done = transform(batch, 0, step)
        targets.append(done["target"])
        kept = (done["image"] == before).float().mean()
        kinds.append("none" if kept == 1 else "mixup" if kept < 0.02 else "cutmix")
        assert torch.allclose(done["target"].sum(1), torch.ones(16))
    assert 12 < kinds.count("none") < 40 and 20 < kinds.count("mixup") < 60 and 20 < kinds.count("cutmix") < 60
    assert torch.equal(targets[7], transform(batch, 0, 7)["target"])
    assert len({tuple(target.flatten().tolist()) for target in targets}) > 50
    assert not all(torch.equal(transform(batch, 1, step)["target"], targets[step]) for step in range(5))


def test_mixing_stops_at_mix_off_epoch(batch):
    always, stopped, before = plain(cutmix=1.0), plain(cutmix=1.0, mix_off_epoch=2), plain()(batch, 0, 0)["image"]
    for epoch in (0, 1):
        assert torch.equal(stopped(batch, epoch, 0)["image"], always(batch, epoch, 0)["image"])
    done = stopped(batch, 2, 0)
    assert torch.equal(done["image"], before) and not torch.equal(always(batch, 2, 0)["image"], before)
    assert torch.equal(done["target"], torch.nn.functional.one_hot(batch["label"], 5).float())


def test_augmentation_leaves_the_global_random_state_unchanged(batch):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augment(**EVERYTHING)(batch, 0, 0)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
