import numpy as np
import pytest
import pywt
import torch

from metamix.mixers import create_mixer
from metamix.mixers.wavemix import dwt2
from tests.helpers.formulas import assert_equal, bilinear, gelu, linear, random_map, random_mixer, resize

WAVELETS = ["haar", "db1", "bior1.1", "rbio1.1", "db2", "sym4", "coif1", "bior2.2", "rbio1.3", "bior3.5"]


def pywt_dwt2(x, wavelet):
    low, high = pywt.dwt2(x.detach().numpy(), wavelet, mode="zero")
    return torch.from_numpy(np.concatenate([low, *high], axis=1))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 6), (12, 9)])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_transform_equals_pywavelets(wavelet, size):
    x = random_map(2, 3, *size)
    assert_equal(dwt2(x, pywt.Wavelet(wavelet).filter_bank[:2]), pywt_dwt2(x, wavelet), 1e-12)


def transposed_convolution(x, up):
    """Add a 4 x 4 patch for each value, with a stride of 2, and crop one pixel on each side."""
    h, w = x.shape[2:]
    y = torch.zeros(x.shape[0], up.out_channels, 2 * h + 2, 2 * w + 2, dtype=x.dtype)
    for i in range(h):
        for j in range(w):
            y[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += torch.einsum("bi,iohw->bohw", x[:, :, i, j], up.weight)
    return y[:, :, 1:-1, 1:-1] + up.bias[:, None, None]


def normalise(x, norm):
    if isinstance(norm, torch.nn.GroupNorm):
        mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    elif norm.training:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    else:
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    return (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight[:, None, None] + norm.bias[:, None, None]


def formula(x, mixer, wavelet, upsample):
    low, bands, sizes = linear(x, mixer.reduce), [], []
    for _ in mixer.levels:
        sizes.append(low.shape[2:])
        bands.append(pywt_dwt2(low, wavelet))
        low = bands[-1].chunk(4, dim=1)[0]
    y = None
    for size, band, mlp in list(zip(sizes, bands, mixer.levels))[::-1]:
        y = band if y is None else torch.cat([band, y], 1)
        y = linear(gelu(linear(y, mlp.fc1)), mlp.fc2)
        if upsample == "transposed":
            y = transposed_convolution(y, mlp.up)
        else:
            y = resize(y, (2 * y.shape[2], 2 * y.shape[3]), bilinear)
        y = normalise(y, mlp.norm)
        top, left = (y.shape[2] - size[0]) // 2, (y.shape[3] - size[1]) // 2
        y = y[:, :, top : top + size[0], left : left + size[1]]
    return y


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 6), (17, 10)])
@pytest.mark.parametrize("upsample", ["transposed", "bilinear"])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_levels_and_upsampling_equal_the_formula(level, upsample, size):
    mixer = random_mixer("wavemix", 8, (8, 8), level=level, upsample=upsample)
    assert len(mixer.levels) == level
    x = random_map(2, 8, *size)
    assert_equal(mixer(x), formula(x, mixer, "haar", upsample))


@pytest.mark.parametrize("size", [(8, 8), (9, 5)])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("wavelet", ["db2", "sym4", "bior2.2", "rbio1.3"])
def test_other_wavelets_equal_the_formula(wavelet, level, size):
    mixer = random_mixer("wavemix", 8, (8, 8), level=level, wavelet=wavelet)
    x = random_map(2, 8, *size)
    assert_equal(mixer(x), formula(x, mixer, wavelet, "transposed"))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [True, False])
def test_norms_equal_the_formula(training, norm):
    mixer = random_mixer("wavemix", 8, (8, 8), level=2, norm=norm).train(training)
    x = random_map(3, 8, 7, 5)
    assert_equal(mixer(x), formula(x, mixer, "haar", "transposed"))


def test_mult_and_ff_channel_set_the_widths():
    mixer = random_mixer("wavemix", 8, (8, 8), level=2, mult=3, ff_channel=5)
    finest, deepest = mixer.levels
    assert [finest.fc1.weight.shape[:2], deepest.fc1.weight.shape[:2]] == [(24, 12), (24, 8)]
    assert [finest.up.weight.shape[:2], deepest.up.weight.shape[:2]] == [(5, 8), (5, 4)]
    x = random_map(2, 8, 7, 5)
    assert_equal(mixer(x), formula(x, mixer, "haar", "transposed"))


def test_cropping_keeps_the_centre():
    """The output lies where the input was, although filters of eight taps make bands larger than half of the map."""
    mixer = random_mixer("wavemix", 8, (16, 16), wavelet="sym4", norm="group")
    x = torch.zeros(1, 8, 16, 16, dtype=torch.float64)
    empty = mixer(x)
    x[:, :, 8, 8] = 50
    change = (mixer(x) - empty).abs().sum((0, 1))
    change = change - change.median()  # the norm changes every value a little
    where = (change * (change > change.max() / 10)).nonzero().double().mean(0)
    assert (where - 8).abs().max() < 2


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(level="1"), "level is '1': give a whole number of at least 1"),
        (dict(level=2.0), "level is 2.0: give a whole number of at least 1"),
        (dict(wavelet="harr"), r"'harr' is not a discrete wavelet of PyWavelets; did you mean 'haar'\? `pywt.wavelist"),
        (dict(wavelet="morl"), "'morl' is not a discrete wavelet of PyWavelets"),
        (dict(upsample="biliner"), r"upsample is 'biliner'; did you mean 'bilinear'\? Accepted: transposed, bilinear"),
        (dict(norm="layer"), r"norm is 'layer'.* Accepted: batch, group"),
        (dict(upsample="bilinear", ff_channel=4), "ff_channel is 4, but upsample='bilinear' has no such width: give 0"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        create_mixer("wavemix", 8, size=(8, 8), **options)


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="wavemix reduces its channels to a quarter: 6 is not a multiple of 4"):
        create_mixer("wavemix", 6, size=(8, 8))
