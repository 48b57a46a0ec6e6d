import re

import pytest
import torch

from metamix.mixers import create_mixer
from tests.helpers.formulas import assert_equal, random_map, random_mixer


def formula(x, k, subtract):
    """Compute the mean of the k x k neighbours inside the map, and subtract the value itself if `subtract`."""
    y = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            near = x[:, :, max(i - k // 2, 0) : i + k // 2 + 1, max(j - k // 2, 0) : j + k // 2 + 1]
            y[:, :, i, j] = near.mean((2, 3)) - (x[:, :, i, j] if subtract else 0)
    return y


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 4), (9, 11)])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_outputs_equal_the_formula(k, subtract, size):
    x = random_map(2, 3, *size)
    mixer = random_mixer("pooling", 3, (7, 4), pool_size=k, subtract=subtract)
    assert_equal(mixer(x), formula(x, k, subtract))


def test_default_options_are_the_options_of_the_paper():
    x = random_map(2, 3, 7, 4)
    assert_equal(random_mixer("pooling", 3, (7, 4))(x), formula(x, 3, True))


@pytest.mark.parametrize("k", [0, 2, -1, 3.0, "3", [3, 3]])
def test_a_pool_size_that_is_not_a_positive_odd_integer_is_refused(k):
    with pytest.raises(ValueError, match=rf"pool_size is {re.escape(repr(k))}; an odd number .* try 3 or 5"):
        create_mixer("pooling", 8, size=(4, 4), pool_size=k)
