"""Test that the pictures of benchmarks/report/mixer_views.py show what the mixers compute."""

import timm
import torch
from einops import rearrange
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.report import mixer_views
from metamix.mixers import create_mixer


def test_attention_is_that_of_the_mixer():
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
        share = mixer_views.attention(mixer, x)
        context = x if mixer.context is None else nn.functional.adaptive_avg_pool2d(x, mixer.context)
        value = rearrange(mixer.value(context), "b (n d) h w -> b n (h w) d", n=mixer.heads)
        y = mixer.proj(rearrange(share @ value, "b n (h w) d -> b (n d) h w", h=8))
        torch.testing.assert_close(y, mixer(x), atol=1e-5, rtol=1e-4)


def test_the_gate_is_that_of_the_mixer():
    mixer = create_mixer("nin", 8, size=(8, 8), grid=(4, 4)).eval()
    nn.init.zeros_(mixer.value.weight), nn.init.ones_(mixer.value.bias)  # then the output is the gate
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(mixer_views.gate(mixer, x), mixer(x).square().mean(1).sqrt())


def test_bands_hold_what_the_map_holds():
    """The Haar transform keeps the sum of squares; a map that is constant along its rows has no HL and no HH."""
    mixer = create_mixer("wavemix", 8, size=(8, 8)).eval()
    x = torch.randn(2, 8, 8, 1).expand(2, 8, 8, 8)
    found = mixer_views.bands(mixer, x)
    total = sum(band.square().sum((1, 2)) * 2 for band in found.values())
    torch.testing.assert_close(total, mixer.reduce(x).square().sum((1, 2, 3)))
    assert found["HL"].max() < 1e-6 < found["LH"].max() and found["HH"].max() < 1e-6 < found["LL"].max()


def test_matrices_are_those_of_the_mixer():
    """Without GELU and biases, the vertical raft MLP multiplies each column by its matrix."""
    mixer = create_mixer("raft", 4, size=(4, 6), raft_size=2)
    vertical = mixer.vertical
    vertical.act, vertical.norm = nn.Identity(), nn.Identity()
    nn.init.zeros_(vertical.fc1.bias), nn.init.zeros_(vertical.fc2.bias)
    x = torch.randn(1, 4, 4, 6)
    columns = rearrange(x, "b (r c) h w -> (r h) (b w c)", r=2)
    y = rearrange(vertical(x), "b (r c) h w -> (r h) (b w c)", r=2)
    torch.testing.assert_close(mixer_views.raft_matrices(mixer)["vertical"] @ columns, y, atol=1e-5, rtol=1e-4)


def test_receptive_field_of_a_known_model():
    """Without mixer and norms, the middle token sees 17 pixels: a stem and two 3x3 downsamplings."""
    torch.manual_seed(0)
    model = timm.create_model("metaformer_identity_nano", norm1="none", norm2="none", norm="none", layer_scale=0).eval()
    field = mixer_views.receptive_field(model, torch.randn(4, 3, 32, 32))
    seen = field.nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([8, 8], [24, 24])
    assert field.max() == 1 and 1 <= mixer_views.half_side(field, (16, 16)) < 17


def test_half_side():
    field = torch.zeros(9, 9)
    field[3:6, 3:6] = 1
    assert mixer_views.half_side(field, (4, 4)) == 3
    assert mixer_views.half_side(field, (0, 0)) == 11  # a distance of 5, as 4 reaches 4 of the 9
