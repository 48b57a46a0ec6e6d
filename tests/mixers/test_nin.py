import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.formulas import (
    area,
    assert_equal,
    bilinear,
    gelu,
    layer_norm,
    linear,
    random_map,
    random_mixer,
    resize,
)

SIZE = (5, 4)


def gate(x, mixer):
    """Compute an MLP-Mixer block: v + MLP_channels(norm(v)) with v = x + MLP_tokens(norm(x))."""
    tokens, h = mixer.token_mlp, layer_norm(x, mixer.token_norm, 1e-5)
    v = torch.empty_like(x)
    for image in range(x.shape[0]):
        for c in range(x.shape[1]):
            hidden = gelu(tokens.fc1.weight.flatten(1) @ h[image, c].flatten() + tokens.fc1.bias)
            out = tokens.fc2.weight.flatten(1) @ hidden + tokens.fc2.bias
            v[image, c] = x[image, c] + out.reshape(x.shape[2:])
    mlp = mixer.channel_mlp
    return v + linear(gelu(linear(layer_norm(v, mixer.channel_norm, 1e-5), mlp.fc1)), mlp.fc2)


def formula(x, mixer, grid):
    gates = gate(resize(x, grid, area), mixer)
    return linear(x, mixer.value) * resize(gates, x.shape[2:], bilinear)


@pytest.mark.parametrize("grid", [None, (3, 2), (5, 4), (9, 9)])
@pytest.mark.parametrize("size", [SIZE, (1, 1), (1, 6), (7, 5), (10, 8)])
def test_outputs_equal_the_formula(size, grid):
    """A grid of None, or a grid larger than the trained map, becomes as large as the trained map."""
    mixer = random_mixer("nin", 6, SIZE, grid=grid)
    x = random_map(2, 6, *size)
    assert_equal(mixer(x), formula(x, mixer, (3, 2) if grid == (3, 2) else SIZE))


def test_token_dim_and_channel_dim_set_the_widths():
    mixer = random_mixer("nin", 6, SIZE, token_dim=7, channel_dim=9)
    assert mixer.token_mlp.fc1.weight.shape == (7, 1, 5, 4)
    assert mixer.channel_mlp.fc1.weight.shape == (9, 6, 1, 1)
    x = random_map(2, 6, *SIZE)
    assert_equal(mixer(x), formula(x, mixer, SIZE))
    default = random_mixer("nin", 6, SIZE)
    assert len(default.token_mlp.fc1.weight) == default.channel_mlp.fc1.out_channels == 12


def test_weights_stay_the_same_at_another_size_with_the_same_grid():
    old, new = (random_mixer("nin", 6, size, grid=(3, 2)) for size in (SIZE, (20, 16)))
    new.load_state_dict(new.adapt_state(old.state_dict()))
    x = random_map(1, 6, 9, 9)
    assert_equal(new(x), old(x), 0)


@pytest.mark.parametrize("size", [(10, 8), (9, 5), (3, 2)])
def test_resampled_uniform_token_weights_keep_outputs_on_constant_maps(size):
    old, new = random_mixer("nin", 6, SIZE, token_dim=7), random_mixer("nin", 6, size, token_dim=7)
    state = old.state_dict()
    for key, over in (("fc1.weight", (2, 3)), ("fc2.weight", 0), ("fc2.bias", 0)):
        value = state[f"token_mlp.{key}"]
        value.copy_(value.mean(over, keepdim=True).expand_as(value))
    new.load_state_dict(new.adapt_state(state))
    constant = random_map(2, 6, 1, 1)
    expected = old(constant.expand(-1, -1, *SIZE))[..., :1, :1]
    assert_equal(new(constant.expand(-1, -1, *size)), expected.expand(-1, -1, *size))


def test_resampled_token_weights_keep_their_directions():
    """After resampling, the weights still grow along the height and are still constant along the width."""
    old, new = random_mixer("nin", 6, SIZE, token_dim=7), random_mixer("nin", 6, (9, 12), token_dim=7)
    state, ramp = old.state_dict(), torch.arange(5.0, dtype=torch.float64)[:, None].expand(5, 4)
    state["token_mlp.fc1.weight"].copy_(ramp)
    state["token_mlp.fc2.weight"].copy_(ramp.reshape(20, 1, 1, 1).expand(20, 7, 1, 1))
    state["token_mlp.fc2.bias"].copy_(ramp.flatten())
    adapted = new.adapt_state(state)
    maps = adapted["token_mlp.fc1.weight"][0, 0], adapted["token_mlp.fc2.weight"][:, 0].reshape(9, 12)
    for grown in (*maps, adapted["token_mlp.fc2.bias"].reshape(9, 12)):
        assert_equal(grown, grown[:, :1].expand(9, 12))
        assert (grown.diff(dim=0) > 0).all()


def test_the_weight_of_every_token_counts_on_a_smaller_map():
    old, new = random_mixer("nin", 6, (12, 8), token_dim=96), random_mixer("nin", 6, (2, 2), token_dim=96)
    state = old.state_dict()
    state["token_mlp.fc1.weight"].copy_(torch.eye(96).view(96, 1, 12, 8))  # hidden unit i reads token i
    assert (new.adapt_state(state)["token_mlp.fc1.weight"].flatten(1) != 0).any(1).all()


def test_multiply_adds_are_counted():
    """FlopCounterMode counts functional convolutions too, unlike counters that hook modules."""
    mixer, (h, w), (gh, gw) = random_mixer("nin", 6, (8, 8), grid=(5, 4), token_dim=7, channel_dim=9), (8, 8), (5, 4)
    with FlopCounterMode(display=False) as counter:
        mixer(random_map(1, 6, h, w))
    value, tokens, channels = 6 * 6 * h * w, 2 * 7 * gh * gw * 6, 2 * 6 * 9 * gh * gw
    assert counter.get_total_flops() == 2 * (value + tokens + channels)
