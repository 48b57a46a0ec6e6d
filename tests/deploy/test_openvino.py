"""Test that norms rewritten for OpenVINO give the same outputs."""

import pytest
import torch
from timm.layers import GroupNorm1, GroupNorm1Act, LayerNorm2d
from torch import nn

from metamix.deploy.formats.openvino import ChannelNorm, GroupNorm, to_openvino_form
from metamix.layers import Float32LayerNorm2d


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (LayerNorm2d(8, eps=1e-3), ChannelNorm),
        (Float32LayerNorm2d(8), ChannelNorm),
        (GroupNorm1(8, eps=1e-3), GroupNorm),
        (nn.GroupNorm(2, 8), GroupNorm),
        (nn.GroupNorm(2, 8, affine=False), nn.GroupNorm),
        (GroupNorm1Act(8), GroupNorm1Act),
    ],
)
def test_rewritten_norms_give_the_same_outputs(norm, kind):
    torch.manual_seed(0)
    for parameter in norm.double().parameters():
        nn.init.normal_(parameter)
    x = 3 + torch.randn(2, 8, 5, 6).double()
    expected = norm(x)
    inside = to_openvino_form(nn.Sequential(nn.Sequential(norm)))[0][0]
    for rewritten in (to_openvino_form(norm), inside):
        assert type(rewritten) is kind
        torch.testing.assert_close(rewritten(x), expected, rtol=1e-12, atol=1e-12)
