"""Test raft mixers against the paper's formulas, and how their matrices are stretched for other map sizes."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metamix.mixers import create_mixer
from tests.helpers.formulas import assert_equal, bicubic, bilinear, gelu, layer_norm, random_map, random_mixer, resize

SIZE = (5, 3)


def vertical(x, mlp, r, resized=None):
    """Apply the MLP to each raft, one column of r channels from different groups; stretch its matrices to `resized`."""
    h = layer_norm(x, mlp.norm, 1e-5)
    w1, w2 = mlp.fc1.weight.flatten(1), mlp.fc2.weight.flatten(1)
    b1, b2 = mlp.fc1.bias, mlp.fc2.bias
    length = w1.shape[1] // r
    if resized:
        stretch = torch.kron(torch.eye(r, dtype=x.dtype), bilinear(resized, length))
        w1, w2, b2, length = w1 @ stretch.T * length / resized, stretch @ w2, stretch @ b2, resized
    y = torch.empty_like(x)
    group = x.shape[1] // r
    for image in range(x.shape[0]):
        for c in range(group):
            for column in range(x.shape[3]):
                raft = torch.cat([h[image, g * group + c, :, column] for g in range(r)])
                raft = w2 @ gelu(w1 @ raft + b1) + b2
                for g in range(r):
                    y[image, g * group + c, :, column] = raft[g * length : (g + 1) * length]
    return y


def formula(x, mixer, r, size=None):
    """Compute z = u + H(norm(u)) with u = x + V(norm(x))."""
    u = x + vertical(x, mixer.vertical, r, size and size[0])
    return u + vertical(u.transpose(2, 3), mixer.horizontal, r, size and size[1]).transpose(2, 3)


@pytest.mark.parametrize("resample", ["branch", "stream", "weights", "windows"])
@pytest.mark.parametrize("expansion", [1, 1.5, 2])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_outputs_at_the_trained_size_equal_the_formula(r, expansion, resample):
    mixer = random_mixer("raft", 8, SIZE, raft_size=r, expansion=expansion, resample=resample)
    x = random_map(2, 8, *SIZE)
    assert mixer.vertical.fc1.weight.shape == (int(expansion * r * 5), 1, r, 5)
    assert_equal(mixer(x), formula(x, mixer, r) - x)


OTHER_SIZES = [(1, 1), (1, 6), (3, 5), (7, 4), (10, 6)]


@pytest.mark.parametrize("size", OTHER_SIZES)
@pytest.mark.parametrize("r", [1, 2])
def test_resampling_the_branch_equals_the_formula_at_other_sizes(r, size):
    mixer = random_mixer("raft", 8, SIZE, raft_size=r, resample="branch")
    x = random_map(2, 8, *size)
    trained = resize(x, SIZE, bicubic)
    assert_equal(mixer(x), resize(formula(trained, mixer, r) - trained, size, bicubic))


@pytest.mark.parametrize("size", OTHER_SIZES)
def test_resampling_the_stream_equals_the_formula_at_other_sizes(size):
    mixer = random_mixer("raft", 8, SIZE, resample="stream")
    x = random_map(2, 8, *size)
    assert_equal(mixer(x), resize(formula(resize(x, SIZE, bicubic), mixer, 2), size, bicubic) - x)


@pytest.mark.parametrize("size", OTHER_SIZES)
@pytest.mark.parametrize("r", [1, 2])
def test_resampling_the_weights_equals_the_formula_at_other_sizes(r, size):
    mixer = random_mixer("raft", 8, SIZE, raft_size=r, resample="weights")
    x = random_map(2, 8, *size)
    assert_equal(mixer(x), formula(x, mixer, r, size) - x)


@pytest.mark.parametrize("size", [*OTHER_SIZES, (13, 3), (11, 8)])
@pytest.mark.parametrize("r", [1, 2])
def test_mixing_in_windows_equals_the_formula_at_other_sizes(r, size):
    """The formula applies to each window of the reflected map separately."""
    mixer = random_mixer("raft", 8, (20, 20), raft_size=r, resample="windows", grid=SIZE)
    x = random_map(1, 8, *size)
    rows, columns = ([min(i % p, p - i % p) for i in range(20)] for p in (max(2 * side - 2, 1) for side in size))
    whole = x[:, :, [min(i, size[0] - 1) for i in rows]][..., [min(i, size[1] - 1) for i in columns]]
    y = torch.zeros_like(whole)
    for top in range(0, 16, SIZE[0]):
        for left in range(0, 18, SIZE[1]):
            window = whole[:, :, top : top + SIZE[0], left : left + SIZE[1]]
            y[:, :, top : top + SIZE[0], left : left + SIZE[1]] = formula(window, mixer, r) - window
    assert_equal(mixer(x), y[:, :, : size[0], : size[1]])


def test_grid_is_at_most_the_size():
    assert create_mixer("raft", 8, size=(4, 9), grid=6).vertical.length == 4
    assert create_mixer("raft", 8, size=(4, 9), grid=6).horizontal.length == 6


@pytest.mark.parametrize("size", [(10, 6), (7, 4), (15, 3)])
@pytest.mark.parametrize("r", [1, 2])
def test_a_mixer_adapted_to_larger_maps_equals_one_that_resamples_weights(r, size):
    """Copies of a hidden unit share its output weight, so only the stretched matrices make a difference."""
    old = random_mixer("raft", 8, SIZE, raft_size=r, resample="weights")
    new = random_mixer("raft", 8, size, raft_size=r)
    new.load_state_dict(new.adapt_state(old.state_dict()))
    x = random_map(2, 8, *size)
    assert_equal(new(x), old(x))


def test_adapting_to_smaller_maps_scales_the_remaining_units():
    """If all units are equal and the map is constant along the side, half the units, scaled, give the same result."""
    mlp = random_mixer("raft", 8, (10, 6)).vertical
    nn.init.constant_(mlp.fc1.weight, 0.3), nn.init.constant_(mlp.fc1.bias, 0.2)
    nn.init.constant_(mlp.fc2.weight, 0.1), nn.init.zeros_(mlp.fc2.bias)
    half = random_mixer("raft", 8, SIZE).vertical
    half.load_state_dict(half.adapt_state(mlp.state_dict()))
    x = random_map(1, 8, 1, 3)
    assert_equal(half(x.expand(-1, -1, 5, -1)), mlp(x.expand(-1, -1, 10, -1))[:, :, :5])


def test_multiply_adds_are_counted():
    """FlopCounterMode counts functional convolutions too, unlike counters that hook modules."""
    mixer, (b, c, h, w), r, e = random_mixer("raft", 8, SIZE, raft_size=4, expansion=2), (3, 8, *SIZE), 4, 2
    with FlopCounterMode(display=False) as counter:
        mixer(random_map(b, c, h, w))
    assert counter.get_total_flops() == 2 * (2 * e * r * (h + w)) * (b * c * h * w)


def test_wrong_options_are_refused():
    for options, words in (
        (dict(raft_size=3), "raft_size 3 does not divide the 8 channels: choose a divisor of 8"),
        (dict(expansion=math.inf), "expansion is inf: give a finite number of at least 0"),
        (dict(expansion=0.01), "expansion 0.01 leaves the MLPs no hidden units: give a larger number"),
        (dict(resample="weight"), "resample is 'weight'; did you mean 'weights'"),
        (dict(grid=0), "grid is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            create_mixer("raft", 8, size=SIZE, **options)
