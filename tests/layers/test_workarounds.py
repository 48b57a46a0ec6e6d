"""Reproducers of the library bugs that `metamix.layers` works around.

Each test shows the bug in the library and that our layer does not have it. Where the library is fixed the test skips:
once it skips on the oldest supported version, the workaround can go.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import nn

from metamix.layers import Conv2d, GlobalPool

LAYOUTS = (torch.contiguous_format, torch.channels_last)
CHANNELS_LAST = torch.channels_last


def skip_fixed(layer: str):
    pytest.skip(f"fixed in torch {torch.__version__}: metamix.layers.{layer} can go once older versions do")


FROZEN = """
import torch, timm, metamix.layers
norm = {norm}(8)
norm.bias.requires_grad_(False)
norm(torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)).square().sum().backward()
"""


def test_group_norm_on_a_frozen_input():
    """Run in subprocesses: the failure is a segmentation fault."""
    codes = [
        subprocess.run([sys.executable, "-c", FROZEN.format(norm=norm)], stderr=subprocess.DEVNULL).returncode
        for norm in ("metamix.layers.GroupNorm1", "timm.layers.GroupNorm1")
    ]
    assert codes[0] == 0
    if codes[1] == 0:
        skip_fixed("GroupNorm1")
    assert codes[1] < 0


def one_pixel_gradient(conv: nn.Conv2d, shape: tuple[int, ...]) -> torch.Tensor:
    """The gradient of the weight that meets padding alone, over memory that held NaN."""
    memory = torch.full((100_000,), float("nan"))
    del memory
    x = torch.randn(shape).contiguous(memory_format=CHANNELS_LAST)
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    y.sum().backward()
    torch.testing.assert_close(y.float(), nn.Conv2d.forward(conv, x), rtol=0.02, atol=0.02)
    return conv.weight.grad[..., [0, 2]]


def test_convolution_of_a_one_pixel_map():
    make = partial(dict, kernel_size=3, stride=2, padding=1)
    shapes = [(4, 8, 1, 1), (4, 8, 3, 1)] * 3
    assert not any(one_pixel_gradient(Conv2d(8, 8, **make()), shape).any() for shape in shapes)
    if not any(one_pixel_gradient(nn.Conv2d(8, 8, **make()), shape).any() for shape in shapes):
        skip_fixed("Conv2d")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_a_global_mean(layout):
    x = torch.randn(2, 5, 3, 7).contiguous(memory_format=layout).requires_grad_()
    y = GlobalPool("avg")(x)
    torch.testing.assert_close(y, x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.stride() == x.stride()
    torch.testing.assert_close(gradient, (2 / 21 * y).detach()[..., None, None].expand(2, 5, 3, 7))


def test_gradient_of_timms_global_mean_is_contiguous():
    x = torch.randn(2, 5, 3, 7).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    (gradient,) = torch.autograd.grad(SelectAdaptivePool2d(pool_type="avg", flatten=True)(x).square().sum(), x)
    if gradient.stride() == x.stride():
        skip_fixed("GlobalPool")
    assert gradient.is_contiguous()
