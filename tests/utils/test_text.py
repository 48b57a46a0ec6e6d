"""Test the texts of messages."""

import pytest

from metamix.utils.text import plural


@pytest.mark.parametrize("count, noun, text", [
    (0, "image", "0 images"),
    (1, "image", "1 image"),
    (1797, "image", "1,797 images"),
    (2, "class", "2 classes"),
    (2, "batch", "2 batches"),
    (10, "epoch", "10 epochs"),
    (3, "batch norm", "3 batch norms"),
])  # fmt: skip
def test_plural(count, noun, text):
    assert plural(count, noun) == text
