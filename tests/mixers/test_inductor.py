"""Inductor's code for one block of each mixer; more would take long to compile."""

import shutil

import pytest
import torch

from metamix.mixers import list_mixers
from metamix.models import MetaFormer


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("mixer", list_mixers())
def test_compiled_block_is_the_block(mixer):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MetaFormer(img_size=16, depths=(1,), dims=(8,), mixer=mixer, layer_scale=0, mlp_ratio=0).eval()
    block, x = model.stages[0].blocks[0], torch.randn(2, 8, 4, 4)
    compiled = torch.compile(block, fullgraph=True)
    with torch.no_grad():
        expected = block(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert (expected - x).abs().max() > 0.01
