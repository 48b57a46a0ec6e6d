"""Test the definition of each degradation, chains of degradations, and refusals."""

import pytest
import torch

from metamix.data.counter_rng import generator
from metamix.restoration.degradations import DEGRADATIONS, Range, line_kernel, parse_degradations

IMAGE = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(1))
EXAMPLES = ["noise:25", "downscale:2", "blur:0.5-3", "motion:9", "jpeg:30-90", "low_light:2-3:10", "haze:1", "rain:5"]


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_random_numbers_depend_only_on_the_generator(text, channels):
    chain, image = parse_degradations(text), IMAGE[:channels]
    before = image.clone()
    first, again, other = (chain(image, generator(0, 1, n)) for n in (2, 2, 3))
    assert torch.equal(first, again) and torch.equal(image, before) and first.dtype == torch.float32
    assert first.shape == (channels, 48 // chain.scale, 40 // chain.scale)
    assert not torch.equal(first, image)
    assert torch.equal(first, other) == (text == "downscale:2")


def test_every_degradation_has_an_example():
    assert {text.partition(":")[0] for text in EXAMPLES} == set(DEGRADATIONS)


def test_noise_has_the_given_sigma_and_obeys_grey_and_clip():
    grey = torch.full((3, 200, 200), 0.5)
    noise = 255 * (parse_degradations("noise:25")(grey, generator(0)) - grey)
    assert noise.std() == pytest.approx(25, rel=0.02) and noise.mean().abs() < 0.5
    same = parse_degradations("noise:25:grey")(grey, generator(0))
    assert torch.equal(same[0], same[1]) and not torch.equal(noise[0], noise[1])
    white = torch.ones(1, 50, 50)
    assert parse_degradations("noise:25")(white, generator(0)).max() > 1
    assert parse_degradations("noise:25:clip")(white, generator(0)).max() == 1


def test_values_are_drawn_from_the_whole_range():
    grey = torch.full((1, 64, 64), 0.5)
    sigmas = [255 * float(parse_degradations("noise:10-50")(grey, generator(i)).std()) for i in range(40)]
    assert 9 < min(sigmas) < 20 and 40 < max(sigmas) < 52


def test_numbers_may_have_exponents():
    for text, low, high in (("noise:1e-3", 1e-3, 1e-3), ("noise:1e-3-2.5e1", 1e-3, 25), ("noise:.5-2.", 0.5, 2)):
        assert parse_degradations(text).steps[0].numbers == [Range(low, high)]


def test_blurs_keep_a_constant_image_and_spread_a_point():
    for text in "blur:2", "motion:9":
        chain = parse_degradations(text)
        assert torch.allclose(chain(torch.full((1, 20, 20), 0.4), generator(0)), torch.tensor(0.4), atol=1e-6)
        point = torch.zeros(1, 41, 41)
        point[0, 20, 20] = 1
        spread = chain(point, generator(0))
        assert spread.sum() == pytest.approx(1, abs=1e-5) and spread.max() < 0.3
    place = torch.arange(41.0) - 20
    spread = parse_degradations("blur:2")(point, generator(0))
    assert float((spread[0].sum(0) * place.square()).sum()) == pytest.approx(4, rel=0.05)  # the variance
    corner = point.roll((-20, -20), (1, 2))
    spread = parse_degradations("blur:2")(corner, generator(0))
    assert spread.sum() == pytest.approx(1, abs=1e-5)  # the borders are mirrored


def test_line_kernels_turn_with_the_angle_and_sum_to_one():
    kernel = line_kernel(5, 0.0)
    assert kernel.shape == (5, 5) and kernel[2].sum() == pytest.approx(1) and kernel[0].sum() == 0
    assert torch.allclose(line_kernel(5, torch.pi / 2), kernel.T, atol=1e-6)
    assert line_kernel(1, 0.3).tolist() == [[1.0]]


def test_low_light_haze_and_rain_follow_their_definitions():
    dark = parse_degradations("low_light:2")(IMAGE, generator(0))
    assert torch.allclose(dark, IMAGE**2)
    grey = torch.full((1, 100, 100), 0.5)
    noisy = parse_degradations("low_light:2:10")(grey, generator(0))
    assert noisy.mean() == pytest.approx(0.25, abs=0.01) and 255 * noisy.std() == pytest.approx(10, rel=0.05)
    assert parse_degradations("low_light:2:10")(torch.zeros_like(grey), generator(0)).min() == 0  # noise is clipped
    clear, hazy = (parse_degradations(f"haze:{beta}")(IMAGE, generator(0)) for beta in (0, 2))
    assert torch.allclose(clear, IMAGE) and hazy.std() < IMAGE.std()
    assert parse_degradations("haze:2")(grey, generator(0)).std() > 0.02  # denser where the scene is deep
    wet = parse_degradations("rain:5")(IMAGE, generator(0))
    assert (wet >= IMAGE - 1e-6).all() and (wet > IMAGE).any()


def test_jpeg_of_high_quality_changes_the_image_less_than_jpeg_of_low_quality():
    smooth = torch.nn.functional.interpolate(IMAGE[None, :, :6, :5], size=(48, 40), mode="bilinear")[0]
    good, bad = (parse_degradations(f"jpeg:{q}")(smooth, generator(0)) for q in (100, 5))
    assert (good - smooth).abs().mean() < 0.02 < (bad - smooth).abs().mean()


def test_a_crop_with_its_reach_is_degraded_as_in_the_whole_image():
    chain = parse_degradations("blur:1,downscale:2")
    assert chain.scale == 2 and chain.reach % 2 == 0
    assert parse_degradations("blur:0.5-3").reach == 9 and parse_degradations("downscale:2,blur:1").reach == 4 + 2 * 3
    whole, r = chain(IMAGE, generator(0)), chain.reach
    part = chain(IMAGE[:, 16 - r : 32 + r, 16 - r : 24 + r], generator(0))
    inner = part[:, r // 2 : r // 2 + 8, r // 2 : r // 2 + 4]
    assert torch.allclose(inner, whole[:, 8:16, 8:12], atol=1e-6)
    short = chain(IMAGE[:, 16:32, 16:24], generator(0))  # the control: a crop without its reach differs
    assert not torch.allclose(short, whole[:, 8:16, 8:12], atol=1e-3)


def test_chains_are_applied_from_left_to_right():
    rng = generator(0)
    expected = parse_degradations("noise:5")(parse_degradations("downscale:2")(IMAGE, rng), rng)
    assert torch.equal(parse_degradations("downscale:2, noise:5")(IMAGE, generator(0)), expected)
    assert torch.equal(parse_degradations(" pairs")(IMAGE, generator(0)), IMAGE)


@pytest.mark.parametrize(
    "text, words",
    [
        ("nois:25", "degradation is 'nois'; did you mean 'noise'\\? Accepted: noise, downscale"),
        ("", "degradation is ''"),
        ("noise:5,pairs", "degradation 'pairs' is given with a value or another degradation: give pairs alone"),
        ("pairs:2", "degradation 'pairs:2' is given with a value"),
        ("noise", "'noise' has 0 values; write it as noise:SIGMA"),
        ("noise:1:2", r"'noise:1:2' has 2 values; write it as .*, such as noise:2 or noise:1-3$"),
        ("noise:25:clp", r"'clp' is neither a value nor a switch of noise; write it as noise:SIGMA\[:clip\]"),
        ("noise:25:clip:clip", "'noise:25:clip:clip' has clip more than once: give it once"),
        ("noise:10-", "'10-' is neither a value nor a switch of noise"),
        ("blur:loud", "'loud' is not a value; write it as blur:SIGMA, such as blur:2 or blur:1-3$"),
        ("low_light", r"has 0 values; write it as low_light:GAMMA\[:SIGMA\], such as low_light:2 or low_light:1-3$"),
        ("downscale:", "'' is not a value; write it as downscale:FACTOR, such as downscale:2$"),
        ("noise:50-10", "the value 50-10, but it must be a number from 0 to 255, or a range LOW-HIGH"),
        ("noise:nan", "the value nan, but it must be"),
        ("downscale:1.5", "has the value 1.5, but it must be a whole number from 1 to 16"),
        ("downscale:2-4", "has the value 2-4, but it must be a whole number from 1 to 16"),
        ("downscale:inf", "the value inf, but it must be a whole number from 1 to 16"),
        ("jpeg:200", "the value 200, but it must be a number from 1 to 100, or a range LOW-HIGH"),
    ],
)
def test_wrong_degradations_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_degradations(text)
