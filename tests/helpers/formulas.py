"""Compute the papers' formulas in loops and sums, for maps (B, C, H, W) in float64."""

import math

import torch
from torch import nn

from metamix.mixers import create_mixer


def random_mixer(name: str, dim: int, size: tuple[int, int], **options) -> nn.Module:
    """Build a mixer in float64 and evaluation mode, with all parameters and statistics random."""
    torch.manual_seed(0)
    mixer = create_mixer(name, dim, size=size, **options).double().eval()
    for key, value in mixer.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if key.endswith("running_var") else torch.randn_like(value) * 0.5)
    return mixer


def random_map(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64)


def linear(x, layer):
    """Apply a 1x1 convolution as a linear map of the channels."""
    return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]


def layer_norm(x, norm, eps):
    """Normalise each token over its channels."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * norm.weight[:, None, None] + norm.bias[:, None, None]


def gelu(x):
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def resize(x, size, matrix):
    """Resample a map along both sides; `matrix(new, old)` holds the weight of each old row for each new row."""
    return torch.einsum("yh,xw,bchw->bcyx", matrix(size[0], x.shape[2]), matrix(size[1], x.shape[3]), x)


def bilinear(new, old):
    m = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        left = math.floor(place)
        m[i, left] += 1 - (place - left)
        m[i, min(left + 1, old - 1)] += place - left
    return m


def bicubic(new, old, a=-0.75):
    def kernel(t):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    m = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            m[i, min(max(tap, 0), old - 1)] += kernel(place - tap)
    return m


def area(new, old):
    """Return the matrix (new, old) that computes each new row as the mean of the old rows that it overlaps."""
    m = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        first, end = math.floor(i * old / new), math.ceil((i + 1) * old / new)
        m[i, first:end] = 1 / (end - first)
    return m


def assert_equal(actual, expected, tolerance=1e-10):
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
