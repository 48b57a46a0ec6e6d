import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm
from torchvision.transforms import TrivialAugmentWide

from metamix.data.auto_augment import OPERATIONS, TRIVIAL, AutoAugment, parse, pil_transform, rand_ranges
from metamix.data.counter_rng import hash64

NEAREST = Image.Resampling.NEAREST
BY_PIL = {
    "identity": (lambda image, v: image, [0]),
    "shear_x": (lambda image, v: image.transform(image.size, Image.AFFINE, (1, v, 0, 0, 1, 0), NEAREST), [-0.7, 0.3]),
    "shear_y": (lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, v, 1, 0), NEAREST), [-0.7, 0.3]),
    "translate_x": (
        lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, int(v), 0, 1, 0), NEAREST),
        [-9.6, 31.9],
    ),
    "translate_y": (
        lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, 0, 1, int(v)), NEAREST),
        [-9.6, 31.9],
    ),
    "rotate": (lambda image, v: image.rotate(-v, NEAREST), [-40.0, 11.0, 130.0]),
    "brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(1 + v), [-0.99, 0.5]),
    "color": (lambda image, v: ImageEnhance.Color(image).enhance(1 + v), [-0.9, 0.5]),
    "contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(1 + v), [-0.9, 0.5]),
    "sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(1 + v), [-0.9, 0.5]),
    "posterize": (lambda image, v: ImageOps.posterize(image, max(1, int(v))), [8, 5, 2, 0]),
    "solarize": (lambda image, v: ImageOps.solarize(image, v), [255, 100, 0]),
    "solarize_add": (lambda image, v: timm.solarize_add(image, int(v)), [0, 50.5, 110]),
    "invert": (lambda image, v: ImageOps.invert(image), [0]),
    "auto_contrast": (lambda image, v: ImageOps.autocontrast(image), [0]),
    "equalize": (lambda image, v: ImageOps.equalize(image), [0]),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pils(name, mode, image):
    """To one step of 255, which PIL's own arithmetic rounds otherwise, in 99 of 100 pixels."""
    reference, values = BY_PIL[name]
    pictures = [image((31, 24), mode) for _ in values]
    images = torch.stack([torch.from_numpy(np.array(picture)).view(24, 31, len(mode)) for picture in pictures])
    kept = images.clone()
    done = OPERATIONS[name](images, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1))
    expected = np.stack([np.array(reference(picture, v)).reshape(24, 31, -1) for picture, v in zip(pictures, values)])
    assert (done.dtype, done.shape) == (torch.uint8, images.shape)
    assert (np.abs(done.numpy().astype(int) - expected) <= 1).mean() > 0.99
    assert torch.equal(images, kept), "nothing is done in place"


def test_every_operation_changes_images(image):
    """The control: an operation that did nothing would fail the comparison above."""
    picture = torch.from_numpy(np.array(image((31, 24))))[None]
    for name, (_, values) in BY_PIL.items():
        done = OPERATIONS[name](picture, torch.tensor(values[-1], dtype=torch.float32).view(1, 1, 1, 1))
        assert (torch.equal(done, picture)) == (name == "identity")


def test_ranges_of_trivial_augment_are_torchvisions():
    spaces = TrivialAugmentWide()._augmentation_space(31)
    assert len(spaces) == len(TRIVIAL) == 14
    for name, (magnitudes, signed) in spaces.items():
        low, high, sign = TRIVIAL["".join("_" * (i > 0 and c.isupper()) + c.lower() for i, c in enumerate(name))]
        ends = (float(magnitudes[0]), float(magnitudes[-1])) if magnitudes.ndim else (0.0, 0.0)
        assert ends == pytest.approx((low, high)) and signed == sign


def test_trivial_augment_keeps_the_bits_of_torchvision():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    augment = AutoAugment("trivial", 16)
    posterize = augment.operations[list(TRIVIAL).index("posterize")]
    for bits, strength in zip(TrivialAugmentWide()._augmentation_space(31)["Posterize"][0].tolist(), range(31)):
        done = posterize(image, torch.tensor(8 - 6 * strength / 30).view(1, 1, 1, 1))
        assert torch.equal(done, image // 2 ** int(8 - bits) * 2 ** int(8 - bits)), strength


def test_ranges_of_rand_augment_are_timms():
    names = {
        "AutoContrast": "auto_contrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate",
        "PosterizeIncreasing": "posterize", "SolarizeIncreasing": "solarize", "SolarizeAdd": "solarize_add",
        "ColorIncreasing": "color", "ContrastIncreasing": "contrast", "BrightnessIncreasing": "brightness",
        "SharpnessIncreasing": "sharpness", "ShearX": "shear_x", "ShearY": "shear_y",
        "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
    }  # fmt: skip
    ours = rand_ranges(32)
    assert sorted(names.values()) == sorted(ours)
    assert sorted(names) == sorted(timm._RAND_INCREASING_TRANSFORMS)
    for name, (low, high, signed) in ((key, ours[names[key]]) for key in names):
        level = timm.LEVEL_TO_ARG[name]
        if level is None:
            assert (low, high) == (0, 0)
            continue
        for strength in 0, 9:
            values = {level(strength, {})[0] for _ in range(50)}
            value = low + (high - low) * strength / 10
            if names[name] in ("color", "contrast", "brightness", "sharpness"):
                expected = {max(0.1, 1 - value), 1 + value}
            elif names[name].startswith("translate"):
                expected = {value / 32, -value / 32}
            elif names[name] == "posterize":
                expected = {int(np.ceil(value))}
            else:
                expected = (
                    {value, -value} if signed else {int(np.ceil(value)) if names[name] == "solarize" else int(value)}
                )
            assert sorted(values) == pytest.approx(sorted(expected))


@pytest.mark.parametrize(
    "text, policy",
    [
        ("none", None),
        ("trivial", "trivial"),
        ("rand-m9-n2", (9, 2, 0.0)),
        ("rand-m7", (7, 2, 0.0)),
        ("rand-m9-mstd0.5-inc1", (9, 2, 0.5)),
        ("rand-m10-n3-mstd0.5", (10, 3, 0.5)),
    ],
)
def test_words(text, policy):
    assert parse(text) == policy


@pytest.mark.parametrize("text", ["rand", "rand-m11-n2", "rand-m9-n0", "rand-m9-x3", "rand-m9-mstd0.5.5", "augmix", ""])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=f"auto_augment is '{text}': give none, trivial, or rand-m9-n2"):
        parse(text)


@pytest.mark.parametrize("text", ["trivial", "rand-m9-n2-mstd0.5"])
def test_other_images_of_the_batch_change_nothing(text):
    image = torch.randint(0, 256, (64, 20, 24, 3), dtype=torch.uint8)
    key = hash64(torch.arange(64))
    policy = AutoAugment(text, 20)
    together = policy(image, key)
    alone = torch.cat([policy(image[i : i + 1], key[i : i + 1]) for i in range(64)])
    assert torch.equal(together, alone)
    assert 0.2 < (together != image).flatten(1).any(1).float().mean() < 1
    assert not torch.equal(policy(image, key + 1), together)


def test_all_operations_are_drawn_equally_often(monkeypatch):
    """Strengths are those of the policy: the operations are replaced by ones that record their values."""
    policy, seen = AutoAugment("trivial", 32), [[] for _ in TRIVIAL]
    policy.operations = [lambda image, value, i=i: seen[i].append(value.flatten()) or image for i in range(14)]
    policy(torch.zeros(28_000, 1, 1, 1, dtype=torch.uint8), hash64(torch.arange(28_000)))
    for (low, high, signed), (values,) in zip(TRIVIAL.values(), seen):
        assert 1850 < len(values) < 2150
        assert len(values.unique()) == (1 if low == high else 61 if signed else 31)
        assert values.abs().max() == max(abs(low), abs(high))


def test_rand_augment_skips_half_and_scatters_magnitudes():
    policy, seen = AutoAugment("rand-m9-n2-mstd0.5", 100), []
    names = list(rand_ranges(100))
    rotate = names.index("rotate")
    policy.operations = [lambda image, value, i=i: seen.append((i, value.flatten())) or image for i in range(15)]
    policy(torch.zeros(15_000, 1, 1, 1, dtype=torch.uint8), hash64(torch.arange(15_000)))
    assert 14_500 < sum(len(values) for _, values in seen) < 15_500, "two layers of 15,000, half of them skipped"
    degrees = torch.cat([values for i, values in seen if i == rotate])
    assert degrees.abs().max() <= 30 and degrees.abs().mean() == pytest.approx(27, abs=0.2)
    assert 1.0 < degrees.abs().std() < 1.6 and 0.4 < (degrees > 0).float().mean() < 0.6


def test_streamed_images_have_the_same_policies(image):
    assert pil_transform("none", 32, (0.5,) * 3) is None
    for text in "trivial", "rand-m10-n3":
        for mode in "RGB", "L":
            transform = pil_transform(text, 32, (0.5,) * len(mode))
            original = image(mode=mode)
            done = [transform(original) for _ in range(50)]
            assert all((picture.size, picture.mode) == ((32, 32), mode) for picture in done)
            assert any(picture.tobytes() != original.tobytes() for picture in done)
    assert "m=10" in repr(transform) and "n=3" in repr(transform)
