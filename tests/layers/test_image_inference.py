"""Test padding and self-ensemble against plain implementations, and tiles against whole images."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metamix.layers.image_inference import (
    JPEG_BLOCK,
    PadAndCrop,
    apply_in_tiles,
    run_padded,
    self_ensemble,
    tile_starts,
)


def image(h, w, channels=2, batch=1):
    return torch.arange(batch * channels * h * w, dtype=torch.float64).view(batch, channels, h, w).sin()


class Blur(nn.Module):
    """Convolve 3 x 3 pixels, from two channels to three, and enlarge `scale` times."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale, self.batches = scale, []
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate").double()

    def forward(self, x):
        self.batches.append(len(x))
        return F.interpolate(self.conv(x), scale_factor=self.scale) if self.scale > 1 else self.conv(x)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 5), (9, 8), (15, 16), (33, 20)])
@pytest.mark.parametrize("scale", [1, 2])
def test_padding_is_below_and_to_the_right(size, scale):
    """Small images are reflected repeatedly, as np.pad does."""
    x, seen = image(*size), []

    def enlarge(padded):
        seen.append(padded)
        return padded.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    result = run_padded(enlarge, x, (8, 16))
    missing = -size[0] % 8, -size[1] % 16
    assert np.array_equal(seen[0], np.pad(x, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])], mode="reflect"))
    assert torch.equal(result[..., ::scale, ::scale], x)


def test_an_image_that_fits_is_not_copied():
    x = image(8, 16)
    assert run_padded(lambda padded: padded is x and padded, x, (8, 16)).equal(x)


def test_a_model_in_training_is_refused():
    for run in (apply_in_tiles, self_ensemble):
        with pytest.raises(ValueError, match="Blur is in training mode: call model.eval"):
            run(Blur(), image(8, 8))


@pytest.mark.parametrize("size, batches", [((8, 16), [8, 8]), ((16, 16), [16])])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_self_ensemble_is_the_mean_over_eight_turns_and_flips(size, batches, scale):
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
    torch.testing.assert_close(apply_in_tiles(partial(self_ensemble, model), x, tile=99), expected)


@pytest.mark.parametrize(
    "h, w, tile, overlap", [(40, 33, 16, 6), (16, 50, 16, 4), (9, 5, 16, 4), (31, 32, 8, 7), (20, 33, 16, 0)]
)
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_tiles_equal_the_whole_image_except_at_their_ends(h, w, tile, overlap, scale):
    """The result may differ from the result for the whole image, but only at the ends of tiles."""
    torch.manual_seed(0)
    model, x = Blur(scale).eval(), image(h, w, batch=2)
    whole = model(x)
    y = apply_in_tiles(model, x, tile=tile, overlap=overlap)
    assert y.shape == whole.shape == (2, 3, scale * h, scale * w)
    wrong = (y - whole).abs().amax((0, 1)) > 1e-9
    seams = torch.zeros_like(wrong)
    for n, dim in ((h, 0), (w, 1)):
        for start in tile_starts(n, tile, overlap):
            for edge in (start, start + tile - 1):
                if 0 < edge < n - 1:
                    seams.narrow(dim, scale * edge, scale).fill_(True)
    assert not (wrong & ~seams).any()
    constant = apply_in_tiles(nn.Identity().eval(), torch.ones(1, 1, h, w), tile=tile, overlap=overlap)
    torch.testing.assert_close(constant, torch.ones(1, 1, h, w))


@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_tiles_are_blended_smoothly(scale):
    """If a model returns a different constant for each tile, the result changes in small steps."""
    numbers = iter(range(99))

    def model(x):
        return x.new_full((1, 1, scale * 8, scale * x.shape[-1]), next(numbers))

    y = apply_in_tiles(model, torch.zeros(1, 1, 8, 64), tile=16, overlap=8)[0, 0, 0]
    assert len(y) == scale * 64 and y[0] == 0 and y[-1] == 6
    assert y.diff().min() >= 0 and y.diff().max() < 0.25 / scale  # a hard cut has steps of 1


@torch.no_grad()
def test_bf16_tiles_are_summed_in_float32():
    x = image(40, 33).float()
    y = apply_in_tiles(lambda part: part.bfloat16(), x, tile=16, overlap=6)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x, rtol=0, atol=2**-8)


def test_tiles_cover_the_image_and_start_on_a_grid():
    assert tile_starts(10, 16, 4) == tile_starts(16, 16, 4) == [0]
    assert tile_starts(17, 16, 4) == [0, 8]
    assert tile_starts(1000, 512, 32) == [0, 240, 488]
    for tile, overlap, grid in ((16, 4, 8), (64, 8, 8), (16, 10, 6)):
        for length in range(tile + 1, 6 * tile):
            starts = tile_starts(length, tile, overlap)
            assert starts[0] == 0 and tile - grid < length - starts[-1] <= tile
            assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))
            assert not any(start % grid for start in starts)


@torch.no_grad()
def test_jpeg_blocks_stay_aligned_in_tiles_and_padded_images():
    """A network learns where JPEG's blocks begin, so each tile and padded image here begins with a whole block."""
    h, w = 150, 90
    rows, columns = (torch.arange(n) % JPEG_BLOCK for n in (h, w))
    x = (JPEG_BLOCK * rows[:, None] + columns)[None, None].float()
    places, sides = [], set()

    def model(part):
        places.append(part[0, 0, 0, 0].item())
        sides.update(part.shape[-2:])
        return part

    torch.testing.assert_close(apply_in_tiles(model, x, tile=64, overlap=8), x)
    torch.testing.assert_close(PadAndCrop(model, (192, 128))(x), x)
    assert places == [0] * (3 * 2 + 1)
    sides.clear()
    torch.testing.assert_close(self_ensemble(model, x), x)
    assert sides == {152, 96}  # flipped images begin with a whole block too


@pytest.mark.parametrize("options", [dict(tile=0), dict(tile=40), dict(tile=16, whole=(33, 40))])
@torch.no_grad()
def test_small_images_are_not_cut_into_tiles(options):
    model, x = Blur().eval(), image(33, 40, batch=2)
    torch.testing.assert_close(apply_in_tiles(model, x, overlap=4, **options), model(x), rtol=0, atol=0)
    assert model.batches == [2, 2]
    apply_in_tiles(model, image(34, 40), tile=16, overlap=4, whole=(33, 40))
    assert len(model.batches) > 3  # larger than `whole`, so in tiles


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(tile=8, overlap=8), "tile is 8 and overlap is 8: give 0 <= overlap < tile, or tile 0 for no tiles"),
        (dict(tile=-1), "tile is -1: give a whole number of at least 0"),
        (dict(tile=True, overlap=0), "tile is True: give a whole number"),
        (dict(tile=32.0), "tile is 32.0: give a whole number"),
        (dict(overlap=-1), "overlap is -1: give a whole number of at least 0"),
    ],
)
def test_wrong_sizes_of_tiles_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        apply_in_tiles(nn.Identity().eval(), image(8, 8), **options)
