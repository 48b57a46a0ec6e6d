"""Test PSNR, SSIM and bicubic resizing against literal formulas, MATLAB's images and published values."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metamix.restoration.data import RestorationData
from metamix.restoration.inference import Restorer, enlarge
from metamix.restoration.metric import Measure, RestorationMetric, psnr, ssim
from metamix.restoration.options import RestorationOptions
from metamix.restoration.pixels import resize_bicubic, to_grey, to_rgb, to_y, to_ycbcr
from metamix.weights.metadata import ModelMetadata

DATA = os.environ.get("METAMIX_DATA")


@pytest.fixture(scope="module")
def photos():
    """Find the folder with Set5 and Set14, whose licence does not allow us to commit them."""
    if DATA is None:
        pytest.skip("needs photos/ with Set5 and Set14: set METAMIX_DATA to the folder that holds it")
    return Path(DATA, "photos")


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(3, 20, 23, generator=rng, dtype=torch.float64)
    return x, (x + 0.1 * torch.randn(3, 20, 23, generator=rng, dtype=torch.float64)).clamp(0, 1)


def literal_ssim(x, y):
    """Compute SSIM of one channel, window by window, on the scale of 0 to 255."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = (255 * image[i : i + 11, j : j + 11].numpy() for image in (x, y))
            m, n = (window * a).sum(), (window * b).sum()
            va, vb, cov = (
                (window * (a - m) ** 2).sum(),
                (window * (b - n) ** 2).sum(),
                (window * (a - m) * (b - n)).sum(),
            )
            values.append((2 * m * n + c1) * (2 * cov + c2) / ((m**2 + n**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def test_scores_equal_the_formulas(pair):
    x, y = pair
    error = np.mean((255 * x.numpy() - 255 * y.numpy()) ** 2)
    assert psnr(x, y) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)
    expected = np.mean([literal_ssim(a, b) for a, b in zip(x, y)])
    assert float(ssim(x[None], y[None])) == pytest.approx(expected, abs=1e-9)
    assert psnr(x, x) == math.inf and float(ssim(x[None], x[None])) == pytest.approx(1)


def test_scores_depend_on_channel_border_and_rounding(pair):
    x, y = pair
    inside = np.s_[:, 2:-2, 2:-2]
    rounded = (255 * x).round() / 255
    assert Measure("rgb", 2, True).score(x, y)[0] == pytest.approx(psnr(rounded[inside], y[inside]), abs=1e-3)
    assert Measure("rgb", 0, False).score(x, y)[0] == pytest.approx(psnr(x, y))
    red, green, blue = x
    luminance = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    assert torch.allclose(255 * to_y(x)[0], luminance)
    assert torch.allclose(to_grey(x)[0], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert Measure("y", 0, False).score(x, y)[0] == pytest.approx(psnr(to_y(x), to_y(y)))
    assert Measure("grey", 0, False).score(x, y)[0] == pytest.approx(psnr(to_grey(x), to_grey(y)))
    assert Measure("grey", 0, False).score(x[:1], y[:1])[0] == pytest.approx(psnr(x[:1], y[:1]))


def test_the_description_names_channel_border_and_rounding():
    text = Measure("y", 2).describe()
    assert "Y (BT.601, 16 to 235), border 2, clipped and rounded to 8 bits" in text
    assert "on grey, border 0, not clipped, not rounded" in Measure("y", 0, False).describe("grey")
    assert "on Y (BT.601, 16 to 235)" in Measure("rgb").describe("y")


def test_a_border_that_leaves_nothing_is_refused(pair):
    with pytest.raises(ValueError, match="20 x 23 pixels has nothing inside a border of 10: give a smaller"):
        Measure(border=10).score(*pair)


def test_small_images_have_no_ssim():
    x = torch.randint(256, (1, 8, 30)) / 255
    assert math.isnan(Measure().score(x, x)[1])
    metric = RestorationMetric(Measure(), Restorer())
    state = metric.start()
    batch = {"image": [x], "target": [x], "index": torch.tensor([0]), "name": ["a"]}
    metric.update(state, metric.predict(nn.Identity().eval(), batch), batch)
    assert metric.result([state]) == {"psnr": 100, "input_psnr": 100}  # the PSNR that is counted for equal images


def test_a_small_input_is_enlarged_bicubically_and_scored_as_the_baseline():
    small, target = torch.rand(1, 12, 14), torch.rand(1, 24, 28)
    metric = RestorationMetric(Measure(rounding=False), Restorer())
    state = metric.start()
    batch = {"image": [small], "target": [target], "index": torch.tensor([0]), "name": ["a"]}
    metric.update(state, [target], batch)
    expected = psnr(resize_bicubic(small, 2).clamp(0, 1), target)
    assert metric.result([state])["input_psnr"] == pytest.approx(expected)


def test_ycbcr_is_converted_back_to_rgb(pair):
    x = pair[0]
    assert torch.allclose(to_rgb(to_ycbcr(x)), x, atol=1e-10)
    white = 255 * to_ycbcr(torch.ones(3, 1, 1, dtype=torch.float64)).flatten()
    assert torch.allclose(white, torch.tensor([235.0, 128, 128], dtype=torch.float64))


def test_bicubic_halving_equals_the_kernel():
    """At scale 1/2 the taps of an inner pixel are half the cubic kernel at odd multiples of 1/4."""
    row = torch.zeros(1, 1, 32, dtype=torch.float64)
    row[..., 15] = 1
    taps = np.array([-0.0117, -0.0352, 0.1133, 0.4336])  # cubic(t) / 2 at t = 1.75, 1.25, 0.75, 0.25
    halved = resize_bicubic(row, 0.5)[0, 0].numpy()
    assert halved[5:10] == pytest.approx([0, taps[1], taps[3], taps[2], taps[0]], abs=1e-4)


def test_values_that_end_in_one_half_are_rounded_up():
    """Floating-point errors make some of these values slightly smaller than n + 1/2."""
    row = torch.randint(256, (20_000,), generator=torch.Generator().manual_seed(0))
    halved = 255 * resize_bicubic(row.double().expand(1, 4, -1) / 255, 0.5, rounding=True)[0, 0]
    exact = (row[1:].unfold(0, 8, 2) * torch.tensor([-12, -36, 116, 444, 444, 116, -36, -12])).sum(1)  # times 1024
    assert (exact % 1024 == 512).sum() > 20
    assert torch.equal(halved[2:-2].round().long(), ((exact + 512) // 1024).clamp(0, 255))


@pytest.fixture(scope="module")
def set5(photos):
    """Return images (3, H, W) by folder and name."""
    return {
        (path.parent.name, path.stem): torch.from_numpy(np.array(Image.open(path).convert("RGB")))
        .permute(2, 0, 1)
        .double()
        / 255
        for path in sorted((photos / "set5").rglob("*.png"))
    }


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscaling_equals_matlab(set5, scale):
    """Every pixel is equal, also at the borders."""
    for kind, name in [key for key in set5 if key[0] == "hr"]:
        theirs, target = set5[f"x{scale}", f"{name}x{scale}"], set5[kind, name]
        target = target[:, : scale * theirs.shape[1], : scale * theirs.shape[2]]
        ours = resize_bicubic(target, 1 / scale, rounding=True)
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9), name


def test_bicubic_has_the_published_psnr_on_set5(set5):
    """Papers report 33.66 dB on Y at x2 with a border of 2."""
    scores = []
    for kind, name in [key for key in set5 if key[0] == "hr"]:
        small, target = set5["x2", f"{name}x2"], set5[kind, name]
        enlarged = resize_bicubic(small, 2)
        scores.append(Measure("y", 2).score(enlarged, target[:, : enlarged.shape[1], : enlarged.shape[2]])[0])
    assert np.mean(scores) == pytest.approx(33.66, abs=0.03)


@pytest.mark.slow
def test_bicubic_has_nearly_the_published_psnr_on_set14(photos):
    """Papers report 30.24 dB on Y at x2. One file is grey and stays grey; converting it to Y would add 0.09 dB."""
    options = RestorationOptions(test_dir=str(photos / "set14"), channels="y", degradation="downscale:2", workers=0)
    data, scores = RestorationData(options, metadata=ModelMetadata()), []
    assert "grey files are compared as stored, 0 to 255 (1 scored image)" in data.notes
    for batch in data.eval_loaders(1, 0, 1)["test"]:
        (small,), (target,) = batch["image"], batch["target"]
        scores.append(Measure("y", 2).score(enlarge(small, 2), target)[0])
    assert len(scores) == 14 and np.mean(scores) == pytest.approx(30.23, abs=0.02)
