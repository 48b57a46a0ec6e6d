"""Test that multiply-adds are counted as other counters do, and as the tests of many models count them."""

import pytest
import timm
import torch

import metamix
from metamix.models import count_macs
from tests.helpers.counting import count_macs_of_equal_blocks

SIZE = (3, 32, 32)
QUIET = dict(as_strings=False, print_per_layer_stat=False)


@pytest.fixture(params=metamix.list_mixers())
def model(request):
    return timm.create_model(f"metaformer_{request.param}_nano", depths=(1, 1), dims=(32, 64)).eval()


def test_ptflops_with_the_aten_backend_agrees(model):
    ptflops = pytest.importorskip("ptflops")
    expected = count_macs(model, SIZE)
    macs, _ = ptflops.get_model_complexity_info(model, SIZE, **QUIET, backend="aten")
    assert expected < macs < 1.03 * expected  # ptflops counts norms too


def test_counters_that_hook_modules_miss_operations(model):
    ptflops, thop = pytest.importorskip("ptflops"), pytest.importorskip("thop")
    expected = count_macs(model, SIZE)
    by_ptflops, _ = ptflops.get_model_complexity_info(model, SIZE, **QUIET, backend="pytorch")
    by_thop, _ = thop.profile(model, (torch.zeros(1, *SIZE),), verbose=False)
    assert by_ptflops < 0.98 * expected and by_thop < 0.98 * expected


@pytest.mark.parametrize("name", ["metaformer_raft_nano", "wavemix_144_7"])
def test_the_blocks_of_a_stage_cost_the_same(name):
    model = timm.create_model(name, device="meta")
    size = model.default_cfg["input_size"]
    assert count_macs_of_equal_blocks(model, size) == count_macs(model, size)
