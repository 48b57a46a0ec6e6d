"""Test WaveMix's restoration networks: weights of the authors' code, sizes, dtypes and gradients."""

import pytest
import torch
import torch.nn.functional as F

from metamix.models import load_official
from metamix.models.wavemix_restoration import WaveMixSisr, WaveMixSR
from tests.helpers.goldens import read_exact, read_golden, wavemix_state

SISR = "restoration/wavemix_sisr_level1_24x32"


@torch.no_grad()
def test_outputs_of_wavemix_sisr_equal_the_authors_outputs():
    constructor, state, tensors = read_golden(SISR)
    model, x = load_official("wavemix_superresolution", state, **constructor).double(), tensors["input"].double()
    theirs = read_exact(SISR)["output"]
    assert (model(x) - theirs).abs().max() < 1e-9 * theirs.std()
    for block in model.blocks:
        weight = block.mixer.levels[0].fc1.weight
        weight.copy_(weight.flip(1))
    assert (model(x) - theirs).abs().max() > 1e-3 * theirs.std()


@torch.no_grad()
def test_wavemixsr_loads_tensors_with_the_authors_names():
    torch.manual_seed(0)
    model = WaveMixSR(3, dim=16, depth=2).eval()
    state = wavemix_state(model, {"stem.0": "path1.1", "stem.1": "path1.2", "head": "final"})
    assert {"path1.1.weight", "path1.2.bias", "final.1.bias", "layers.1.feedforward.5.running_mean"} <= state.keys()
    loaded = load_official("wavemixsr", state, final_dim=16, ff_channel=16, depth=2, scale_factor=3)
    x = torch.rand(2, 3, 8, 6)
    assert torch.equal(loaded(x), model(x))
    assert loaded.blocks[0].mixer.levels[0].drop.p == 0.3
    del state["path1.2.bias"]
    with pytest.raises(ValueError, match="lacks path1.2.bias"):
        load_official("wavemixsr", state, final_dim=16, ff_channel=16, depth=2)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2])
def test_a_residual_adds_the_upsampled_image(scale):
    torch.manual_seed(0)
    for make, mode in ((WaveMixSR, "bicubic"), (WaveMixSisr, "bilinear")):
        options = dict(scale=scale, dim=8, depth=1) | ({"mode": mode} if make is WaveMixSR else {"in_chans": 1})
        plain, model = make(**options).eval(), make(**options, residual=True).eval()
        model.load_state_dict(plain.state_dict())
        x = torch.rand(2, 1, 8, 6)
        torch.testing.assert_close(model(x), plain(x) + F.interpolate(x, scale_factor=scale, mode=mode))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 9)])
def test_images_of_odd_sides_are_padded_and_restored(size):
    torch.manual_seed(0)
    model, x = WaveMixSisr(1, scale=1, dim=8, depth=1).eval(), torch.rand(2, 1, *size)
    y = model(x)
    assert y.shape == x.shape
    even = F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="replicate" if min(size) == 1 else "reflect")
    torch.testing.assert_close(model(even)[..., : size[0], : size[1]], y)
    assert model.multiple == (2, 2)


def test_training_refuses_odd_image_sizes():
    with pytest.raises(ValueError, match="75 x 100 pixels, but WaveMixSisr trains on multiples of 2 x 2: crop or pad"):
        WaveMixSisr(1, scale=1, dim=8, depth=1)(torch.rand(1, 1, 75, 100))


@torch.no_grad()
def test_colour_is_only_upsampled():
    torch.manual_seed(0)
    for mode in ("bilinear", "bicubic"):
        model, x = WaveMixSR(2, dim=8, depth=1, mode=mode).eval(), torch.rand(1, 3, 7, 5)
        y = model(x)
        assert y.shape == (1, 3, 14, 10)
        assert torch.equal(y[:, 1:], F.interpolate(x[:, 1:], scale_factor=2, mode=mode))
        torch.testing.assert_close(y[:, :1], model(x[:, :1]))


def test_images_with_two_channels_are_refused():
    with pytest.raises(ValueError, match=r"images have 2 channels; WaveMixSR takes 1 \(luminance\) or 3 \(YCbCr\)"):
        WaveMixSR(2, dim=8, depth=1)(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize(
    "model", [lambda: WaveMixSR(2, dim=8, depth=1), lambda: WaveMixSisr(1, dim=8, depth=1, level=2)]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 9), (8, 8)])
def test_images_of_any_size_memory_format_and_dtype_are_enlarged(model, size):
    torch.manual_seed(0)
    model, x = model().eval(), torch.rand(2, 1, *size)
    y = model(x)
    assert y.shape == (2, 1, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), y, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    "model",
    [
        lambda: WaveMixSR(2, dim=8, depth=1),
        lambda: WaveMixSisr(1, dim=8, depth=1, level=2),
        lambda: WaveMixSisr(1, scale=1, dim=8, depth=1, residual=True),
    ],
)
def test_every_parameter_gets_a_gradient(model):
    torch.manual_seed(0)
    model = model().double().train()
    (image,) = model(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    image.sin().sum().backward()
    zero = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert all(name.endswith("up.bias") for name in zero)  # batch norm removes this bias again


@pytest.mark.parametrize(
    "network, options, words",
    [
        (WaveMixSR, dict(scale=1.5), "scale is 1.5"),
        (WaveMixSR, dict(dim="8"), "dim is '8': give a whole number"),
        (WaveMixSR, dict(mode="cubic"), "mode is 'cubic'; did you mean 'bicubic'"),
        (WaveMixSisr, dict(scale=3), "scale is 3, but WaveMixSisr doubles the image size or keeps it: give 1 or 2"),
        (WaveMixSisr, dict(depth=-1), "depth is -1: give a whole number of at least 1"),
    ],
)
def test_wrong_options_are_refused(network, options, words):
    with pytest.raises(ValueError, match=words):
        network(**options)


@torch.no_grad()
def test_sisr_returns_float32_under_autocast():
    model = WaveMixSisr(dim=8, depth=1).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert model.bfloat16()(torch.rand(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
