"""Padding and self-ensemble against literal versions."""

from functools import partial

import numpy as np
import pytest
import torch

from metamix.layers.image_inference import apply_in_tiles, pad_by_reflection, run_padded, self_ensemble
from tests.helpers.restorers import Blur, image


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 5), (9, 8), (15, 16), (33, 20)])
def test_padding_as_the_authors(size):
    """To even with one more row or column, then half of what is missing on each side; numpy repeats the reflection."""
    x = image(*size)
    padded, _ = pad_by_reflection(x, (8, 16))
    expected = x.numpy()
    expected = np.pad(expected, [(0, 0), (0, 0), (0, size[0] % 2), (0, size[1] % 2)], mode="reflect")
    missing = [-expected.shape[-2] % 8, -expected.shape[-1] % 16]
    expected = np.pad(expected, [(0, 0), (0, 0), *((n // 2, n // 2) for n in missing)], mode="reflect")
    assert np.array_equal(padded, expected)
    assert torch.equal(run_padded(lambda padded: padded, x, (8, 16)), x)


def test_an_image_that_fits_is_not_copied():
    x = image(8, 16)
    assert pad_by_reflection(x, (8, 16))[0] is x


def test_a_model_in_training_is_refused():
    for run in (apply_in_tiles, self_ensemble):
        with pytest.raises(ValueError, match="Blur is in training mode: call model.eval"):
            run(Blur(), image(8, 8))


@pytest.mark.parametrize("size, batches", [((6, 8), [8, 8]), ((6, 6), [16])])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_self_ensemble(size, batches, scale):
    torch.manual_seed(0)
    model, x = Blur(scale).eval(), image(*size, batch=2)
    expected = 0
    for turns in range(4):
        for flip in (False, True):
            turned = torch.rot90(x, turns, (2, 3))
            y = model(turned.flip(-1)).flip(-1) if flip else model(turned)
            expected = expected + torch.rot90(y, -turns, (2, 3)) / 8
    model.batches.clear()
    torch.testing.assert_close(self_ensemble(model, x), expected)
    assert model.batches == batches
    torch.testing.assert_close(apply_in_tiles(partial(self_ensemble, model), x, tile=99), expected)
