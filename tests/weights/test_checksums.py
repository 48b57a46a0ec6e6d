"""Test checksums of files and digests of data sets."""

import pytest
import torch

from metamix.weights.checksums import VALUES, checksums, damaged, digest

CONTENT = {"step": 3, "model": {"w": torch.arange(4.0)}, "moments": {0: (torch.zeros(2, dtype=torch.bfloat16), 1e-3)}}


def test_every_tensor_has_a_checksum_under_its_name():
    assert checksums(CONTENT).keys() == {"model.w", "moments.0.0", VALUES}
    assert damaged(CONTENT, checksums(CONTENT)) == []


@pytest.mark.parametrize(
    "change, names",
    [
        ({"model": {"w": torch.tensor([0.0, 1, 2, 4])}}, ["model.w"]),
        ({"model": {"w": torch.arange(4.0).view(2, 2)}}, ["model.w"]),
        ({"model": {"w": torch.arange(4.0).view(torch.int32)}}, ["model.w"]),
        ({"step": 4}, [VALUES]),
        ({"model": {}}, [VALUES, "model.w"]),
    ],
)
def test_a_changed_tensor_or_value_is_found(change, names):
    assert damaged(CONTENT | change, checksums(CONTENT)) == names


def test_the_memory_format_does_not_matter():
    image = torch.randn(2, 3, 4, 5)
    assert checksums({"x": image}) == checksums({"x": image.to(memory_format=torch.channels_last)})


def test_a_digest_depends_on_every_value_and_on_the_order():
    rows = [("a/1.png", 0, 120), ("b/2.png", 1, 80)]
    others = [rows[::-1], rows[:1], [("a/1.png", 1, 120), rows[1]], [("a/1.png", 0, 121), rows[1]]]
    digests = {digest(each) for each in (rows, *others)}
    assert len(digests) == 5 and digest(iter(rows)) == digest(rows) and all(len(each) == 32 for each in digests)
    assert digest([("ab", "c")]) != digest([("a", "bc")])
