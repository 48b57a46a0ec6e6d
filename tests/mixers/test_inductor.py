"""Test torch.compile with inductor on one block or mixer at a time, since larger models take too long to compile."""

import shutil

import pytest
import torch
from torch import nn

from metamix.mixers import create_mixer, list_mixers
from metamix.models import MetaFormer

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
def test_a_compiled_block_gives_the_same_outputs(mixer):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MetaFormer(img_size=16, depths=(1,), dims=(8,), mixer=mixer, layer_scale=0, mlp_ratio=0).eval()
    block, x = model.stages[0].blocks[0], torch.randn(2, 8, 4, 4)
    compiled = torch.compile(block, fullgraph=True)
    with torch.no_grad():
        expected = block(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert (expected - x).abs().max() > 0.01


OPTIONS = {
    "maxim": {"block_size": 4, "grid_size": 4},
    "nin": {"grid": 4},
    "minattn": {"qk": "shared", "num_heads": 2, "context": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
@torch.no_grad()
def test_a_compiled_mixer_takes_changing_sizes(mixer):
    """The mixer follows a strided convolution, which turns a side of n pixels into (n - 1) // 2 + 1."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    model = nn.Sequential(stem, create_mixer(mixer, 16, size=(8, 8), **OPTIONS.get(mixer, {}))).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch, h, w in ((2, 16, 16), (3, 24, 24), (2, 20, 28)):
        x = torch.randn(batch, 3, h, w)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
