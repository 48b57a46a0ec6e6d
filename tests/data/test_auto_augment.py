import pytest
import torch

from metamix.data.auto_augment import apply_policy, make_policy
from metamix.data.counter_rng import hash64


@pytest.mark.parametrize(
    "text, policy",
    [
        ("rand-m9-n2", (9, 2, 0.0)),
        ("rand-m7", (7, 2, 0.0)),
        ("rand-m9-mstd0.5-inc1", (9, 2, 0.5)),
        ("rand-m10-n3-mstd0.5", (10, 3, 0.5)),
    ],
)
def test_a_policy_is_read_from_its_text(text, policy):
    made = make_policy(text, (0.5,) * 3)
    assert {operation.name for operation in made.ops} >= {"PosterizeIncreasing", "ColorIncreasing"}
    assert {(each.magnitude, made.num_layers, each.magnitude_std) for each in made.ops} == {policy}


@pytest.mark.parametrize("text", ["rand", "rand-m11-n2", "rand-m9-n0", "rand-m9-x3", "rand-m9-mstd0.5.5", "augmix", ""])
def test_unknown_and_malformed_policies_are_refused(text):
    with pytest.raises(ValueError, match=f"auto_augment is '{text}': give none, trivial, or rand-m9-n2"):
        make_policy(text, (0.5,) * 3)


@pytest.mark.parametrize("text", ["trivial", "rand-m9-n2-mstd0.5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_for_an_image_does_not_depend_on_its_batch(text, channels):
    images, key = torch.randint(0, 256, (64, 20, 24, channels), dtype=torch.uint8), hash64(torch.arange(64))
    original = images.clone()
    policy = make_policy(text, (0.5,) * channels)
    together = apply_policy(policy, images, key)
    alone = torch.cat([apply_policy(policy, images[i : i + 1], key[i : i + 1]) for i in range(64)])
    assert (together.dtype, together.shape) == (torch.uint8, images.shape)
    assert torch.equal(together, alone) and torch.equal(images, original)
    assert 0.2 < (together != images).flatten(1).any(1).float().mean() < 1
    assert not torch.equal(apply_policy(policy, images, key + 1), together)


def test_policies_change_images_and_keep_their_size_and_mode(image):
    assert make_policy("none", (0.5,) * 3) is None
    for text in "trivial", "rand-m10-n3":
        for mode in "RGB", "L":
            policy = make_policy(text, (0.5,) * len(mode))
            original = image(mode=mode)
            done = [policy(original) for _ in range(50)]
            assert all((picture.size, picture.mode) == ((32, 32), mode) for picture in done)
            assert any(picture.tobytes() != original.tobytes() for picture in done)
    assert "m=10" in repr(policy) and "n=3" in repr(policy)
