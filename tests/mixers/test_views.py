"""Test that the views in `metamix explain` and benchmarks/report/mixer_views.py show what the mixers compute."""

import pytest
import torch
from einops import rearrange
from torch import nn

from metamix.mixers import create_mixer, views


def test_attention_equals_the_attention_in_the_mixer():
    for options in (
        dict(qk="shared", num_heads=2, context=(4, 4)),
        dict(qk="separate", num_heads=1),
        dict(qk="cholesky"),
        dict(num_heads=2, positions=True),
    ):
        mixer = create_mixer("minattn", 8, size=(8, 8), **options).eval()
        for p in mixer.parameters():
            nn.init.normal_(p, std=0.3)
        x = torch.randn(2, 8, 8, 8)
        share = views.attention(mixer, x)
        context = x if mixer.context is None else nn.functional.adaptive_avg_pool2d(x, mixer.context)
        value = rearrange(mixer.value(context), "b (n d) h w -> b n (h w) d", n=mixer.heads)
        y = mixer.proj(rearrange(share @ value, "b n (h w) d -> b (n d) h w", h=8))
        torch.testing.assert_close(y, mixer(x), atol=1e-5, rtol=1e-4)
        one = views.token_attention(mixer, x, (0.3, 0.9))  # row 2, column 7
        torch.testing.assert_close(one.flatten(1), share.mean(1)[:, 2 * 8 + 7])


def test_gate_equals_the_gate_in_the_mixer():
    mixer = create_mixer("nin", 8, size=(8, 8), grid=(4, 4)).eval()
    nn.init.zeros_(mixer.value.weight), nn.init.ones_(mixer.value.bias)  # so that the output is the gate
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(views.gate(mixer, x), mixer(x).square().mean(1).sqrt())


def test_bands_keep_the_energy_and_the_directions_of_the_map():
    """The Haar transform keeps the sum of squares; a map that is constant along its rows has no HL and no HH."""
    mixer = create_mixer("wavemix", 8, size=(8, 8)).eval()
    x = torch.randn(2, 8, 8, 1).expand(2, 8, 8, 8)
    shown = views.bands(mixer, x)
    total = sum(band.square().sum((1, 2)) * 2 for band in shown.values())
    torch.testing.assert_close(total, mixer.reduce(x).square().sum((1, 2, 3)))
    assert shown["HL"].max() < 1e-6 < shown["LH"].max() and shown["HH"].max() < 1e-6 < shown["LL"].max()


def test_matrices_equal_the_matrices_in_the_mixer():
    """Without norm, GELU and biases, the vertical MLP multiplies each raft by one matrix."""
    mixer = create_mixer("raft", 4, size=(4, 6), raft_size=2)
    vertical = mixer.vertical
    vertical.act, vertical.norm = nn.Identity(), nn.Identity()
    nn.init.zeros_(vertical.fc1.bias), nn.init.zeros_(vertical.fc2.bias)
    x = torch.randn(1, 4, 4, 6)
    columns = rearrange(x, "b (r c) h w -> (r h) (b w c)", r=2)
    y = rearrange(vertical(x), "b (r c) h w -> (r h) (b w c)", r=2)
    torch.testing.assert_close(views.matrices(mixer)["vertical"] @ columns, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name, titles",
    {
        "minattn": ["attention of the marked token"],
        "nin": ["gate, RMS over channels"],
        "wavemix": ["band LL", "band LH", "band HL", "band HH"],
        "raft": ["vertical weights", "horizontal weights"],
        "maxim": ["grid weights", "block weights"],
        "pooling": [],
    }.items(),
)
def test_each_mixer_has_the_expected_views(name, titles):
    mixer = create_mixer(name, 8, size=(8, 8)).eval()
    shown = views.view(mixer, torch.randn(1, 8, 8, 8), (0.5, 0.5))
    assert [view.title for view in shown] == titles
    assert all(view.values.ndim == 2 and view.is_map == ("weights" not in view.title) for view in shown)


def test_a_users_mixer_can_be_shown():
    class Mine(nn.Identity):
        pass

    views.view.register(Mine, lambda mixer, x, point: [views.View("mean", x[0].mean(0))])
    assert views.view(Mine(), torch.ones(1, 2, 3, 3), (0, 0))[0].values.tolist() == [[1.0] * 3] * 3
