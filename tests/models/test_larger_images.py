"""Test that mixers give similar features for an image and for the same image enlarged.

A backbone made for 224 pixels gets a photograph of 224 pixels, and the same photograph enlarged to 448. The features of
the enlarged photograph are averaged to half their size. Then each channel's mean is subtracted, and the two maps are
correlated over all places and channels. The control is the enlarged photograph with shuffled tiles.

There are two measures:

1. Each mixer alone, at the sizes of all four stages, on the photograph after a random 1x1 convolution.
2. The whole backbone, at stride 4 only. Random weights limit the agreement of deeper stages: without any mixer, it is
   0.97, 0.94, 0.91 and 0.85 in the four stages, and random spatial weights differ from one grid point to the next.

The transposed convolution of wavemix has four kernels for four phases, so random weights make rough maps. Therefore
measure 1 uses wavemix with bilinear upsampling, and measure 2 averages its maps over cells of two by two places.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

import metamix  # noqa: F401  registers the models
from metamix.mixers import create_mixer
from metamix.models.backbone import replace_batch_norms
from metamix.models.metaformer_family import default_mixer_args

MIXERS = ("pooling", "raft", "maxim", "wavemix", "nin", "minattn")
STAGES = ((64, 56), (128, 28), (320, 14), (512, 7))  # channels and side of the maps for 224 pixels


def resized(x, size, **kwargs):
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False, **kwargs)


@pytest.fixture(scope="module")
def photo():
    x = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527] / 255
    return (resized(x, 224, antialias=True) - 0.45) / 0.22


def shuffled(x, tile):
    tiles = F.unfold(x, tile, stride=tile)
    return F.fold(tiles[:, :, torch.randperm(tiles.shape[2])], x.shape[-2:], tile, stride=tile)


def agreement(a, b, cells=1):
    """Return the correlation of a map with a map of twice its size, over averages of `cells` x `cells` places."""
    a, b = F.avg_pool2d(a, cells, ceil_mode=True), F.avg_pool2d(b, 2 * cells, ceil_mode=True)
    a, b = (x - x.mean((-2, -1), keepdim=True) for x in (a, b))
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("dim, side", STAGES)
@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_features_of_a_mixer_agree_on_an_enlarged_photo(photo, mixer, dim, side):
    torch.manual_seed(0)
    options = default_mixer_args(0, dim, size="s12").get(mixer, {})
    if mixer == "wavemix":
        options = dict(mult=1, norm="group", upsample="bilinear")
    mix = create_mixer(mixer, dim, size=(side, side), **options).eval()
    x = F.group_norm(F.conv2d(resized(photo, side, antialias=True), torch.randn(dim, 3, 1, 1)), 1)
    y = mix(x)
    assert agreement(y, mix(resized(x, 2 * side))) > 0.9
    assert agreement(y, mix(resized(shuffled(x, 1), 2 * side))) < 0.5


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_features_of_a_backbone_agree_on_an_enlarged_photo(photo, mixer):
    torch.manual_seed(0)
    arguments = dict(img_size=224, layer_scale=1.0, features_only=True, out_indices=(0,))
    model = replace_batch_norms(timm.create_model(f"metaformer_{mixer}_s12", **arguments)).eval()
    (features,) = model(photo)
    cells = 2 if mixer == "wavemix" else 1
    assert agreement(features, model(resized(photo, 448))[0], cells) > 0.9
    assert agreement(features, model(resized(shuffled(photo, 16), 448))[0], cells) < 0.3


@torch.no_grad()
def test_features_do_not_agree_after_a_shift_by_a_fixed_number_of_tokens(photo):
    """This is another control: a shift by seven places is a quarter of one map and an eighth of the other."""

    class Shift(nn.Module):
        def forward(self, x):
            return x.roll((7, 7), (-2, -1))

    x = resized(photo, 28, antialias=True)
    assert agreement(Shift()(x), Shift()(resized(x, 56))) < 0.5
