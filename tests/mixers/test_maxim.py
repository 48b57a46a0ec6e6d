import pytest
import torch
from torch.nn.functional import pad

from metamix.mixers import create_mixer
from tests.helpers.formulas import assert_equal, gelu_tanh, layer_norm, linear, random_map, random_mixer


def sets(size, k, grid):
    """Yield the tokens (y, x) of each set: one block, or the same place in each cell of the grid."""
    (h, w), (kh, kw) = size, k
    nh, nw = h // kh, w // kw
    for p in range(nh):
        for q in range(nw):
            if grid:
                yield [(i * nh + p, j * nw + q) for i in range(kh) for j in range(kw)]
            else:
                yield [(p * kh + i, q * kw + j) for i in range(kh) for j in range(kw)]


def gmlp(x, mlp, k, grid):
    """Compute x + Linear(a * (S(norm(b)) + 1)), where a, b = GELU(Linear(norm(x))) and S mixes each set."""
    a, b = gelu_tanh(linear(layer_norm(x, mlp.norm, 1e-6), mlp.fc1)).chunk(2, 1)
    b = layer_norm(b, mlp.gate_norm, 1e-6)
    mixed = torch.empty_like(b)
    for tokens in sets(x.shape[2:], k, grid):
        values = torch.stack([b[:, :, y, x] for y, x in tokens], -1)
        values = values @ mlp.spatial.weight[:, :, 0, 0].T + mlp.spatial.bias
        for n, (row, column) in enumerate(tokens):
            mixed[:, :, row, column] = values[..., n]
    return x + linear(a * (mixed + 1), mlp.fc2)


def formula(x, mixer, block, grid):
    h, w = x.shape[2:]
    multiple = [next(n for n in range(1, 999) if n % b == n % g == 0) for b, g in zip(block, grid)]
    x = pad(x, (0, -w % multiple[1], 0, -h % multiple[0]))
    u, v = gelu_tanh(linear(x, mixer.fc1)).chunk(2, 1)
    y = torch.cat([gmlp(u, mixer.grid, grid, True), gmlp(v, mixer.block, block, False)], 1)
    return linear(y, mixer.fc2)[:, :, :h, :w]


@pytest.mark.parametrize("size", [(12, 8), (1, 1), (1, 5), (7, 9), (13, 4)])
@pytest.mark.parametrize("block, grid", [((2, 4), (3, 2)), ((3, 3), (3, 3)), ((2, 2), (4, 1))])
def test_outputs_equal_the_formula(block, grid, size):
    mixer = random_mixer("maxim", 4, (12, 8), block_size=block, grid_size=grid)
    x = random_map(2, 4, *size)
    assert_equal(mixer(x), formula(x, mixer, block, grid))


@pytest.mark.parametrize("f, block_factor, grid_factor", [(1, 2, 2), (2, 1, 3), (3, 2, 1)])
def test_factors_set_the_widths(f, block_factor, grid_factor):
    factors = dict(input_proj_factor=f, block_gmlp_factor=block_factor, grid_gmlp_factor=grid_factor)
    mixer = random_mixer("maxim", 8, (4, 4), block_size=(2, 2), grid_size=(2, 2), **factors)
    assert mixer.fc1.weight.shape == (8 * f, 8, 1, 1)
    assert mixer.block.fc1.weight.shape[:2] == (4 * f * block_factor, 4 * f)
    assert mixer.grid.fc1.weight.shape[:2] == (4 * f * grid_factor, 4 * f)
    x = random_map(1, 8, 6, 5)
    assert_equal(mixer(x), formula(x, mixer, (2, 2), (2, 2)))


def test_a_token_sees_its_block_and_one_token_of_each_grid_cell():
    mixer = random_mixer("maxim", 4, (8, 8), block_size=(2, 2), grid_size=(2, 2))
    x = random_map(1, 4, 8, 8).requires_grad_()
    mixer(x)[0, :, 5, 2].sum().backward()
    seen = {(i, j) for i, j in x.grad[0].abs().sum(0).nonzero().tolist()}
    assert seen == {(4, 2), (4, 3), (5, 2), (5, 3)} | {(1, 2), (1, 6), (5, 6)}


def test_spatial_weights_start_with_the_authors_standard_deviation():
    spatial = create_mixer("maxim", 8, size=(8, 8)).grid.spatial
    assert spatial.weight.shape == (64, 64, 1, 1)
    assert spatial.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_width_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(ValueError, match="dim 6, input_proj_factor 1 and a gmlp factor 1 give an odd width"):
        create_mixer("maxim", 6, size=(8, 8), input_proj_factor=1, block_gmlp_factor=1)
