"""Test `output_stride`: finer last maps for segmentation, with the same weights."""

import warnings
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F

import metamix
from metamix.models.embed import ConvEmbed

SHALLOW = {"depths": (1, 1, 1, 1), "dims": (8, 16, 40, 96)}
MIXERS = metamix.list_mixers()


def create(name="metaformer_pooling_s12", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **SHALLOW | {"img_size": 64} | kwargs).eval()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("size, output_stride, strides", [
    ("s12", 4, [4, 4, 4, 4]),
    ("s12", 8, [4, 8, 8, 8]),
    ("s12", 16, [4, 8, 16, 16]),
    ("s12", 32, [4, 8, 16, 32]),
    ("tiny", 8, [4, 8, 8, 8]),
    ("tiny", 16, [4, 8, 16, 16]),
])  # fmt: skip
@torch.no_grad()
def test_output_stride_sets_the_strides_of_the_maps(mixer, size, output_stride, strides):
    model = create(f"metaformer_{mixer}_{size}", features_only=True, output_stride=output_stride)
    assert model.feature_info.reduction() == strides
    for h, w in ((64, 64), (96, 32)):
        features = model(torch.randn(1, 3, h, w))
        assert [tuple(f.shape[2:]) for f in features] == [(h // s, w // s) for s in strides]
        assert all(f.isfinite().all() for f in features)


@pytest.mark.parametrize("mixer", MIXERS)
def test_weights_of_the_default_stride_are_loaded(mixer, tmp_path):
    model = create(f"metaformer_{mixer}_s12")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    finer = create(f"metaformer_{mixer}_s12", output_stride=8, checkpoint_path=tmp_path / "w.pt")
    assert finer.state_dict().keys() == model.state_dict().keys()
    assert [stage.downsample.stride[0] for stage in list(finer.stages)[1:]] == [2, 1, 1]


@pytest.mark.parametrize("name", ["metaformer_pooling_s12", "metaformer_pooling_tiny"])
@torch.no_grad()
def test_without_mixing_the_finer_maps_contain_the_coarse_maps(name):
    """With identity mixers and no norms, every second or fourth value of a finer map is a value of the coarse map."""
    options = {"name": name, "mixer": "identity", "norm1": "none", "norm2": "none", "features_only": True}
    coarse = create(**options)
    x = torch.randn(1, 3, 64, 96)
    expected = coarse(x)
    for output_stride, steps in ((16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))):
        finer = create(**options, output_stride=output_stride)
        finer.load_state_dict(coarse.state_dict())
        for feature, e, step in zip(finer(x), expected, steps):
            torch.testing.assert_close(feature[:, :, ::step, ::step], e, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_downsampling_may_be_any_constructor_of_convolutions():
    """A function that builds the same convolutions as the default gives the same model."""
    model = create(output_stride=8, downsample=lambda i, o: ConvEmbed(i, o, kernel_size=3, stride=2, padding=1))
    x = torch.randn(1, 3, 64, 64)
    assert model.feature_info[-1]["reduction"] == 8
    assert torch.equal(model(x), create(output_stride=8)(x))


@torch.no_grad()
def test_both_sides_of_a_kernel_are_padded():
    model = create(output_stride=8, downsample=lambda i, o: ConvEmbed(i, o, (3, 5), stride=2, padding=(1, 2)))
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (8, 8)


def test_a_file_loads_without_a_warning(tmp_path):
    torch.save(timm.create_model("metaformer_pooling_s12", **SHALLOW).state_dict(), tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        create(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pt")}, output_stride=16)


@torch.no_grad()
def test_a_dilated_convolution_takes_a_map_one_pixel_wide():
    model = create(output_stride=8, img_size=32)
    down = model.stages[3].downsample
    assert (down.dilation, down.padding) == ((2, 2), (2, 2))
    x = torch.randn(1, 40, 5, 1)
    torch.testing.assert_close(down(x), F.conv2d(x, down.weight, down.bias, 1, 2, 2))


@pytest.mark.parametrize("name, output_stride, accepted", [
    ("metaformer_pooling_s12", 64, "4, 8, 16, 32"),
    ("metaformer_pooling_s12", "16", "4, 8, 16, 32"),
    ("metaformer_pooling_nano", 16, "2, 4, 8"),
    ("wavemix_192_16", 8, "4"),
])  # fmt: skip
def test_other_strides_are_refused(name, output_stride, accepted):
    words = f"output_stride is {output_stride!r}: give a stride of this model's maps, {accepted}\\."
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, output_stride=output_stride, device="meta")


def test_a_stride_that_no_stage_has_is_refused():
    downsample = [partial(ConvEmbed, kernel_size=3, stride=s, padding=1) for s in (4, 2, 1)]
    with pytest.raises(ValueError, match="output_stride is 8: give a stride of this model's maps, 4, 16, 32"):
        create(downsample=downsample, output_stride=8)
    assert create(downsample=downsample, output_stride=16).feature_info[-1]["reduction"] == 16


@pytest.mark.parametrize("name, options", [
    ("metaformer_pooling_s12", {"downsample": partial(ConvEmbed, kernel_size=2, stride=2)}),
    ("raftmlp_s", {}),
])  # fmt: skip
def test_downsampling_layers_without_odd_kernels_are_refused(name, options):
    with pytest.raises(ValueError, match="output_stride is 16, but .* is not a convolution with an odd kernel: leave"):
        timm.create_model(name, output_stride=16, device="meta", **options)


def test_the_stride_of_a_model_is_accepted_with_even_kernels():
    downsample = partial(ConvEmbed, kernel_size=2, stride=2)
    assert create(downsample=downsample, output_stride=32).feature_info[-1]["reduction"] == 32


@pytest.mark.parametrize("size, head, stride", [
    ("s12", "DeepLabV3", 8),
    ("s12", "DeepLabV3Plus", 16),
    ("s12", "PAN", 16),
    ("tiny", "DeepLabV3Plus", 16),
])  # fmt: skip
@torch.no_grad()
def test_heads_of_segmentation_models_pytorch_take_the_output_stride(size, head, stride):
    smp = pytest.importorskip("segmentation_models_pytorch")
    args = dict(encoder_name=f"tu-metaformer_raft_{size}", encoder_weights=None, encoder_output_stride=stride)
    model = getattr(smp, head)(**args, classes=5, **SHALLOW).eval()
    x = torch.randn(1, 3, 128, 192)
    assert model.encoder(x)[-1].shape[-2:] == (128 // stride, 192 // stride)
    assert model(x).shape == (1, 5, 128, 192)
