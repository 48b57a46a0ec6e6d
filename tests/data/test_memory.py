"""Test the images that are decoded once and kept in memory, and the statistics of their pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from metamix.data import DataOptions, channel_statistics, eval_loader, image_size, open_data
from metamix.data.memory import in_memory, mean_std, pixels


def test_pixels_in_memory_equal_the_images(folder):
    splits = open_data("folder", root=folder(size=(20, 20)), holdout=0.25)
    decoded = pixels(splits.train, DataOptions())
    assert (decoded.images.shape, decoded.images.dtype) == ((12, 20, 20, 3), torch.uint8)
    assert decoded is pixels(splits.holdout, DataOptions()), "train and holdout share the decoded images"
    for source in splits.train, splits.holdout:
        for i, row in enumerate(source.indices.tolist()):
            assert np.array_equal(decoded.images[row].numpy(), np.asarray(source.read(i)[0]))


def test_img_size_resizes_the_images_in_memory(folder):
    splits = open_data("folder", root=folder(size=(20, 20)))
    decoded = pixels(splits.train, DataOptions(img_size=40))
    expected = splits.train.read(5)[0].resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(decoded.images[5].numpy(), np.asarray(expected))
    nearest = pixels(splits.train, DataOptions(img_size=40, interpolation="nearest"))
    assert not torch.equal(nearest.images, decoded.images)


def test_an_image_of_another_size_is_refused_without_img_size(folder):
    root = folder(train=20)
    splits = open_data("folder", root=root)
    Image.new("RGB", (40, 30), "red").save(root / "train" / "cat" / "1.png")
    with pytest.raises(ValueError, match="1.png is 40x30, but .* seemed to be 32x32: .*--img-size .*--memory"):
        pixels(splits.train, DataOptions())
    decoded = pixels(splits.train, DataOptions(img_size=32))
    stray = splits.train.images.paths.index("cat/1.png")
    assert (decoded.images[stray] == torch.tensor([255, 0, 0], dtype=torch.uint8)).all()


def test_statistics_are_computed_over_the_training_images_and_the_holdout(folder):
    splits = open_data("folder", root=folder(), holdout=0.5)
    images = pixels(splits.train, DataOptions()).images.double() / 255
    mean, std = channel_statistics(splits.train, DataOptions())
    assert mean == pytest.approx(images.mean((0, 1, 2)).tolist(), abs=1e-9)
    assert std == pytest.approx(images.flatten(0, 2).std(0, correction=0).tolist(), abs=1e-9)


@pytest.mark.parametrize("broken", [0, 3])
def test_broken_images_do_not_count_in_the_statistics(folder, broken):
    root = folder()
    for i in range(broken):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
    source = open_data("folder", root=root).train
    options = DataOptions(img_size=32, memory="yes")
    decoded = pixels(source, options)
    assert len(decoded.broken) == broken
    images = decoded.images[[i for i in range(12) if i not in decoded.broken]].double() / 255
    assert channel_statistics(source, options)[0] == pytest.approx(images.mean((0, 1, 2)).tolist(), abs=1e-9)


def test_a_constant_channel_can_be_normalised():
    images = torch.tensor([51, 0], dtype=torch.uint8).expand(2, 3, 3, 2)
    assert mean_std(images) == (pytest.approx((0.2, 0.0)), (1.0, 1.0))


def test_mean_and_std_options_are_checked_and_streamed_sets_use_imagenet_statistics(folder):
    train = open_data("folder", root=folder()).train
    assert channel_statistics(train, DataOptions(memory="no")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grey = channel_statistics(open_data("digits").train, DataOptions(memory="no"))
    assert grey == (pytest.approx((0.449,), abs=1e-3), pytest.approx((0.226,), abs=1e-3))  # means over the channels
    options = DataOptions(mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    assert channel_statistics(train, options) == ((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    for statistics, words in (
        (dict(std=(0.5,)), "std is given, but mean is not: give both or neither"),
        (dict(mean=(0.5,), std=(0.1,)), "one value per channel: 3"),
        (dict(mean=(125.0, 122.0, 113.0), std=(63.0, 62.0, 66.0)), "for pixel values from 0 to 1, .*: divide"),
        (dict(mean=(0.5, 0.5, 0.5), std=(0.1, 0.0, 0.1)), "std above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            channel_statistics(train, DataOptions(**statistics))


def test_small_images_are_streamed_if_they_are_enlarged_beyond_the_limit(folder):
    splits = open_data("folder", root=folder())
    assert in_memory(splits.train, DataOptions()) and not in_memory(splits.train, DataOptions(img_size=224))
    options = DataOptions(img_size=224, workers=0)
    assert image_size(splits.test, options) == 224
    batch = next(iter(eval_loader(splits.test, options, batch_size=4)))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 224, 224), torch.uint8)
    assert in_memory(splits.train, DataOptions(img_size=224, memory="yes"))


def test_images_of_different_sizes_get_the_size_224(folder):
    root = folder()
    Image.new("RGB", (40, 30)).save(root / "train" / "eel" / "3.png")  # the last image of the split
    assert image_size(open_data("folder", root=root).train, DataOptions()) == 224
