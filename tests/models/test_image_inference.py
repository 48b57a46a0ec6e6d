"""Padding, tiles, self-ensemble and local means against literal versions."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metamix.models.image_inference import (
    check_finite,
    crop,
    local_mean,
    pad_by_reflection,
    restore_tiles,
    self_ensemble,
    tile_starts,
)


def image(h, w, channels=2, batch=1):
    return torch.arange(batch * channels * h * w, dtype=torch.float64).view(batch, channels, h, w).sin()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 5), (9, 8), (15, 16), (33, 20)])
def test_padding_as_the_authors(size):
    """To even with one more row or column, then half of what is missing on each side; numpy repeats the reflection."""
    x = image(*size)
    padded, (top, left) = pad_by_reflection(x, (8, 16))
    expected = x.numpy()
    expected = np.pad(expected, [(0, 0), (0, 0), (0, size[0] % 2), (0, size[1] % 2)], mode="reflect")
    missing = [-expected.shape[-2] % 8, -expected.shape[-1] % 16]
    expected = np.pad(expected, [(0, 0), (0, 0), *((n // 2, n // 2) for n in missing)], mode="reflect")
    assert np.array_equal(padded, expected)
    assert torch.equal(crop(padded, (top, left), size), x)


def test_an_image_that_fits_is_not_copied():
    x = image(8, 16)
    assert pad_by_reflection(x, (8, 16))[0] is x


class Blur(nn.Module):
    """Depends on a 3 x 3 neighbourhood, enlarges `scale` times and turns two channels into three."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale, self.batches = scale, []
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate").double()

    def forward(self, x):
        self.batches.append(len(x))
        return F.interpolate(self.conv(x), scale_factor=self.scale) if self.scale > 1 else self.conv(x)


@pytest.mark.parametrize("h, w, tile, overlap", [(40, 33, 16, 6), (16, 50, 16, 4), (9, 5, 16, 4), (31, 32, 8, 7)])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_tiles(h, w, tile, overlap, scale):
    """Where no tile ends, the result is that of the whole image; at the seams the blend stays close to it."""
    torch.manual_seed(0)
    model, x = Blur(scale).eval(), image(h, w, batch=2)
    whole = model(x)
    y = restore_tiles(model, x, tile=tile, overlap=overlap)
    assert y.shape == whole.shape == (2, 3, scale * h, scale * w)
    wrong = (y - whole).abs().amax((0, 1)) > 1e-9
    seams = torch.zeros_like(wrong)
    for n, dim in ((h, 0), (w, 1)):
        for start in tile_starts(n, tile, overlap):
            for edge in (start, start + tile - 1):
                if 0 < edge < n - 1:
                    seams.narrow(dim, scale * edge, scale).fill_(True)
    assert not (wrong & ~seams).any()
    constant = restore_tiles(nn.Identity().eval(), torch.ones(1, 1, h, w), tile=tile, overlap=overlap)
    torch.testing.assert_close(constant, torch.ones(1, 1, h, w))


@torch.no_grad()
def test_the_blend_is_smooth():
    """A model that adds a different number to each tile: from tile to tile the result changes in small steps."""
    numbers = iter(range(99))
    y = restore_tiles(lambda x: 0 * x + next(numbers), torch.zeros(1, 1, 8, 64), tile=16, overlap=8)[0, 0, 0]
    assert y[0] == 0 and y[-1] == 6
    assert y.diff().min() >= 0 and y.diff().max() < 0.25  # a hard cut has steps of 1


def test_tile_places():
    assert tile_starts(10, 16, 4) == tile_starts(16, 16, 4) == [0]
    assert tile_starts(17, 16, 4) == [0, 1]
    for length in range(17, 99):
        starts = tile_starts(length, 16, 4)
        assert starts[0] == 0 and starts[-1] == length - 16
        assert all(0 < b - a <= 12 for a, b in pairwise(starts))


@pytest.mark.parametrize("options", [dict(tile=0), dict(tile=40), dict(tile=16, whole=(33, 40))])
@torch.no_grad()
def test_images_that_need_no_tiles(options):
    model, x = Blur().eval(), image(33, 40, batch=2)
    torch.testing.assert_close(restore_tiles(model, x, overlap=4, **options), model(x), rtol=0, atol=0)
    assert model.batches == [2, 2]
    restore_tiles(model, image(34, 40), tile=16, overlap=4, whole=(33, 40))
    assert len(model.batches) > 3  # larger than `whole`, so in tiles


@pytest.mark.parametrize("options", [dict(tile=-1), dict(tile=8, overlap=8), dict(overlap=-1)])
def test_tiles_that_cannot_be(options):
    with pytest.raises(ValueError, match="give an overlap of at least 0 and less than the tile, or tile 0 for"):
        restore_tiles(nn.Identity().eval(), image(8, 8), **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    outputs = image(4, 4)
    assert check_finite(outputs) is outputs
    outputs[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="the model returns values that are not finite: are its weights damaged"):
        check_finite(outputs)


def test_a_model_in_training_is_refused():
    for run in (restore_tiles, self_ensemble):
        with pytest.raises(ValueError, match="Blur is in training mode: call model.eval"):
            run(Blur(), image(8, 8))


@pytest.mark.parametrize("size, batches", [((6, 8), [8, 8]), ((6, 6), [16])])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_self_ensemble(size, batches, scale):
    torch.manual_seed(0)
    model, x = Blur(scale).eval(), image(*size, batch=2)
    expected = 0
    for turns in range(4):
        for flip in (False, True):
            turned = torch.rot90(x, turns, (2, 3))
            y = model(turned.flip(-1)).flip(-1) if flip else model(turned)
            expected = expected + torch.rot90(y, -turns, (2, 3)) / 8
    model.batches.clear()
    torch.testing.assert_close(self_ensemble(model, x), expected)
    assert model.batches == batches
    torch.testing.assert_close(restore_tiles(partial(self_ensemble, model), x, tile=99), expected)


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (4, 5), (2, 99), (99, 99)])
def test_local_mean(window):
    x = image(7, 9)
    kh, kw = min(window[0], 7), min(window[1], 9)
    means = F.avg_pool2d(x, (kh, kw), stride=1)
    (top, left) = (kh - 1) // 2, (kw - 1) // 2
    expected = F.pad(means, (left, kw - 1 - left, top, kh - 1 - top), mode="replicate")
    torch.testing.assert_close(local_mean(x, window), expected)
    assert local_mean(x.bfloat16(), window).dtype == torch.bfloat16
