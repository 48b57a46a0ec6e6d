"""Test that the pictures of benchmarks/report/mixer_views.py show what the mixers compute."""

import timm
import torch

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.report import mixer_views


def test_the_receptive_field_of_a_known_model_is_found():
    """Only the stem and two 3x3 downsamplings mix pixels, so the middle token sees 17 x 17 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("metaformer_identity_nano", norm1="none", norm2="none", norm="none", layer_scale=0).eval()
    field = mixer_views.receptive_field(model, torch.randn(4, 3, 32, 32))
    seen = field.nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([8, 8], [24, 24])
    assert field.max() == 1 and 1 <= mixer_views.half_side(field, (16, 16)) < 17


def test_half_side_is_the_side_of_the_square_that_holds_half_of_the_field():
    field = torch.zeros(9, 9)
    field[3:6, 3:6] = 1
    assert mixer_views.half_side(field, (4, 4)) == 3
    # The square must reach 5 pixels to each side: with 4 pixels, it would hold only 4 of the 9 ones.
    assert mixer_views.half_side(field, (0, 0)) == 11
