"""Test that norms rewritten for OpenVINO give the same outputs."""

import torch
from timm.layers import GroupNorm1, GroupNorm1Act, LayerNorm2d
from torch import nn

from metamix.deploy.formats.openvino import ChannelNorm, GroupNorm, to_openvino_form
from metamix.layers import Float32LayerNorm2d


def test_rewritten_channel_norms_give_the_same_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(LayerNorm2d(8, eps=1e-3), nn.Sequential(Float32LayerNorm2d(8), nn.Conv2d(8, 4, 1))).double()
    for norm in (model[0], model[1][0]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = 3 + torch.randn(2, 8, 5, 6).double()
    expected = model(x)
    rewritten = to_openvino_form(model)
    assert isinstance(rewritten[0], ChannelNorm) and isinstance(rewritten[1][0], ChannelNorm)
    torch.testing.assert_close(rewritten(x), expected, rtol=1e-12, atol=1e-12)
    alone = LayerNorm2d(8).double()
    torch.testing.assert_close(to_openvino_form(alone)(x), alone(x), rtol=1e-12, atol=1e-12)


def test_rewritten_group_norms_give_the_same_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(GroupNorm1(8, eps=1e-3), nn.GroupNorm(2, 8), nn.GroupNorm(2, 8, affine=False)).double()
    for norm in model[:2]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = 3 + torch.randn(2, 8, 5, 6).double()
    expected = model(x)
    rewritten = to_openvino_form(model)
    assert [type(norm) for norm in rewritten] == [GroupNorm, GroupNorm, nn.GroupNorm]
    torch.testing.assert_close(rewritten(x), expected, rtol=1e-12, atol=1e-12)
    alone = nn.GroupNorm(2, 8).double()
    torch.testing.assert_close(to_openvino_form(alone)(x), alone(x), rtol=1e-12, atol=1e-12)
    with_activation = GroupNorm1Act(8)
    assert to_openvino_form(with_activation) is with_activation
